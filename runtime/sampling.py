"""The next token, from logits."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError


class Sampler:
    """Picks tokens: the most likely one at temperature 0, else at random.

    top_k: only the k most likely (0: all). top_p: of these, only the most likely that together
    reach this probability. The same seed gives the same tokens.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ):
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature must be 0 or more, not {temperature}")
        if top_k < 0:
            raise InputError(f"top-k must be 0 (all tokens) or more, not {top_k}")
        if not 0 < top_p <= 1:
            raise InputError(f"top-p must be more than 0 and at most 1, not {top_p}")
        if seed is not None and seed < 0:
            raise InputError(f"seed must be 0 or more, not {seed}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def sample(self, logits: np.ndarray) -> int:
        """logits `[V]` → a token id."""
        if self.temperature == 0:
            return int(logits.argmax())
        tokens, probabilities = self.distribution(logits)
        return int(tokens[self._random.choice(len(tokens), p=probabilities)])

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 `[n]` that can be picked, most likely first, and their probabilities
        float64 `[n]`. Of equal ones, the lower id comes first."""
        tokens = np.arange(len(logits))
        if 0 < self.top_k < len(logits):
            tokens = _largest(logits, self.top_k)
        scaled = logits[tokens].astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        tokens, scaled = tokens[order], scaled[order]
        probabilities = np.exp(scaled - scaled[0])
        probabilities /= probabilities.sum()
        if self.top_p < 1:
            below = np.cumsum(probabilities) - probabilities
            kept = max(1, int(np.count_nonzero(below < self.top_p)))
            tokens, probabilities = tokens[:kept], probabilities[:kept]
            probabilities = probabilities / probabilities.sum()
        return tokens, probabilities


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, ascending; of equal ones, the lower index."""
    bound = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))
