"""The messages of a chat, as a request has them and as templates want them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..refusals import missing, show, unsupported, wrong
from .fields import NEEDED, Fields, Object, Parameter, object_schema
from .json_body import check_depth
from .kinds import Anything, Array, Choice, Narrowed, Schema, Text, ref
from .parameters import MESSAGES

ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST = 128  # calls of a message
_LONGEST = 256  # characters of a name

ROLE: Parameter[str] = Parameter("role", Choice(ROLES), NEEDED)
CONTENT: Parameter[Any] = Parameter("content", Anything(ref("Content")), NEEDED)
NAME = Parameter("name", Text(_LONGEST), None)
REASONING_CONTENT = Parameter("reasoning_content", Text(), None, "What the model has thought.")
REFUSAL = Parameter("refusal", Narrowed(Text(), {"type": "null"}), None)
ANNOTATIONS = Parameter("annotations", Narrowed(Array(_MOST), {"maxItems": 0}), None)
TOOL_CALL_ID: Parameter[str] = Parameter("tool_call_id", Text(_LONGEST), NEEDED)
REFUSED = {"audio": "send text", "function_call": "use tool_calls"}

FUNCTION_NAME: Parameter[str] = Parameter("name", Text(_LONGEST), NEEDED)
ARGUMENTS: Parameter[str] = Parameter("arguments", Text(), NEEDED, "JSON.")
CALL_ID: Parameter[str] = Parameter("id", Text(_LONGEST), NEEDED)
CALL_TYPE: Parameter[str] = Parameter("type", Choice(("function",)), NEEDED)
CALL_INDEX: Parameter[Any] = Parameter("index", Anything({"type": "integer"}), None, "Not used.")
CALL_FUNCTION: Parameter[Fields] = Parameter("function", Object((FUNCTION_NAME, ARGUMENTS)), NEEDED)
CALL = (CALL_ID, CALL_TYPE, CALL_INDEX, CALL_FUNCTION)
TOOL_CALLS = Parameter("tool_calls", Array(_MOST, object_schema(CALL)), None)

PART_TYPE: Parameter[Any] = Parameter("type", Anything({"const": "text"}), NEEDED)
PART_TEXT: Parameter[Any] = Parameter("text", Anything({"type": "string"}), NEEDED)


def schemas() -> dict[str, Schema]:
    """Of the description's components."""

    def of_role(*names: str) -> Parameter[str]:
        return replace(ROLE, kind=Choice(names))

    content = Anything({"anyOf": [ref("Content")]})
    said = (
        of_role("assistant"), replace(CONTENT, kind=content, default=None), NAME, REASONING_CONTENT,
        REFUSAL, ANNOTATIONS, TOOL_CALLS,
    )  # fmt: skip
    assistant = object_schema(said)
    assistant["properties"] |= {name: {"type": "null"} for name in REFUSED}
    assistant["anyOf"] = [
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
        {
            "required": ["tool_calls"],
            "properties": {"tool_calls": {"type": "array", "minItems": 1}},
        },
    ]
    return {
        "Part": object_schema((PART_TYPE, PART_TEXT)),
        "Content": {"anyOf": [{"type": "string"}, {"type": "array", "items": ref("Part")}]},
        "Message": {
            "oneOf": [
                object_schema((of_role("system", "developer", "user"), CONTENT, NAME)),
                assistant,
                object_schema((of_role("tool"), CONTENT, NAME, TOOL_CALL_ID)),
            ]
        },
    }


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """Checks the messages.

    Texts in parts are joined, "developer" is "system", and a call's arguments are an object where
    they are one, as templates expect it.
    """
    messages = fields.read(MESSAGES)
    if not messages:
        raise wrong("messages", "is empty; give at least one message")
    return [
        read_message(Fields(message, f"messages[{index}]"))
        for index, message in enumerate(messages)
    ]


def read_message(fields: Fields) -> dict[str, Any]:
    fields.refuse(REFUSED)
    role = fields.read(ROLE)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = fields.find(CONTENT)
    if content is not None:
        message["content"] = read_content(content, fields.where("content"), role)
    if (name := fields.read(NAME)) is not None:
        message["name"] = name
    if role == "assistant":
        if calls := fields.read(TOOL_CALLS):
            where = fields.where("tool_calls")
            message["tool_calls"] = [
                read_call(Fields(call, f"{where}[{index}]")) for index, call in enumerate(calls)
            ]
        if fields.read(REFUSAL) is not None:
            raise unsupported(fields.where("refusal"), "send it as content")
        if fields.read(ANNOTATIONS):
            raise unsupported(fields.where("annotations"))
        if (thought := fields.read(REASONING_CONTENT)) is not None:
            message["reasoning_content"] = thought
    if role == "tool":
        message["tool_call_id"] = fields.read(TOOL_CALL_ID)
    fields.finish()
    if "content" not in message:
        if not message.get("tool_calls"):
            raise missing(fields.where("content"))
        message["content"] = ""  # templates write None as a word
    return message


def read_content(content: object, where: str, role: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, f"must be a string or an array of parts, not {show(content)}")
    texts = []
    for index, item in enumerate(content):
        part = Fields(item, f"{where}[{index}]")
        kind = part.read(PART_TYPE)
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            raise wrong(
                f"{where}[{index}]",
                f"is of type {show(kind)}; this model reads text alone",
                "unsupported_content",
            )
        text = part.read(replace(PART_TEXT, name=kind))
        if not isinstance(text, str):
            raise wrong(f"{where}[{index}].{kind}", f"must be a string, not {show(text)}")
        part.finish()
        texts.append(text)
    return "".join(texts)


def read_call(fields: Fields) -> dict[str, Any]:
    """A call that the model has made earlier in the conversation."""
    identity, kind = fields.find(CALL_ID), fields.find(CALL_TYPE)
    fields.read(CALL_INDEX)
    function = fields.find(CALL_FUNCTION)
    if identity is None or kind is None or function is None:
        raise wrong(fields.where(""), "must have an id, a type and a function")
    name, arguments = function.find(FUNCTION_NAME), function.find(ARGUMENTS)
    if name is None or arguments is None:
        raise wrong(function.where(""), "must have a name and arguments")
    function.finish()
    fields.finish()
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        parsed = arguments
    if not isinstance(parsed, dict):
        parsed = arguments
    check_depth(parsed, function.where("arguments"))
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": parsed},
    }
