"""`tools` and `tool_choice`: what a model may call, and what it must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusals import show, unsupported, wrong
from .fields import NEEDED, Fields, Object, Parameter, object_schema
from .json_body import check_depth
from .kinds import Anything, Boolean, Schema, Text
from .parameters import PARALLEL_TOOL_CALLS, TOOL_CHOICE, TOOLS, TOOLS_REFUSED

_NAME = "[a-zA-Z0-9_.-]{1,64}"
_ANY_ARGUMENTS = {"type": "object"}

TYPE: Parameter[Any] = Parameter("type", Anything({"const": "function"}), NEEDED)
NAME: Parameter[Any] = Parameter(
    "name", Anything({"type": "string", "pattern": f"^{_NAME}$"}), NEEDED
)
DESCRIPTION = Parameter("description", Text(), None)
PARAMETERS: Parameter[Any] = Parameter(
    "parameters", Anything({"type": "object"}), None, "JSON Schema of the arguments."
)
STRICT = Parameter("strict", Boolean(), False, "Calls are sure to fit the schema.")
FUNCTION: Parameter[Fields] = Parameter(
    "function", Object((NAME, DESCRIPTION, PARAMETERS, STRICT)), NEEDED
)
CHOSEN_NAME: Parameter[Any] = Parameter("name", Anything({"type": "string"}), NEEDED)
CHOSEN_FUNCTION: Parameter[Fields] = Parameter("function", Object((CHOSEN_NAME,)), NEEDED)


def schemas() -> dict[str, Schema]:
    """Of the description's components."""
    choice = {
        "anyOf": [
            {"enum": ["none", "auto", "required", None]},
            object_schema((TYPE, CHOSEN_FUNCTION)),
        ]
    }
    return {"Tool": object_schema((TYPE, FUNCTION)), "ToolChoice": choice}


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
    fields.refuse(TOOLS_REFUSED)
    parallel = fields.read(PARALLEL_TOOL_CALLS)
    choice = fields.read(TOOL_CHOICE)
    definitions, schemas, strict = [], {}, ""
    offered = fields.read(TOOLS) or []
    for index, item in enumerate(offered):
        tool = Fields(item, f"tools[{index}]")
        if (kind := tool.read(TYPE)) != "function":
            raise unsupported(tool.where("type"), f"use function tools, not {show(kind)}")
        function = tool.read(FUNCTION)
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
    name = fields.read(NAME)
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise wrong(
            fields.where("name"), f"must be 1 to 64 letters, digits, '_', '.' or '-', not "
            f"{show(name)}"
        )  # fmt: skip
    fields.read(DESCRIPTION)
    schema = fields.read(PARAMETERS)
    if schema is not None and not isinstance(schema, dict):
        raise wrong(fields.where("parameters"), f"must be an object, not {show(schema)}")
    if schema is not None and "x-guidance" in schema:
        raise wrong(fields.where("parameters"), "must not have 'x-guidance'; leave it out")
    strict = fields.read(STRICT)
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
    if fields.read(TYPE) != "function":
        raise unsupported("tool_choice.type", 'use {"type": "function", …}')
    function = fields.find(CHOSEN_FUNCTION)
    name = function.read(CHOSEN_NAME) if function is not None else None
    if function is not None:
        function.finish()
    fields.finish()
    if name not in names:
        raise wrong("tool_choice", f"names {show(name)}, which is not among tools")
    return (name,), True
