"""RopeSpec, and the frequencies of every kind of scaling, the same on every machine. Standard
library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..powers import logarithm, power, powers

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True)
class RopeSpec:
    """What rotary position embeddings depend on.

    dim: rotated elements of a head, the first ones (the last ones with MLA). interleaved: element
    2i is paired with 2i + 1, else i with i + dim / 2.
    original_length: positions that the model was trained with before scaling; for "dynamic" those
    without scaling. attention_factor: cos and sin are multiplied by it.
    beta_fast, beta_slow, truncate: YaRN. low_freq_factor, high_freq_factor: llama3.
    short_factors, long_factors `[dim / 2]`, long_attention_factor: LongRoPE, the long ones for
    sequences of more than original_length.
    """

    theta: float
    dim: int
    interleaved: bool = False
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long_attention_factor: float = 1.0


def frequencies(rope: RopeSpec, length: int) -> tuple[list[float], float]:
    """Radians per position of each of the dim / 2 pairs, and what cos and sin are multiplied by.

    length: tokens of the sequence, its present chunk included; "dynamic" and "longrope" depend on
    it. Plain frequencies are theta^(-2i / dim) (RoFormer, arXiv:2104.09864).
    """
    if rope.kind == "linear":
        slower = [value / rope.factor for value in _plain(rope.theta, rope.dim)]
        return slower, rope.attention_factor
    if rope.kind == "dynamic":
        return list(_plain(_stretched_theta(rope, length), rope.dim)), rope.attention_factor
    if rope.kind == "yarn":
        return _yarn(rope), rope.attention_factor
    if rope.kind == "llama3":
        return _llama3(rope), rope.attention_factor
    if rope.kind == "longrope":
        return _longrope(rope, length)
    return list(_plain(rope.theta, rope.dim)), rope.attention_factor


@lru_cache(maxsize=16)
def _plain(theta: float, dim: int) -> list[float]:
    """theta^(-2i / dim); kept, as sessions ask again for each length that they come to."""
    return [1.0 / value for value in powers(theta, dim // 2)]


def _stretched_theta(rope: RopeSpec, length: int) -> float:
    """NTK-aware scaling of the base, by how far the sequence goes beyond the original length."""
    ratio = max(length, rope.original_length) / rope.original_length
    stretch = power(rope.factor * ratio - (rope.factor - 1), rope.dim, rope.dim - 2)
    return rope.theta * stretch


def _yarn(rope: RopeSpec) -> list[float]:
    """Fast pairs as they are, slow ones divided by the factor, between them a ramp.

    Source: YaRN, arXiv:2309.00071.
    """

    def pair_of(rotations: float) -> float:
        """The pair that turns so many times within the original length."""
        span = rope.original_length / (rotations * 2 * math.pi)
        return rope.dim * logarithm(span) / (2 * logarithm(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    mixed = []
    for pair, plain in enumerate(_plain(rope.theta, rope.dim)):
        slow = min(max((pair - low) / (high - low), 0.0), 1.0)
        mixed.append(plain / rope.factor * slow + plain * (1 - slow))
    return mixed


def _llama3(rope: RopeSpec) -> list[float]:
    """Long waves divided by the factor, short ones as they are (Llama 3.1)."""
    scaled = []
    for plain in _plain(rope.theta, rope.dim):
        turns = rope.original_length * plain / (2 * math.pi)
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = min(max(smooth, 0.0), 1.0)
        scaled.append((1 - share) * plain / rope.factor + share * plain)
    return scaled


def _longrope(rope: RopeSpec, length: int) -> tuple[list[float], float]:
    """A learned factor for each pair, by the length of the sequence (arXiv:2402.13753)."""
    is_long = length > rope.original_length
    factors = rope.long_factors if is_long else rope.short_factors
    scale = rope.long_attention_factor if is_long else rope.attention_factor
    plain = _plain(rope.theta, rope.dim)
    return [value / factor for value, factor in zip(plain, factors, strict=True)], scale
