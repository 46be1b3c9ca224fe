"""`tools` and `tool_choice`: what a model may call, and what it must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusals import show, unsupported, wrong
from .fields import Fields, check_depth

MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_ANY_ARGUMENTS = {"type": "object"}


@dataclass(frozen=True)
class Tools:
    """definitions: as the chat template gets them. schemas: of each tool's arguments, by name.
    needed: the names of which exactly one must be called; empty where the model decides.
    single: at most one call. named: one tool was asked for by name. strict: where a tool asks for
    calls that are sure to fit its schema; empty where none does.
    """

    definitions: tuple[dict[str, Any], ...]
    schemas: Mapping[str, Any]
    needed: tuple[str, ...]
    single: bool
    named: bool
    strict: str


def read_tools(fields: Fields) -> Tools | None:
    """None where there are no tools, or where the model is not to call any."""
    fields.refuse({"functions": "use tools", "function_call": "use tool_choice"})
    parallel = fields.boolean("parallel_tool_calls", True)
    choice = fields.take("tool_choice")
    given = fields.sequence("tools", MOST_TOOLS)
    definitions, schemas, strict = [], {}, ""
    for index, item in enumerate(given):
        tool = Fields(item, f"tools[{index}]")
        if (kind := tool.need("type")) != "function":
            raise unsupported(tool.where("type"), f"use function tools, not {show(kind)}")
        function = tool.inner("function")
        if function is None:
            raise wrong(tool.where("function"), "is missing", "missing_required_parameter")
        name, schema, is_strict = read_function(function)
        tool.finish()
        if name in schemas:
            raise wrong(function.where("name"), f"{show(name)} is there twice")
        schemas[name] = schema
        strict = strict or (function.where("strict") if is_strict else "")
        check_depth(item, f"tools[{index}]")
        definitions.append(item)
    needed, named = read_choice(choice, tuple(schemas))
    if choice == "none" or not schemas:
        return None
    return Tools(tuple(definitions), schemas, needed, not parallel or bool(needed), named, strict)


def read_function(fields: Fields) -> tuple[str, Any, bool]:
    name = fields.need("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(
            fields.where("name"), f"must be 1 to 64 letters, digits, '_', '.' or '-', not "
            f"{show(name)}"
        )  # fmt: skip
    fields.text("description")
    schema = fields.take("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise wrong(fields.where("parameters"), f"must be an object, not {show(schema)}")
    if schema is not None and "x-guidance" in schema:
        raise wrong(fields.where("parameters"), "must not have 'x-guidance'; leave it out")
    strict = fields.boolean("strict")
    fields.finish()
    return name, schema or _ANY_ARGUMENTS, strict


def read_choice(choice: object, names: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Which tools must be called, and whether it is one by name."""
    if choice is None or choice in ("none", "auto"):
        return (), False
    if not names:
        raise wrong("tool_choice", "needs tools")
    if choice == "required":
        return names, False
    if isinstance(choice, str):
        raise wrong(
            "tool_choice",
            f"must be none, auto, required or the name of a function, not {show(choice)}",
        )
    fields = Fields(choice, "tool_choice")
    if fields.need("type") != "function":
        raise unsupported("tool_choice.type", 'use {"type": "function", …}')
    function = fields.inner("function")
    name = function.need("name") if function is not None else None
    if function is not None:
        function.finish()
    fields.finish()
    if name not in names:
        raise wrong("tool_choice", f"names {show(name)}, which is not among tools")
    return (name,), True
