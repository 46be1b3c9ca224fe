"""The memory that closed models leave in the process: code that was loaded, slack of allocators.

The next model uses it again, so its plan need not reserve it anew.
"""

from __future__ import annotations

import os
import threading

from .host_memory import process_memory

_lock = threading.Lock()
_open = 0  # models
_before = 0  # bytes that the process held before the first of those that are open
_left = 0


def left_behind(resident: int) -> int:
    """Bytes. A model is about to be opened; resident: bytes that the process holds.

    What a program has taken for itself while a model was open counts too; a plan makes use of no
    more than what it reserves.
    """
    global _before
    with _lock:
        if not _open:
            _before = resident
        return _left


def count_open() -> int:
    """How many models are open."""
    return _open


def count_opened() -> None:
    global _open
    with _lock:
        _open += 1


def count_closed() -> None:
    """Its memory was given back."""
    global _open, _left
    with _lock:
        _open -= 1
        if not _open:
            _left = max(0, _left + process_memory("VmRSS") - _before)


def _after_fork() -> None:
    """The child has no model, but all that they have left."""
    global _lock, _open
    _lock, _open = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork)
