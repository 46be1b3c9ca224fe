"""Rotary tables of the positions of a batch."""

from __future__ import annotations

import numpy as np

from ..model.rope import RopeSpec, frequencies
from .native.portable_math import rotary_table

BY_LENGTH = ("dynamic", "longrope")  # whose frequencies depend on the length of the sequence


class RopeTable:
    """cos and sin, float32 `[batch, dim / 2]`, of the positions of a batch."""

    def __init__(self, rope: RopeSpec, batch: int):
        self._rope = rope
        self._length = -1
        self._set_frequencies(0)
        self.cos = np.empty((batch, rope.dim // 2), np.float32)
        self.sin = np.empty_like(self.cos)

    def fill(self, start: int, tokens: int, length: int, at: int = 0) -> None:
        """Fills rows from `at` on for positions from `start` on. length: tokens of the sequence at
        the end of the call, later batches included."""
        if self._rope.kind in BY_LENGTH and length != self._length:
            self._set_frequencies(length)
        rows = slice(at, at + tokens)
        rotary_table(self._frequencies, start, self._scale, self.cos[rows], self.sin[rows])

    def _set_frequencies(self, length: int) -> None:
        values, scale = frequencies(self._rope, length)
        self._frequencies, self._scale = np.array(values, np.float32), scale
        self._length = length
