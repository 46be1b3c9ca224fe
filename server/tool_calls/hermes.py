"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>` around each call: Hermes, Qwen."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .call import ToolCall
from .json_calls import call_rules, read_forced_object, read_object

START = "<tool_call>"
END = "</tool_call>"


def detect(text: str, name: str) -> bool:
    return bool(re.search(r"<tool_call>\s*\{", text)) or (
        START in text and "<function=" not in text
    )


def beginning(names: Sequence[str]) -> str | None:
    return f"{START}\n"


def call_grammar(schemas: Mapping[str, Any], key: str) -> str:
    return f"start: call\n{call_rules(schemas, key)}"


def answer_grammar(schemas: Mapping[str, Any], key: str) -> str | None:
    return (
        "start: marked* TEXT\n"
        "TEXT: /(.|\\n)*/\n"
        f'mark[lazy]: TEXT "{START}"\n'
        f'marked: mark "\\n" call "\\n{END}"\n' + call_rules(schemas, key)
    )


def read_calls(text: str, names: Collection[str], key: str) -> list[ToolCall]:
    try:
        call = read_object(json.loads(text), names, key)
    except (ValueError, RecursionError):
        return []
    return [] if call is None else [call]


def read_forced(text: str, names: Sequence[str], key: str) -> ToolCall | None:
    return read_forced_object(text, key)
