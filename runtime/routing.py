"""Routing: which expert works on which tokens of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Routing:
    """Which expert works on which tokens, experts in ascending order.

    experts: E of them; those of expert e are at `starts[e]` up to `starts[e + 1]` of tokens (int64
    rows of x, ascending) and weights (float32).
    """

    experts: list[int]
    starts: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray

    def part(self, first: int, last: int) -> Routing:
        """Experts first up to last."""
        low, high = self.starts[first], self.starts[last]
        return Routing(
            self.experts[first:last],
            self.starts[first : last + 1] - low,
            self.tokens[low:high],
            self.weights[low:high],
        )

    def pick(self, experts: Sequence[int]) -> tuple[Routing, np.ndarray]:
        """Some of the experts, ascending, and the places of their rows in this routing."""
        wanted = set(experts)
        indices = [index for index, expert in enumerate(self.experts) if expert in wanted]
        starts = self.starts
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        sizes = [starts[i + 1] - starts[i] for i in indices]
        picked = Routing(
            [self.experts[i] for i in indices],
            np.concatenate(([0], np.cumsum(sizes))),
            self.tokens[rows],
            self.weights[rows],
        )
        return picked, rows


def route(weights: np.ndarray, experts: np.ndarray) -> Routing:
    """From `[T, k]`: float32 weights and int64 experts; those below 0 stand for no expert."""
    tokens, top_k = experts.shape
    chosen = experts.ravel()
    order = np.argsort(chosen, kind="stable")
    if chosen[order[0]] < 0:
        order = order[np.count_nonzero(chosen < 0) :]
    ordered, shares = chosen[order], weights.ravel()[order]
    if tokens == 1:
        count = len(order)
        return Routing(ordered.tolist(), np.arange(count + 1), np.zeros(count, np.int64), shares)
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    names = ordered[starts].tolist()
    return Routing(names, np.append(starts, len(order)), order // top_k, shares)
