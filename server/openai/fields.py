"""Reading JSON that others wrote: every field is taken by name and type, and what is left over is
refused by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..refusals import RequestError, show, unsupported, wrong

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


class Fields:
    """A JSON object, whose fields are taken one by one. A field that is null counts as left out.

    path: where it is in the body, in errors.
    """

    def __init__(self, data: object, path: str = ""):
        if not isinstance(data, dict):
            raise wrong(path or "the body", f"must be an object, not {show(data)}")
        self._left: dict[str, Any] = {
            name: value for name, value in data.items() if value is not None
        }
        self._path = path

    def where(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path and name else self._path or name

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Any:
        """The value as it is; None where there is none."""
        return self._left.pop(name, None)

    def entries(self) -> dict[str, Any]:
        """All that is left."""
        left, self._left = self._left, {}
        return left

    def need(self, name: str) -> Any:
        if name not in self._left:
            raise wrong(self.where(name), "is missing", "missing_required_parameter")
        return self._left.pop(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise wrong(self.where(name), f"must be true or false, not {show(value)}")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(
                self.where(name), f"must be a whole number from {low} to {high}, not {show(value)}"
            )
        return value

    def number(
        self, name: str, low: float, high: float, default: float, *, above: bool = False
    ) -> float:
        """above: more than `low`."""
        value = self._left.pop(name, default)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not low <= value <= high or (above and value == low):
            least = f"more than {low:g} and at most" if above else f"from {low:g} to"
            raise wrong(self.where(name), f"must be a number {least} {high:g}, not {show(value)}")
        return float(value)

    def text(self, name: str, most: int | None = None) -> str | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong(self.where(name), f"must be a string, not {show(value)}")
        if most is not None and len(value) > most:
            raise wrong(self.where(name), f"must have at most {most} characters, not {len(value)}")
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        value = self._left.pop(name, None)
        if value is not None and (not isinstance(value, str) or value not in allowed):
            names = ", ".join(allowed)
            raise wrong(self.where(name), f"must be one of {names}, not {show(value)}")
        return value

    def inner(self, name: str) -> Fields | None:
        value = self._left.pop(name, None)
        return None if value is None else Fields(value, self.where(name))

    def sequence(self, name: str, most: int) -> list[Any]:
        value = self._left.pop(name, [])
        if not isinstance(value, list):
            raise wrong(self.where(name), f"must be an array, not {show(value)}")
        if len(value) > most:
            raise wrong(self.where(name), f"must have at most {most} entries, not {len(value)}")
        return value

    def refuse(self, names: Mapping[str, str]) -> None:
        """Refuses these fields; `names` says what to do instead."""
        for name, remedy in names.items():
            if name in self._left:
                raise unsupported(self.where(name), remedy)

    def finish(self) -> None:
        """Raises RequestError for a field that nobody took."""
        for name in self._left:
            raise RequestError(
                f"unknown parameter: {show(self.where(name))}",
                param=self.where(name)[:200],
                code="unknown_parameter",
            )
