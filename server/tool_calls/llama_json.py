"""`{"name": …, "parameters": {…}}` and nothing else, without a mark: Llama 3."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .call import ToolCall
from .json_calls import call_rules, read_forced_object, read_objects

START = ""
END = ""


def detect(text: str, name: str) -> bool:
    call = r'\{\s*"name"\s*:\s*"' + name + r'"\s*,\s*"(parameters|arguments)"'
    return re.search(call, text) is not None


def beginning(names: Sequence[str]) -> str | None:
    return ""


def call_grammar(schemas: Mapping[str, Any], key: str) -> str:
    return f"start: call\n{call_rules(schemas, key)}"


def answer_grammar(schemas: Mapping[str, Any], key: str) -> str | None:
    call = call_rules(schemas, key)
    return f"start: call | TEXT\nTEXT: /([^{{\\[\\s](.|\\n)*)?/\n{call}"


def read_calls(text: str, names: Collection[str], key: str) -> list[ToolCall]:
    return read_objects(text, names, key)


def read_forced(text: str, names: Sequence[str], key: str) -> ToolCall | None:
    return read_forced_object(text, key)
