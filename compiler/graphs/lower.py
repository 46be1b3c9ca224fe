"""A placeholder of a trace becomes operators and weights of a precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...bundle.manifest import Precision
from ..footprint import QUANTIZED_BITS, float_bytes, nodes_bytes, quantized_bytes
from ..precision import precision_of
from ..quantize import ReadTiles, quantize_matrix
from .external_data import ExternalData
from .placeholders import INTO_LATENT


@dataclass
class Lowered:
    """nbytes: what the weights take once loaded."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    nbytes: int = 0


def read_whole(read: ReadTiles, parameter: str) -> np.ndarray:
    """A parameter in one piece, float32."""
    tiles = list(read(parameter))
    return tiles[0] if len(tiles) == 1 else np.concatenate(tiles)


def lower_linear(
    node: onnx.NodeProto,
    weight: str,
    bias: str | None,
    shape: tuple[int, ...],
    precision: Precision,
    read: ReadTiles,
    data: ExternalData,
) -> Lowered:
    """y = x · weightᵀ + bias for `weight` of shape `[out, in]`, which is never whole in memory."""
    x, y = node.input[0], node.output[0]
    rows, columns = shape
    lowered = Lowered()
    chosen = precision_of(weight, precision)
    if bias is not None:
        lowered.initializers.append(data.add(bias, (rows,), np.float32, read(bias)))
        lowered.nbytes += float_bytes((rows,))
    if chosen in QUANTIZED_BITS:
        product = y if bias is None else f"{y}.product"
        _add_quantized(
            lowered, x, weight, product, (rows, columns), QUANTIZED_BITS[chosen],
            precision.block_size, read(weight), data,
        )  # fmt: skip
        if bias is not None:
            lowered.nodes.append(helper.make_node("Add", [product, bias], [y]))
        return lowered
    matrix = _add_float(lowered, weight, (rows, columns), chosen, read(weight), data)
    addend = [] if bias is None else [bias]
    lowered.nodes.append(helper.make_node("Gemm", [x, matrix, *addend], [y], transB=1))
    return lowered


def lower_head_linear(
    node: onnx.NodeProto,
    parameter: str,
    weight: np.ndarray,
    precision: Precision,
    data: ExternalData,
) -> Lowered:
    """y[t, h] = x[t, h] · matrix[h] for x `[T, heads, in]`; weight as in LatentProjection.

    Quantized, a MatMulNBits for each head: its weights stay quantized in memory, and for one token
    it is as fast as one batched MatMul in fp32, or faster.
    """
    x, y = node.input[0], node.output[0]
    name, matrices = head_matrices(node, parameter, weight)
    heads, rows, columns = matrices.shape
    lowered = Lowered()
    chosen = precision_of(parameter, precision)
    if chosen in QUANTIZED_BITS:
        parts = [f"{name}.x{head}" for head in range(heads)]
        products = [f"{name}.y{head}" for head in range(heads)]
        lowered.nodes.append(helper.make_node("Split", [x], parts, axis=1, num_outputs=heads))
        for head, matrix in enumerate(matrices):
            _add_quantized(
                lowered, parts[head], f"{name}.{head}", products[head], (rows, columns),
                QUANTIZED_BITS[chosen], precision.block_size, iter([matrix]), data,
            )  # fmt: skip
        lowered.nodes.append(helper.make_node("Concat", products, [y], axis=1))
        lowered.nbytes += nodes_bytes(heads)
        return lowered
    shape = (heads, columns, rows)
    stored = _add_float(lowered, name, shape, chosen, iter([matrices.transpose(0, 2, 1)]), data)
    lowered.nodes += [
        helper.make_node("Transpose", [x], [f"{name}.x"], perm=[1, 0, 2]),
        helper.make_node("MatMul", [f"{name}.x", stored], [f"{name}.y"]),
        helper.make_node("Transpose", [f"{name}.y"], [y], perm=[1, 0, 2]),
    ]
    return lowered


def head_matrices(
    node: onnx.NodeProto, parameter: str, weight: np.ndarray
) -> tuple[str, np.ndarray]:
    """What a HeadLinear multiplies with, and a name for it: `[heads, out, in]`, of a weight as in
    LatentProjection."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    heads, nope = attributes["heads"], attributes["nope"]
    direction = attributes["direction"].decode()
    by_head = weight.reshape(heads, -1, weight.shape[1])
    if direction == INTO_LATENT:
        matrices = by_head[:, :nope].transpose(0, 2, 1)
    else:
        matrices = by_head[:, nope:]
    return f"{parameter}.{direction}", matrices


def _add_quantized(
    lowered: Lowered,
    x: str,
    name: str,
    y: str,
    shape: tuple[int, int],
    bits: int,
    block_size: int,
    tiles: Iterator[np.ndarray],
    data: ExternalData,
) -> None:
    """y = x · matrixᵀ; the matrix `[out, in]` is quantized tile by tile."""
    rows, columns = shape
    blocks = columns // block_size
    scales: list[np.ndarray] = []

    def values() -> Iterator[np.ndarray]:
        for tile in tiles:
            quantized = quantize_matrix(tile, bits, block_size)
            scales.append(quantized.scales.reshape(-1))
            yield quantized.unsigned_blocks()

    stored = (rows, blocks, block_size * bits // 8)
    lowered.initializers += [
        data.add(name, stored, np.uint8, values()),
        data.add(f"{name}.scales", (rows * blocks,), np.float32, scales),
    ]
    lowered.nodes.append(
        helper.make_node(
            "MatMulNBits", [x, name, f"{name}.scales"], [y], domain="com.microsoft",
            K=columns, N=rows, bits=bits, block_size=block_size, accuracy_level=4,
        )
    )  # fmt: skip
    lowered.nbytes += quantized_bytes(rows, columns, bits, block_size)


def _add_float(
    lowered: Lowered,
    name: str,
    shape: tuple[int, ...],
    precision: str,
    tiles: Iterator[np.ndarray],
    data: ExternalData,
) -> str:
    """Stores a matrix in fp16 or fp32; returns the name of its fp32 values."""
    lowered.nbytes += float_bytes(shape)
    if precision == "fp32":
        lowered.initializers.append(data.add(name, shape, np.float32, tiles))
        return name
    lowered.initializers.append(data.add(name, shape, np.float16, tiles))
    cast = helper.make_node("Cast", [name], [f"{name}.fp32"], to=TensorProto.FLOAT)
    lowered.nodes.append(cast)
    return f"{name}.fp32"
