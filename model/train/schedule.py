"""The schedule of training: steps, learning rates, and the tokens that each step reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """steps: optimizer steps of tokens_per_step tokens each.

    The last long_share of them use sequences of long_length instead of length. The learning rate
    rises over warmup steps and falls linearly to 0 over the last cooldown share.
    """

    steps: int
    tokens_per_step: int = 4096
    length: int = 512
    long_length: int = 2048
    long_share: float = 0.08
    learning_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.5
    weight_decay: float = 0.05
    seed: int = 0

    def sequence_length(self, step: int) -> int:
        return self.long_length if step >= self.steps * (1 - self.long_share) else self.length

    def rate(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)

    def batch(self, tokens: np.ndarray, step: int) -> Tensor:
        """`[sequences, length + 1]` int64: each epoch reads every window once, in a fresh order."""
        length = self.sequence_length(step)
        count = self.tokens_per_step // length
        windows = (len(tokens) - 1) // length - 1
        rows = []
        for index in range(step * count, (step + 1) * count):
            epoch, place = divmod(index, windows)
            order = np.random.default_rng((self.seed, epoch, length))
            shift = int(order.integers(length))
            start = int(order.permutation(windows)[place]) * length + shift
            rows.append(tokens[start : start + length + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))
