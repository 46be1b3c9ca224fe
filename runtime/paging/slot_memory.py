"""The memory of the pager's slots."""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np

from .readers import Slot


class SlotMemory(Protocol):
    def allocate(self, nbytes: int) -> Slot:
        """nbytes: a multiple of 4 KiB, to which the slot is aligned too."""
        ...

    def free(self, slot: Slot) -> None:
        """Nothing reads or writes it any more."""
        ...


class PrivateMemory:
    """An anonymous mapping for each slot: not shared with a fork, and counted as this process's
    own; given back once the slot is forgotten."""

    def allocate(self, nbytes: int) -> Slot:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return Slot(np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8))

    def free(self, slot: Slot) -> None:
        pass
