"""Answers that are JSON and nothing else, without a mark."""

from pathlib import Path
from typing import Any

import pytest

from pocketmoe.server.tool_calls import llama_json
from pocketmoe.server.tool_calls.forms import CallStyle
from pocketmoe.server.tool_calls.reader import forced_call
from pocketmoe.tests.support.tool_calls import SIZES, F, G, acceptance, divide

STYLE = CallStyle(llama_json, "parameters")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', [F]),
        ('\n{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [F, G]),
        ('{"a": 1} is JSON', ['{"a": 1} is JSON']),
        ('no {"name": "f", "parameters": {}}', ['no {"name": "f", "parameters": {}}']),
    ],
)
def test_calls_in_text(text: str, parts: list[Any], size: int) -> None:
    assert divide(STYLE, text, size) == parts


def test_a_forced_call() -> None:
    assert forced_call(STYLE, ("f",), '{"name": "f", "parameters": {"a": 1}}') == F


def test_answers_with_calls(tiny_bundle: Path) -> None:
    accepts = acceptance(STYLE, tiny_bundle)
    call = '{"name": "f", "parameters": {"a": 1}}'
    for text in ("any text { at all", "", call):
        assert accepts(text), text
    for text in (" {", call.replace("1", '"x"')):
        assert not accepts(text), text
