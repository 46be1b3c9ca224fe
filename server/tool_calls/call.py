"""A tool call, as every form reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """arguments: as JSON text."""

    name: str
    arguments: str


def json_text(value: object) -> str:
    """A model can write half of a surrogate pair, which stays an escape: no UTF-8 holds it.

    Raises:
        ValueError: it holds a number that JSON has not, such as NaN, which Python reads.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
