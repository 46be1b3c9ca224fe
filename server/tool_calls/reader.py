"""The reader of an answer with calls in it. What is no whole call of an offered tool stays text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from .call import ToolCall
from .forms import CallStyle

Part = str | ToolCall


class CallReader:
    """Divides an answer, as it comes, into text and calls.

    mark_token: the id of the token that begins calls, where it is a special one, which no text
    shows.
    """

    def __init__(self, style: CallStyle, names: Collection[str], *, mark_token: int | None = None):
        self._form, self._key = style.form, style.key
        self._names, self._mark_token = names, mark_token
        self._held = ""  # not told yet
        self._inside = False
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
        start, end = self._form.START, self._form.END
        if not start:
            yield from self._unmarked(final)
            return
        while self._held:
            if not self._inside:
                before, found, rest = self._held.partition(start)
                if not found:
                    yield from self._tell(final)
                    return
                self._held, self._inside = rest, True
                told = before.rstrip()  # the space before a call is no text
                self._space = before[len(told) :]
                yield from self._text(told)
            if not end:  # the rest of the answer is calls
                if final:
                    yield from self._all(start)
                return
            inner, found, rest = self._held.partition(end)
            if not found and not final:
                return
            calls = self._calls(inner) if found else []
            self._held, self._inside = rest, False
            if calls:
                self._any = True
                yield from calls
            else:
                yield from self._text(self._space + start + inner + found)

    def _tell(self, final: bool) -> Iterator[str]:
        """Text outside of calls, but for what may be the beginning of a mark, and the space before
        it."""
        told, mark = self._held, self._form.START
        if not final:
            begun = (n for n in range(len(mark) - 1, 0, -1) if told.endswith(mark[:n]))
            told = told[: len(told) - next(begun, 0)].rstrip()
        self._held = self._held[len(told) :]
        if told.strip() or not self._any:  # between calls and after them, space is no text
            yield from self._text(told)

    def _text(self, text: str) -> Iterator[str]:
        if text:
            yield text

    def _unmarked(self, final: bool) -> Iterator[Part]:
        """An answer whose first character says whether it is calls."""
        start = self._held.lstrip()[:1]
        self._inside = self._inside or (not self._plain and start in ("{", "[") and bool(start))
        if self._inside:
            if final:
                yield from self._all("")
        elif start or final or self._plain:
            self._plain = True
            told, self._held = self._held, ""
            yield from self._text(told)

    def _all(self, start: str) -> Iterator[Part]:
        """What is held as calls and nothing else; where it is anything else, as text. start: the
        mark before it."""
        held, self._held = self._held, ""
        if calls := self._calls(held):
            yield from calls
        else:
            yield from self._text(self._space + start + held)

    def _calls(self, text: str) -> list[ToolCall]:
        return self._form.read_calls(text, self._names, self._key)


def forced_call(style: CallStyle, names: Sequence[str], text: str) -> ToolCall | None:
    """The call in an answer that a grammar has made one, as far as it came; None where not even
    its name did."""
    return style.form.read_forced(text, names, style.key)
