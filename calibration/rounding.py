"""Rounding to blocks with one scale each, every column's error weighted by how large its input is.

No more than arithmetic, that both calibrating and compiling need.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SCALE = 1e-5
_WEIGHTS = 1 << 18  # that stay in a core's cache while the clips are tried on them
# Shares of a block's largest magnitude that its scale may cover.
CLIPS = {4: tuple(1.0 - 0.04 * step for step in range(13)), 8: (1.0, 0.97, 0.94)}
# The same where the scale has the sign that puts the largest on the least value, -8: its steps are
# an eighth finer than those that put it on 7.
_SIGNED_CLIPS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78, 0.7)


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest value."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def best_scales(
    weight: Tensor,
    importance: Tensor,
    bits: int,
    block_size: int,
    clips: tuple[float, ...] | None = None,
    *,
    signed: bool = False,
) -> Tensor:
    """fp16 `[out, in / block]`: of a few clips, those of the least weighted squared error.

    weight: float32 `[out, in]`; importance: `[in]`, the mean square of each column's input. signed:
    scales may be negative, which int4 gains by.
    """
    weights = importance.to(torch.float32).unflatten(0, (-1, block_size))
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, torch.ones(()))
    blocks = weight.unflatten(1, (-1, block_size))
    rows = max(1, _WEIGHTS // weight.shape[1])
    parts = [_best_scales(part, weights, bits, clips, signed=signed) for part in blocks.split(rows)]
    return torch.cat(parts)


def _best_scales(
    blocks: Tensor, weights: Tensor, bits: int, clips: tuple[float, ...] | None, *, signed: bool
) -> Tensor:
    """blocks: `[out, in / block, block]`; weights: `[in / block, block]`."""
    low, high = limits(bits)
    largest = blocks.abs().amax(dim=2)
    least = torch.full_like(largest, float("inf"))
    best = torch.zeros_like(largest, dtype=torch.float16)
    sizes = [largest * (clip / high) for clip in clips or CLIPS[bits]]
    if signed and bits == 4:
        extreme = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True)).squeeze(2)
        sizes += [extreme * (clip / low) for clip in _SIGNED_CLIPS]
    error = torch.empty_like(blocks)
    for size in sizes:
        candidate = as_scales(size)
        steps = candidate.float().unsqueeze(2)
        torch.div(blocks, steps, out=error).round_().clamp_(low, high).mul_(steps).sub_(blocks)
        squared = error.square_().mul_(weights).sum(dim=2)
        better = squared < least
        least, best = torch.where(better, squared, least), torch.where(better, candidate, best)
    return best


def as_scales(sizes: Tensor) -> Tensor:
    """fp16, none so small that it has few bits left."""
    small = sizes.abs() < _SMALLEST_SCALE
    return torch.where(small, _SMALLEST_SCALE, sizes).to(torch.float16)


def rounded(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """float32 `[out, in]`, whole numbers: weight / scales, rounded to nearest."""
    low, high = limits(bits)
    return (weight / spread(scales, weight)).round_().clamp_(low, high)


def spread(scales: Tensor, weight: Tensor) -> Tensor:
    """A scale for each weight, float32 `[out, in]`."""
    return scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
