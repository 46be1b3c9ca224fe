"""Pages and experts in numpy, to compare the native kernels with."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketmoe.bundle.pages import PROJECTIONS, PageFormat
from pocketmoe.model.spec import Activation
from pocketmoe.runtime.native import kernels as native

CLAMPED = Activation("clamped", 1.702, 7.0)
# precision, block, hidden, intermediate
SHAPES = [
    ("int4", 32, 96, 32),
    ("int4", 32, 256, 160),
    ("int4", 64, 192, 64),
    ("int4", 64, 320, 448),
    ("int4", 128, 128, 384),
    ("int8", 32, 96, 32),
    ("int8", 32, 160, 288),
    ("int8", 64, 192, 320),
    ("int8", 128, 384, 128),
    ("fp16", 0, 96, 32),
    ("fp16", 0, 37, 51),
    ("fp32", 0, 64, 160),
    ("fp32", 0, 1, 3),
    ("fp32", 0, 130, 19),
]


def aligned(nbytes: int, to: int = 64) -> np.ndarray:
    raw = np.zeros(nbytes + to, np.uint8)
    start = -raw.ctypes.data % to
    return raw[start : start + nbytes]


def make_page(fmt: PageFormat, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """A page of random weights; and its tensors in float64 (biases: float32's values)."""
    page = aligned(fmt.nbytes)
    places = {place.name: place for place in fmt.tensors()}
    tensors: dict[str, Any] = {}

    def put(name: str, array: np.ndarray) -> None:
        place = places[name]
        page[place.offset : place.offset + place.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )

    for name in PROJECTIONS:
        shape = places[name].shape
        matrix = rng.standard_normal(shape, np.float32) / np.sqrt(shape[1]).astype(np.float32)
        if fmt.quantized:
            bits = 4 if fmt.precision == "int4" else 8
            low = -(1 << (bits - 1))
            values = rng.integers(low, -low, shape, np.int8)  # every value, the lowest included
            scales = (rng.uniform(0.5, 1.5, (shape[0], shape[1] // fmt.block_size))
                      / (-low) / np.sqrt(shape[1])).astype(np.float16)  # fmt: skip
            if bits == 4:
                pairs = np.ascontiguousarray(values).view(np.uint16)
                put(name, ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8))
            else:
                put(name, values)
            put(f"{name}_scales", scales)
            tensors[name] = values
            tensors[f"{name}_scales"] = scales
        else:
            matrix = matrix.astype(np.float16 if fmt.precision == "fp16" else np.float32)
            put(name, matrix)
            tensors[name] = matrix
        if fmt.bias:
            bias = rng.standard_normal(shape[0]).astype(np.float32)
            put(f"{name}_bias", bias)
            tensors[f"{name}_bias"] = bias
    return page, tensors


def quantize_activations(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernels do, in float32: int8 `[T, blocks, block]` and scales `[T, blocks]`."""
    blocks = x.astype(np.float32).reshape(len(x), x.shape[1] // block, block)
    most = np.abs(blocks).max(axis=2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(most < 1e-35, np.float32(0), np.float32(127) / most)
    values = np.rint(blocks * inverse[..., None])
    return values, np.where(most < 1e-35, np.float32(0), most / np.float32(127))


def weights_of(fmt: PageFormat, tensors: dict[str, Any], name: str) -> np.ndarray:
    matrix = tensors[name].astype(np.float64)
    if fmt.quantized:
        matrix *= np.repeat(tensors[f"{name}_scales"].astype(np.float64), fmt.block_size, axis=1)
    return matrix


def linear(
    fmt: PageFormat, tensors: dict[str, Any], name: str, x: np.ndarray, exact: bool
) -> np.ndarray:
    """float64. exact: activations are not rounded."""
    if fmt.quantized and not exact:
        values, scales = quantize_activations(x, fmt.block_size)
        x = (values * scales[..., None].astype(np.float64)).reshape(x.shape)
    y = x.astype(np.float64) @ weights_of(fmt, tensors, name).T
    return y + tensors[f"{name}_bias"] if fmt.bias else y


def activate(activation: Activation, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        if activation.kind == "silu":
            return gate / (1 + np.exp(-gate)) * up
        gate = np.minimum(gate, activation.limit)
        up = np.clip(up, -activation.limit, activation.limit)
        return gate / (1 + np.exp(-activation.alpha * gate)) * (up + 1)


def expert(
    fmt: PageFormat, tensors: dict[str, Any], x: np.ndarray, *, exact: bool = False
) -> np.ndarray:
    """float64 `[T, hidden]`."""
    gate = linear(fmt, tensors, "gate", x, exact)
    up = linear(fmt, tensors, "up", x, exact)
    return linear(fmt, tensors, "down", activate(fmt.activation, gate, up), exact)


def rounding_bound(fmt: PageFormat, tensors: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """How far `expert` can be from the exact one, [T, hidden], to first order, silu only.

    Rounding moves an activation by at most half its block's scale; so a product moves by at most
    half the sum over blocks of that scale times the block's sum of |w|. |d silu(g)/dg| <= 1.1, and
    |silu(g)| <= |g|.
    """

    def moved(values: np.ndarray, name: str) -> np.ndarray:
        _, scales = quantize_activations(values, fmt.block_size)
        half = np.repeat(scales.astype(np.float64) / 2, fmt.block_size, axis=1)
        return half @ np.abs(weights_of(fmt, tensors, name)).T

    gate, up = linear(fmt, tensors, "gate", x, True), linear(fmt, tensors, "up", x, True)
    d_gate, d_up = moved(x, "gate"), moved(x, "up")
    h = activate(fmt.activation, gate, up)
    d_h = 1.1 * d_gate * (np.abs(up) + d_up) + np.abs(gate) * d_up
    _, scales = quantize_activations(h, fmt.block_size)
    half = np.repeat(scales.astype(np.float64) / 2, fmt.block_size, axis=1)
    # A block's scale moves with its largest value.
    blocks = d_h.reshape(len(h), h.shape[1] // fmt.block_size, fmt.block_size).max(axis=2) / 254
    half += np.repeat(blocks, fmt.block_size, axis=1)
    return (d_h + half) @ np.abs(weights_of(fmt, tensors, "down")).T


def assert_close(found: np.ndarray, wanted: np.ndarray, quantized: bool) -> None:
    """A value on the edge between two integers may be rounded either way, which moves all outputs
    of that token by a little: rare, so the median sees nothing of it."""
    if not wanted.size:
        return
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max()
    assert error.max() < (5e-3 if quantized else 3e-6)
    assert np.median(error) < 3e-6


def run_one(
    kernels: native.NativeKernels, fmt: PageFormat, page: np.ndarray, x: np.ndarray
) -> np.ndarray:
    out = np.zeros_like(x)
    n = len(x)
    starts, tokens, weights = np.array([0, n]), np.arange(n), np.ones(n, np.float32)
    kernels.run_experts(native.ExpertFormat(fmt), [page], starts, tokens, weights, x, out)
    return out
