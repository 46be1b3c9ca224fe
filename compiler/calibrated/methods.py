"""Methods that quantize one expert on the inputs that it has seen.

An expert of a few tokens knows too little of its inputs: its second moments are drawn toward those
of its layer, as many tokens' worth of them as it has input features. For gate and up the layer's
inputs are at hand; for down they are what this expert makes of a sample of the layer's tokens.
So there is no number of tokens below which rounding would be better: docs/design.md has the
figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...bundle.pages import PageFormat
from ...model.module import GatedFFN, activate
from ..quantize import QuantizedMatrix
from .gptq import quantize_gptq, quantize_weighted

Method = Literal["gptq", "awq", "rtn"]
METHODS: tuple[Method, ...] = ("gptq", "awq", "rtn")
SAMPLE = 1024  # of a layer's tokens, to see what an expert makes of others than its own
_DAMPING = {"gate": 0.03, "up": 0.03, "down": 0.1}
_POWERS = (0.0, 0.25, 0.5, 0.75)  # of the activations' size, that AWQ scales by


@dataclass(frozen=True)
class LayerMoments:
    """Of all tokens that come to a layer's experts. inputs: float32 `[hidden, hidden]`, the mean of
    x xᵀ; sample: float32 `[M, hidden]`, some of them."""

    inputs: Tensor
    sample: Tensor

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"inputs": self.inputs.numpy(), "sample": self.sample.numpy()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> LayerMoments:
        return cls(torch.from_numpy(arrays["inputs"]), torch.from_numpy(arrays["sample"]))


def layer_moments(x: np.ndarray) -> LayerMoments:
    """x: float32 `[N, hidden]`."""
    tokens = torch.from_numpy(x)
    total = torch.zeros(x.shape[1], x.shape[1])
    for part in tokens.split(8192):
        total.addmm_(part.T, part)
    chosen = np.random.default_rng(0).permutation(len(x))[:SAMPLE]
    return LayerMoments(total / len(x), tokens[torch.from_numpy(np.sort(chosen))])


@dataclass(frozen=True)
class QuantizedFFN:
    """matrices: gate, up and down. inner: float32 `[T, intermediate]`, what comes to down."""

    matrices: dict[str, QuantizedMatrix]
    inner: Tensor


@torch.no_grad()
def quantize_expert(
    module: GatedFFN,
    x: Tensor,
    inner: Tensor,
    weights: Tensor,
    layer: LayerMoments,
    page_format: PageFormat,
    method: Method,
    *,
    signed: bool,
) -> QuantizedFFN:
    """x: float32 `[T, hidden]`, the expert's tokens; inner: what it makes of them before down;
    weights: `[T]`, their shares. signed: scales may be negative. `module` becomes what the page
    will hold."""
    bits, size = (4 if page_format.precision == "int4" else 8), page_format.block_size
    share = weights.square()
    form = _Form(bits, size, method, signed)
    others = inner_of(module, layer.sample) if method == "gptq" else None
    moments = _drawn(_moments(x, x, share), layer.inputs, len(x))
    if method == "awq" and module.activation.kind == "silu":
        _scale_inner(module, x, weights, layer, bits, size)
    both = torch.cat([module.gate.weight, module.up.weight])
    quantized = _round(both, moments, form, _DAMPING["gate"])
    half = len(module.gate.weight)
    made = {
        "gate": QuantizedMatrix(quantized.values[:half], quantized.scales[:half], bits),
        "up": QuantizedMatrix(quantized.values[half:], quantized.scales[half:], bits),
    }
    for name, matrix in made.items():
        getattr(module, name).weight.copy_(torch.from_numpy(matrix.dequantized()))
    # Down sees what the quantized gate and up make.
    found, found_others = inner_of(module, x), inner_of(module, layer.sample)
    prior = found_others.T @ found_others / len(found_others)
    moments = _drawn(_moments(found, found, share), prior, len(x))
    down = module.down.weight
    if others is not None:
        prior = others.T @ found_others / len(others)
        down = _made_good(down, moments, _drawn(_moments(inner, found, share), prior, len(x)))
    made["down"] = _round(down, moments, form, _DAMPING["down"])
    module.down.weight.copy_(torch.from_numpy(made["down"].dequantized()))
    return QuantizedFFN(made, found)


@dataclass(frozen=True)
class _Form:
    """bits and block size of what is made, and how."""

    bits: int
    size: int
    method: Method
    signed: bool


def inner_of(module: GatedFFN, x: Tensor) -> Tensor:
    """float32 `[T, intermediate]`: what gate and up make of x."""
    return activate(module.activation, module.gate(x), module.up(x))


def _moments(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """Σ share · x yᵀ / Σ share: as the router weights the output, an error counts."""
    total = float(share.sum())
    if not total:
        return torch.zeros(x.shape[1], x.shape[1])
    return (x * share[:, None]).T @ y / total


def _made_good(down: Tensor, moments: Tensor, cross: Tensor) -> Tensor:
    """The weights with which what the quantized gate and up make comes nearest to the output as it
    was, by least squares. cross: the moments of the inner activations as they were and as they are.
    """
    damping = _DAMPING["down"] * float(moments.diagonal().mean()) + 1e-8
    eye = damping * torch.eye(len(moments))
    factor, failed = torch.linalg.cholesky_ex(moments + eye)
    if failed:
        return down
    return torch.cholesky_solve((cross + eye).T @ down.T, factor).T


def _drawn(own: Tensor, prior: Tensor, tokens: int) -> Tensor:
    """The moments of `tokens` tokens, and as many of the prior's as there are features, at the
    same size."""
    features = own.shape[0]
    if not tokens:
        return prior
    size = float(own.diagonal().mean()) / max(float(prior.diagonal().mean()), 1e-30)
    return (tokens * own + features * size * prior) / (tokens + features)


def _round(weight: Tensor, moments: Tensor, form: _Form, damping: float) -> QuantizedMatrix:
    if form.method == "gptq":
        return quantize_gptq(
            weight, moments, form.bits, form.size, damping=damping, signed=form.signed
        )
    return quantize_weighted(weight, moments.diagonal(), form.bits, form.size)


def _scale_inner(
    module: GatedFFN, x: Tensor, weights: Tensor, layer: LayerMoments, bits: int, size: int
) -> None:
    """AWQ (Lin et al., arXiv:2306.00978) on the inner activations: a channel that is large gets
    finer steps in `down`, and its row of `up` is divided by as much, which changes nothing else.

    The power of the channels' size is the one with the least error of the output.
    """
    seen = torch.cat([x, layer.sample])
    share = torch.cat([weights.square(), torch.full((len(layer.sample),), 1e-3)])
    inner = activate(module.activation, module.gate(seen), module.up(seen))
    importance = (inner.square() * share[:, None]).sum(dim=0) / share.sum()
    channel = importance.sqrt().clamp(min=1e-8)
    channel = channel / channel.log().mean().exp()
    least, best = float("inf"), torch.ones_like(channel)
    for power in _POWERS:
        scales = channel.pow(power).clamp(1e-3, 1e3)
        scaled = module.down.weight * scales
        quantized = quantize_weighted(scaled, importance / scales.square(), bits, size)
        error = (torch.from_numpy(quantized.dequantized()) - scaled) / scales
        loss = float(((inner @ error.T).square().sum(dim=1) * share).sum())
        if loss < least:
            least, best = loss, scales
    module.down.weight.mul_(best)
    module.up.weight.div_(best[:, None])
    if module.up.bias is not None:
        module.up.bias.div_(best)
