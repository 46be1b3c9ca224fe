"""Calls as JSON objects, `{"name": …, "arguments": {…}}`, which several forms have in common.

key: of the arguments in such an object, "arguments" or "parameters".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from .call import ToolCall, json_text

_BEGUN = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"\w+"\s*:\s*')
_SEPARATORS = " \t\r\n;,"


def call_rules(schemas: Mapping[str, Any], key: str) -> str:
    """The rule `call` of a grammar in Lark's form: an object that calls one of the tools.

    schemas: of each tool's arguments, by name. Each is a document of its own, to which its
    references lead.
    """
    rules = []
    for name, schema in schemas.items():
        begun = f'{{"name": {json.dumps(name)}, "{key}": '
        rules.append(f'{json.dumps(begun)} ({json_rule(schema)}) "}}"')
    return "call: " + "\n    | ".join(rules)


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema, in Lark's form, with the spaces that models write."""
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': form})}"


def read_object(value: object, names: Collection[str], key: str) -> ToolCall | None:
    """The call that `value`, parsed JSON, is; None where it is none of an offered tool."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or name not in names:
        return None
    arguments = value.get(key)
    if arguments is None:
        arguments = value.get("parameters", value.get("arguments", {}))
    if not isinstance(arguments, (dict, str)):
        return None
    if isinstance(arguments, dict):
        try:
            arguments = json_text(arguments)
        except ValueError:
            return None
    return ToolCall(name, arguments.encode("utf-8", "replace").decode("utf-8"))


def read_objects(text: str, names: Collection[str], key: str) -> list[ToolCall]:
    """The calls in a text of objects, or arrays of them, one after another; none where it holds
    anything else."""
    rest = text.strip(_SEPARATORS)
    calls: list[ToolCall] = []
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = read_object(item, names, key)
            if call is None:
                return []
            calls.append(call)
        rest = rest[end:].lstrip(_SEPARATORS)
    return calls


def read_forced_object(text: str, key: str) -> ToolCall | None:
    """The call in a text that a grammar has made an object, or an array of one, as far as it came;
    None where not even its name did."""
    rest = text.strip()
    begun = _BEGUN.search(rest)
    try:
        value = json.loads(rest)
    except (ValueError, RecursionError):
        return None if begun is None else ToolCall(json.loads(begun[1]), rest[begun.end() :])
    call = value[0] if isinstance(value, list) else value
    try:
        return ToolCall(call["name"], json_text(call[key]))
    except ValueError:
        if begun is None:
            raise
        # A number that only overflows here stays as it was written.
        _, end = json.JSONDecoder().raw_decode(rest, begun.end())
        return ToolCall(call["name"], rest[begun.end() : end])
