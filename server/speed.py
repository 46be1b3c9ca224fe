"""Tokens per second, in the two ways in which they are told: over all of a time, or while tokens
come."""

from __future__ import annotations

import time
from collections import deque


class Throughput:
    """Tokens per second of the last `window` seconds, those included in which none came."""

    def __init__(self, window: float):
        self._window = window
        self._told: deque[tuple[float, int]] = deque()

    def count(self, tokens: int) -> None:
        now = time.monotonic()
        if self._told and now - self._told[-1][0] < self._window / 20:
            begun, before = self._told[-1]
            self._told[-1] = (begun, before + tokens)
        else:
            self._told.append((now, tokens))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._told and now - self._told[0][0] > self._window:
            self._told.popleft()

    @property
    def value(self) -> float:
        now = time.monotonic()
        self._forget(now)
        return sum(tokens for _, tokens in self._told) / self._window


class DecodeSpeed:
    """Tokens per second, from the times at which there were more of them: what came before the
    first one, as waiting or reading a prompt, does not count. window: seconds that it is of."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._marks: deque[tuple[float, int]] = deque()
        self._tokens, self._seen = 0, 0.0

    def take(self, now: float, tokens: int, *, running: bool) -> float:
        """tokens: that were made so far. running: whether any request generates."""
        marks = self._marks
        if now - self._seen > self._window:  # nobody has watched for a while
            marks.clear()
        self._seen = now
        if tokens != self._tokens:
            marks.append((now, tokens))
            self._tokens = tokens
        while len(marks) > 2 and marks[1][0] < now - self._window:
            marks.popleft()
        rate = 0.0
        if len(marks) > 1:
            (begun, before), (ended, after) = marks[0], marks[-1]
            rate = (after - before) / (ended - begun)
        if not running:
            marks.clear()
        return rate
