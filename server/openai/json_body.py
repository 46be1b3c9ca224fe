"""The JSON object that a request's body holds, read with care: others wrote it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..refusals import RequestError, show, wrong

DEEPEST = 100  # levels of a schema, of a tool, or of a call's arguments
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(body: bytes, most: int = 100_000) -> dict[str, Any]:
    """A request's body. most: values that it may have, as each takes memory.

    Raises:
        RequestError: it is not a JSON object in UTF-8, or holds what JSON cannot (NaN, a number
            that is no finite float, half a character), or too much.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > most:
        raise RequestError(f"the body has more than {most} values", code="body_too_large")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}"
        ) from error
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            "the body holds half of a surrogate pair (\\ud800 to \\udfff)"
        ) from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except _NoNumber as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    except ValueError as error:
        raise RequestError("the body has a number of thousands of digits") from error
    if not isinstance(data, dict):
        raise RequestError(f"the body must be a JSON object, not {show(data)}")
    return data


class _NoNumber(ValueError):
    pass


def _refuse_constant(name: str) -> None:
    raise _NoNumber(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _NoNumber(f"{_cut(digits)} is too large a number")
    return number


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"


def check_depth(value: object, name: str) -> None:
    """Raises RequestError where `value` is nested more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return
        level = inner
    raise wrong(name, f"is nested more than {DEEPEST} levels")
