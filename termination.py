"""What a termination signal does to work that has something to clear away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwinding_when_terminated() -> Iterator[None]:
    """A termination signal unwinds as Ctrl-C does, so that it leaves nothing behind either."""
    handled = signal.getsignal(signal.SIGTERM)
    try:
        if handled == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread, which alone receives signals
        handled = None
    try:
        yield
    finally:
        if handled is not None:
            signal.signal(signal.SIGTERM, handled)
