"""`[TOOL_CALLS]name[ARGS]{…}` for each call, which end the answer: Mistral since 2025."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .call import ToolCall, json_text
from .json_calls import json_rule

START = "[TOOL_CALLS]"
END = ""
_ARGUMENTS = "[ARGS]"
_HEAD = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([A-Za-z0-9_.-]{1,64})\s*(?:\[ARGS\])?\s*(?=\{)")


def detect(text: str, name: str) -> bool:
    return bool(re.search(r"\[TOOL_CALLS\]\s*" + name, text)) or _ARGUMENTS in text


def beginning(names: Sequence[str]) -> str | None:
    return f"{START}{names[0]}{_ARGUMENTS}" if len(names) == 1 else None


def call_grammar(schemas: Mapping[str, Any], key: str) -> str:
    (only,) = schemas.values()
    return f"start: {json_rule(only)}"


def answer_grammar(schemas: Mapping[str, Any], key: str) -> str | None:
    return None  # the marks are special tokens, which grammars of text do not know


def read_calls(text: str, names: Collection[str], key: str) -> list[ToolCall]:
    calls: list[ToolCall] = []
    while text.strip():
        head = _HEAD.match(text)
        if head is None or head[1] not in names:
            return []
        try:
            value, end = json.JSONDecoder().raw_decode(text, head.end())
            calls.append(ToolCall(head[1], json_text(value)))
        except (ValueError, RecursionError):
            return []
        text = text[end:]
    return calls


def read_forced(text: str, names: Sequence[str], key: str) -> ToolCall | None:
    return ToolCall(names[0], text.strip())
