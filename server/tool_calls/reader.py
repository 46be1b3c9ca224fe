"""Calls in the text of an answer. What is no whole call of an offered tool stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from .forms import ToolForm

_HEAD = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([A-Za-z0-9_.-]{1,64})\s*(?:\[ARGS\])?\s*(?=\{)")
_BEGUN = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"\w+"\s*:\s*')
_END = "</tool_call>"
_SEPARATORS = " \t\r\n;,"


@dataclass(frozen=True)
class ToolCall:
    """arguments: as JSON text."""

    name: str
    arguments: str


Part = str | ToolCall


class CallReader:
    """Divides an answer, as it comes, into text and calls.

    mark_token: the id of the token that begins calls, where it is a special one, which no text
    shows. begun: the answer's beginning was given to the model, and the calls have begun.
    """

    def __init__(
        self,
        form: ToolForm,
        names: Collection[str],
        *,
        mark_token: int | None = None,
        begun: bool = False,
    ):
        self._form, self._names, self._mark_token = form, names, mark_token
        self._held = ""  # not told yet
        self._inside = begun
        self._space = ""  # before the call that has begun
        self._plain = False  # no call can follow
        self._any = False  # whether a call was told

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Part]:
        self._held += text
        if self._mark_token is not None and self._mark_token in token_ids:
            self._inside = True
        return list(self._divide(final=False))

    def finish(self) -> list[Part]:
        return list(self._divide(final=True))

    def _divide(self, *, final: bool) -> Iterator[Part]:
        if self._form.kind == "json":
            yield from self._bare(final)
            return
        while self._held:
            if not self._inside:
                before, found, rest = self._held.partition(self._form.mark)
                if not found:
                    yield from self._tell(final)
                    return
                self._held, self._inside = rest, True
                told = before.rstrip()  # the space before a call is no text
                self._space = before[len(told) :]
                yield from self._text(told)
            if self._form.kind != "tagged":  # the rest of the answer is calls
                if final:
                    yield from self._all(self._form.mark + self._held)
                return
            inner, found, rest = self._held.partition(_END)
            if not found and not final:
                return
            call = self._call_of(inner)
            self._held, self._inside = rest, False
            if call is None or not found:
                yield from self._text(self._space + self._form.mark + inner + found)
            else:
                self._any = True
                yield call

    def _tell(self, final: bool) -> Iterator[str]:
        """Text outside of calls, but for what may be the beginning of a mark, and the space before
        it."""
        told, mark = self._held, self._form.mark
        if not final:
            begun = (n for n in range(len(mark) - 1, 0, -1) if told.endswith(mark[:n]))
            told = told[: len(told) - next(begun, 0)].rstrip()
        self._held = self._held[len(told) :]
        if told.strip() or not self._any:  # between calls and after them, space is no text
            yield from self._text(told)

    def _text(self, text: str) -> Iterator[str]:
        if text:
            yield text

    def _bare(self, final: bool) -> Iterator[Part]:
        start = self._held.lstrip()[:1]
        self._inside = self._inside or (not self._plain and start in ("{", "[") and bool(start))
        if self._inside:
            if final:
                yield from self._all(self._held)
        elif start or final or self._plain:
            self._plain = True
            told, self._held = self._held, ""
            yield from self._text(told)

    def _all(self, text: str) -> Iterator[Part]:
        """Calls and nothing else; where it is anything else, text."""
        calls = self._headed(text) if self._form.kind == "headed" else self._listed(text)
        self._held = ""
        if calls:
            yield from calls
        else:
            yield from self._text(self._space + text)

    def _listed(self, text: str) -> list[ToolCall]:
        rest = text.removeprefix(self._form.mark).strip(_SEPARATORS)
        calls: list[ToolCall] = []
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            for item in value if isinstance(value, list) else [value]:
                call = self._call(item)
                if call is None:
                    return []
                calls.append(call)
            rest = rest[end:].lstrip(_SEPARATORS)
        return calls

    def _headed(self, text: str) -> list[ToolCall]:
        calls: list[ToolCall] = []
        while text.strip():
            head = _HEAD.match(text)
            if head is None or head[1] not in self._names:
                return []
            try:
                value, end = json.JSONDecoder().raw_decode(text, head.end())
                calls.append(ToolCall(head[1], _json(value)))
            except (ValueError, RecursionError):
                return []
            text = text[end:]
        return calls

    def _call_of(self, text: str) -> ToolCall | None:
        try:
            return self._call(json.loads(text))
        except (ValueError, RecursionError):
            return None

    def _call(self, value: object) -> ToolCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get(self._form.arguments)
        if arguments is None:
            arguments = value.get("parameters", value.get("arguments", {}))
        if not isinstance(arguments, (dict, str)):
            return None
        if isinstance(arguments, dict):
            try:
                arguments = _json(arguments)
            except ValueError:
                return None
        return ToolCall(name, arguments.encode("utf-8", "replace").decode("utf-8"))


def forced_call(form: ToolForm, names: Sequence[str], text: str) -> ToolCall | None:
    """The call in an answer that a grammar has made one, as far as it came; None where not even
    its name did."""
    rest = text.strip()
    if form.kind == "headed":
        return ToolCall(names[0], rest)
    begun = _BEGUN.search(rest)
    try:
        value = json.loads(rest)
    except (ValueError, RecursionError):
        return None if begun is None else ToolCall(json.loads(begun[1]), rest[begun.end() :])
    call = value[0] if isinstance(value, list) else value
    try:
        return ToolCall(call["name"], _json(call[form.arguments]))
    except ValueError:
        if begun is None:
            raise
        # A number that only overflows here stays as it was written.
        _, end = json.JSONDecoder().raw_decode(rest, begun.end())
        return ToolCall(call["name"], rest[begun.end() : end])


def _json(value: object) -> str:
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
