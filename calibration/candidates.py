"""The forms in which an expert might be stored, each with its cost: the error of its output.

The errors are those of rounding to nearest with weighted clips, which is quick; methods that round
better make all of them smaller, and leave which expert needs more bits as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.module import GatedFFN, activate
from ..model.spec import ModelSpec
from .rounding import best_scales, rounded, spread

_SCALE_BITS = 16
_TOKENS = 256  # of an expert, at most, that its errors are measured on
_CLIPS = {4: (1.0, 0.92, 0.84, 0.76), 8: (1.0,)}


@dataclass(frozen=True)
class Candidate:
    """A precision and its block, 0 where nothing is quantized."""

    precision: str
    block_size: int

    @property
    def name(self) -> str:
        return f"{self.precision}/{self.block_size}" if self.block_size else self.precision

    @property
    def value_bits(self) -> int:
        return {"int4": 4, "int8": 8, "fp16": 16}[self.precision]

    @property
    def bits(self) -> float:
        """Of each weight, its share of a scale included."""
        return self.value_bits + (_SCALE_BITS / self.block_size if self.block_size else 0)


CANDIDATES = (
    Candidate("int4", 128),
    Candidate("int4", 64),
    Candidate("int4", 32),
    Candidate("int8", 64),
    Candidate("fp16", 0),
)


def candidates_for(spec: ModelSpec) -> tuple[Candidate, ...]:
    """Those whose blocks fit the experts of every layer, fewest bits first."""
    widths = {spec.hidden_size, *(spec.layers[i].intermediate_size for i in spec.paged_layers)}
    return tuple(
        item
        for item in CANDIDATES
        if not item.block_size or not any(width % item.block_size for width in widths)
    )


def candidates_named(names: Iterable[str]) -> tuple[Candidate, ...]:
    """Raises KeyError for one that there is not."""
    known = {item.name: item for item in CANDIDATES}
    return tuple(known[name] for name in names)


@torch.no_grad()
def output_errors(
    module: GatedFFN, x: Tensor, weights: Tensor, candidates: Iterable[Candidate]
) -> np.ndarray:
    """The squared error of an expert's weighted output, over all its tokens, stored as each
    candidate: float64 `[candidates]`.

    x: float32 `[T, hidden]`, its tokens, of which it takes some, evenly spread, where there are
    many; weights: `[T]`, its shares of them.
    """
    count = len(x)
    if not count:
        return np.zeros(len(tuple(candidates)))
    step = -(-count // _TOKENS)
    x, share = x[::step], weights[::step].square()
    inner = activate(module.activation, module.gate(x), module.up(x))
    exact = module.down(inner)
    seen = (x * share[:, None].sqrt()).square().mean(dim=0)
    seen_inner = (inner * share[:, None].sqrt()).square().mean(dim=0)
    errors = []
    for item in candidates:
        gate, up, down = (
            _stored(matrix.weight, importance, item)
            for matrix, importance in (
                (module.gate, seen), (module.up, seen), (module.down, seen_inner)
            )
        )  # fmt: skip
        linear = torch.nn.functional.linear
        found = activate(
            module.activation, linear(x, gate, module.gate.bias), linear(x, up, module.up.bias)
        )
        off = linear(found, down, module.down.bias) - exact
        errors.append(float((off.square().sum(dim=1) * share).sum()))
    return np.array(errors) * (count / len(x))


def _stored(weight: Tensor, importance: Tensor, item: Candidate) -> Tensor:
    """What a page of the candidate would hold, float32."""
    if not item.block_size:
        return weight.half().float()
    bits = item.value_bits
    scales = best_scales(weight, importance, bits, item.block_size, _CLIPS[bits])
    return rounded(weight, scales, bits).mul_(spread(scales, weight))
