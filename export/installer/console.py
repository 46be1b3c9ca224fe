"""Output of the installer: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import sys
import time

_SECONDS_BETWEEN_LINES = 5.0


def say(line: str) -> None:
    print(line, flush=True)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    note(f"error: {' '.join(message.split())}")


class Advance:
    """Tells how far a copy is, now and then."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._told = time.monotonic()

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._told = now
            note(f"  {self._done / self._total:.0%} of {self._total / 1e6:.0f} MB")
