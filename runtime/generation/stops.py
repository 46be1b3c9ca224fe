"""Strings that end a text, found as it is made."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InputError


def check_stops(stop: object) -> tuple[str, ...]:
    """The stop strings of one string, or of a sequence of them; None is none.

    Raises:
        InputError: they are something else, or one is empty.
    """
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) for text in strings):
        raise InputError("stop must be a string or a sequence of strings")
    if not all(strings):
        raise InputError("a stop string must not be empty")
    return tuple(strings)


class StopStrings:
    """Holds back what may be the beginning of a stop string, and nothing else.

    The string that is whole first ends the text; of two that end together, the longer one.
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = [(text, _borders(text)) for text in strings]
        self._matched = [0] * len(strings)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that follows; returns what is certain to be no part of a stop string. Nothing
        follows one."""
        if self.stopped or not self._strings:
            return "" if self.stopped else text
        held, self._held = self._held + text, ""
        for place, char in enumerate(text, len(held) - len(text) + 1):
            whole = 0
            for index, (wanted, borders) in enumerate(self._strings):
                matched = self._matched[index]
                while matched and char != wanted[matched]:
                    matched = borders[matched - 1]
                if char == wanted[matched]:
                    matched += 1
                if matched == len(wanted):
                    whole = max(whole, matched)
                self._matched[index] = matched
            if whole:
                self.stopped = True
                return held[: place - whole]
        kept = len(held) - max(self._matched)
        self._held = held[kept:]
        return held[:kept]

    def finish(self) -> str:
        """What is held back, where nothing follows any more."""
        held, self._held = self._held, ""
        return held


def _borders(text: str) -> list[int]:
    """For each beginning of `text`, how long its longest proper beginning is that also ends it
    (Knuth, Morris and Pratt)."""
    borders = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = borders[length - 1]
        if text[place] == text[length]:
            length += 1
        borders[place] = length
    return borders
