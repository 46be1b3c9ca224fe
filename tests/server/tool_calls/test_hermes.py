"""Calls between `<tool_call>` and `</tool_call>`."""

from pathlib import Path
from typing import Any

import pytest

from pocketmoe.server.tool_calls import hermes
from pocketmoe.server.tool_calls.call import ToolCall
from pocketmoe.server.tool_calls.forms import CallStyle
from pocketmoe.server.tool_calls.reader import CallReader, forced_call
from pocketmoe.tests.support.tool_calls import SIZES, F, G, acceptance, divide

STYLE = CallStyle(hermes, "arguments")
CALL_F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALL_G = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("just text <tool", ["just text <tool"]),
        ("a < b\n\n", ["a < b\n\n"]),
        (CALL_F, [F]),
        (f"I will.\n{CALL_F}\n{CALL_G}\n", ["I will.", F, G]),
        (CALL_F[:-3], [CALL_F[:-3]]),
        (CALL_F.replace('"f"', '"h"'), [CALL_F.replace('"f"', '"h"')]),
        ("y\n<tool_call>{</tool_call>x", ["y\n<tool_call>{</tool_call>x"]),
        (CALL_F.replace('{"a": 1}', "[1]"), [CALL_F.replace('{"a": 1}', "[1]")]),
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
    text = f"<tool_call>{inner}</tool_call>"
    reader = CallReader(STYLE, {"f": {}})
    assert [*reader.push(text), *reader.finish()] == [text if call is None else call]
    if call is not None and call.arguments.startswith("{"):
        assert forced_call(STYLE, ("f",), inner) == call


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', F),
        ('{"name": "f", "arguments": {"a"', ToolCall("f", '{"a"')),
        ('{"name": "', None),
        ('{"name": "f", "arguments": {"a": 1e999}}', ToolCall("f", '{"a": 1e999}')),
    ],
)
def test_forced_calls(text: str, call: ToolCall | None) -> None:
    assert forced_call(STYLE, ("f",), text) == call


def test_answers_with_calls(tiny_bundle: Path) -> None:
    accepts = acceptance(STYLE, tiny_bundle)
    call = '{"name": "f", "arguments": {"a": 1}}'
    for text in ("any text { at all", "", " {", f"ok <tool_call>\n{call}\n</tool_call> and more"):
        assert accepts(text), text
    assert not accepts(f"<tool_call>\n{call.replace('1', 'null')}\n</tool_call>")
