"""Calls as `[TOOL_CALLS]name[ARGS]{…}`."""

from typing import Any

import pytest

from pocketmoe.server.tool_calls import mistral_args
from pocketmoe.server.tool_calls.forms import CallStyle
from pocketmoe.server.tool_calls.reader import forced_call
from pocketmoe.tests.support.tool_calls import SIZES, F, G, divide

STYLE = CallStyle(mistral_args, "arguments")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', [F, G]),
        ("[TOOL_CALLS]h[ARGS]{}", ["[TOOL_CALLS]h[ARGS]{}"]),
    ],
)
def test_calls_in_text(text: str, parts: list[Any], size: int) -> None:
    assert divide(STYLE, text, size) == parts


def test_a_forced_call() -> None:
    assert forced_call(STYLE, ("f",), '{"a": 1}') == F


def test_a_call_can_only_be_forced_by_name() -> None:
    assert mistral_args.beginning(("f",)) == "[TOOL_CALLS]f[ARGS]"
    assert mistral_args.beginning(("f", "g")) is None
