"""`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, which ends the answer: Mistral until 2024."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .call import ToolCall
from .json_calls import call_rules, read_forced_object, read_objects

START = "[TOOL_CALLS]"
END = ""


def detect(text: str, name: str) -> bool:
    return START in text


def beginning(names: Sequence[str]) -> str | None:
    return f"{START} "


def call_grammar(schemas: Mapping[str, Any], key: str) -> str:
    return f'start: "[" call "]"\n{call_rules(schemas, key)}'


def answer_grammar(schemas: Mapping[str, Any], key: str) -> str | None:
    return None  # the mark is a special token, which grammars of text do not know


def read_calls(text: str, names: Collection[str], key: str) -> list[ToolCall]:
    return read_objects(text, names, key)


def read_forced(text: str, names: Sequence[str], key: str) -> ToolCall | None:
    return read_forced_object(text, key)
