"""Calls in an array after `[TOOL_CALLS]`."""

from typing import Any

import pytest

from pocketmoe.server.tool_calls import mistral_array
from pocketmoe.server.tool_calls.call import ToolCall
from pocketmoe.server.tool_calls.forms import CallStyle
from pocketmoe.server.tool_calls.reader import CallReader, forced_call
from pocketmoe.tests.support.tool_calls import SIZES, F, G, divide

STYLE = CallStyle(mistral_array, "arguments")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', [F]),
        ('ok[TOOL_CALLS][{"name": "g", "arguments": {}}]', ["ok", G]),
        ("x [TOOL_CALLS] nothing", ["x [TOOL_CALLS] nothing"]),
    ],
)
def test_calls_in_text(text: str, parts: list[Any], size: int) -> None:
    assert divide(STYLE, text, size) == parts


@pytest.mark.parametrize(
    ("inner", "call"),
    [
        ('{"name": ["f"], "arguments": {}}', None),
        ('{"name": {"f": 1}, "arguments": {}}', None),
        ('{"name": "f", "arguments": {"a": NaN}}', None),
        ('{"name": "f", "arguments": {"a": 1e999}}', None),
        ('{"name": "f", "arguments": {"a": "\\ud83d"}}', ToolCall("f", '{"a": "\\ud83d"}')),
        ('{"name": "f", "arguments": "\\ud83d"}', ToolCall("f", "?")),
    ],
)
def test_calls_that_python_reads_and_json_has_not(inner: str, call: ToolCall | None) -> None:
    text = f"[TOOL_CALLS][{inner}]"
    reader = CallReader(STYLE, {"f": {}})
    assert [*reader.push(text), *reader.finish()] == [text if call is None else call]


def test_a_mark_that_is_a_special_token() -> None:
    reader = CallReader(STYLE, ("f",), mark_token=7)
    assert reader.push("Well. ", (1, 2)) == ["Well."]
    assert reader.push('[{"name": "f", ', (7, 3)) == []
    assert reader.push('"arguments": {"a": 1}}]', (4,)) == []
    assert reader.finish() == [F]


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('[{"name": "f", "arguments": {"a": 1}}]', F),
        ('[{"name": "f", "arguments": {"a": -1e999} } ]', ToolCall("f", '{"a": -1e999}')),
    ],
)
def test_forced_calls(text: str, call: ToolCall) -> None:
    assert forced_call(STYLE, ("f",), text) == call


def test_no_grammar_of_answers() -> None:
    assert mistral_array.answer_grammar({"f": {}}, "arguments") is None
