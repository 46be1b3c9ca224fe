"""The messages of a chat, as a request has them and as templates want them."""

from __future__ import annotations

import json
from typing import Any

from ..refusals import show, unsupported, wrong
from .fields import Fields, check_depth

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 10_000
MOST_CALLS = 128


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """Checks the messages.

    Texts in parts are joined, "developer" is "system", and a call's arguments are an object where
    they are one, as templates expect it.
    """
    if "messages" not in fields:
        fields.need("messages")
    messages = fields.sequence("messages", MOST_MESSAGES)
    if not messages:
        raise wrong("messages", "is empty; give at least one message")
    return [
        read_message(Fields(message, f"messages[{index}]"))
        for index, message in enumerate(messages)
    ]


def read_message(fields: Fields) -> dict[str, Any]:
    fields.refuse({"audio": "send text", "function_call": "use tool_calls"})
    role = fields.choice("role", ROLES)
    if role is None:
        raise wrong(fields.where("role"), "is missing", "missing_required_parameter")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = fields.take("content")
    if content is not None:
        message["content"] = read_content(content, fields.where("content"), role)
    if (name := fields.text("name", 256)) is not None:
        message["name"] = name
    if role == "assistant":
        if calls := fields.sequence("tool_calls", MOST_CALLS):
            where = fields.where("tool_calls")
            message["tool_calls"] = [
                read_call(Fields(call, f"{where}[{index}]")) for index, call in enumerate(calls)
            ]
        if fields.text("refusal") is not None:
            raise unsupported(fields.where("refusal"), "send it as content")
        if fields.sequence("annotations", MOST_CALLS):
            raise unsupported(fields.where("annotations"))
        if (thought := fields.text("reasoning_content")) is not None:
            message["reasoning_content"] = thought
    if role == "tool":
        call = fields.text("tool_call_id", 256)
        if call is None:
            raise wrong(fields.where("tool_call_id"), "is missing", "missing_required_parameter")
        message["tool_call_id"] = call
    fields.finish()
    if "content" not in message:
        if not message.get("tool_calls"):
            raise wrong(fields.where("content"), "is missing", "missing_required_parameter")
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
        kind = part.need("type")
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            raise wrong(
                f"{where}[{index}]",
                f"is of type {show(kind)}; this model reads text alone",
                "unsupported_content",
            )
        text = part.need(kind)
        if not isinstance(text, str):
            raise wrong(f"{where}[{index}].{kind}", f"must be a string, not {show(text)}")
        part.finish()
        texts.append(text)
    return "".join(texts)


def read_call(fields: Fields) -> dict[str, Any]:
    """A call that the model has made earlier in the conversation."""
    identity, kind = fields.text("id", 256), fields.choice("type", ("function",))
    fields.take("index")
    function = fields.inner("function")
    if identity is None or kind is None or function is None:
        raise wrong(fields.where(""), "must have an id, a type and a function")
    name, arguments = function.text("name", 256), function.text("arguments")
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
