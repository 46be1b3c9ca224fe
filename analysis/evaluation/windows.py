"""A text cut into windows: pieces that are evaluated one by one, each from an empty context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError


@dataclass(frozen=True)
class Windows:
    """ids: int64 `[windows, length]`, with zeros behind the end of a shorter one; lengths: int64
    `[windows]`, 2 or more each."""

    ids: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        return int(self.ids.shape[1])

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def is_token(self) -> np.ndarray:
        """bool `[windows, length]`: False behind the end of a window."""
        return np.arange(self.length) < self.lengths[:, None]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[index, : self.lengths[index]]


def cut_windows(
    token_ids: Sequence[int], length: int, tokens: int | None = None, seed: int = 0
) -> Windows:
    """All of a text in windows of `length` tokens, the last of what is left if that is two tokens
    or more. With `tokens`, about so many: whole windows, one from each of as many equal stretches
    of the text, chosen by `seed`.

    Raises:
        InputError: fewer than two tokens, or windows that would hold fewer.
    """
    ids = np.asarray(token_ids, np.int64)
    if len(ids) < 2:
        raise InputError(f"evaluation needs at least 2 tokens, and the text has {len(ids)}")
    if tokens is not None:
        length = min(length, tokens)
    if length < 2:
        raise InputError(f"evaluation window must be 2 tokens or more, not {length}")
    length = min(length, len(ids))
    starts = np.arange(0, len(ids) - 1, length)
    if tokens is not None and tokens < len(ids):
        # Only what fills its window, so that those drawn weigh the same.
        full = len(ids) // length
        count = min(full, tokens // length)
        edges = np.arange(count + 1) * full // count
        starts = starts[np.random.default_rng(seed).integers(edges[:-1], edges[1:])]
    cut = np.zeros((len(starts), length), np.int64)
    lengths = np.minimum(length, len(ids) - starts)
    for row, start, size in zip(cut, starts, lengths, strict=True):
        row[:size] = ids[start : start + size]
    return Windows(cut, lengths)
