"""Confidence intervals of figures over a text: a bootstrap over windows.

Tokens of one window resemble each other, so that whole windows are drawn again, with replacement:
as many as there are, RESAMPLES times. The interval is where the middle 95 % of the figures lie.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]


class BlockBootstrap:
    """The same draws for every figure, by `seed`. None is sure of one window: no interval."""

    def __init__(self, blocks: int, seed: int = 0):
        self._blocks = blocks
        share = np.full(blocks, 1 / blocks)
        # How often each draw has each block: int64 `[RESAMPLES, blocks]`.
        self._counts = np.random.default_rng(seed).multinomial(blocks, share, RESAMPLES)

    def mean(self, sums: np.ndarray, sizes: np.ndarray) -> Interval | None:
        """Of a mean over all; sums and sizes: of each block, `[blocks]`."""
        if self._blocks < 2:
            return None
        return _middle((self._counts @ sums) / (self._counts @ sizes))

    def quantile(self, values: np.ndarray, blocks: np.ndarray, share: float) -> Interval | None:
        """Of a quantile of values, each of the block in `blocks`; as np.quantile has it."""
        if self._blocks < 2:
            return None
        order = np.argsort(values, kind="stable")
        values, blocks = values[order], blocks[order]
        found = np.empty(RESAMPLES)
        for index, counts in enumerate(self._counts):
            ends = np.cumsum(counts[blocks])  # a value fills the places below its end
            place = (ends[-1] - 1) * share
            low, high = np.searchsorted(ends, (np.floor(place), np.ceil(place)), side="right")
            found[index] = values[low] + (values[high] - values[low]) * (place % 1)
        return _middle(found)


def _middle(figures: np.ndarray) -> Interval:
    low, high = np.quantile(figures, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
