"""A placeholder of a trace becomes operators and weights for a GPU: standard ONNX, fp16 products.

Quantized weights are constants that go through DequantizeLinear, in the same numbers as on a CPU.
All else stays fp32, as norms and the residual stream of many models go beyond fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...bundle.manifest import Precision
from ..footprint import QUANTIZED_BITS
from ..graphs.external_data import ExternalData
from ..graphs.lower import Lowered, head_matrices
from ..graphs.stamp import Lowering
from ..precision import precision_of
from ..quantize import ReadTiles, quantize_matrix


def lower_linear(
    node: onnx.NodeProto,
    weight: str,
    bias: str | None,
    shape: tuple[int, int],
    precision: Precision,
    read: ReadTiles,
    data: ExternalData,
    *,
    fp32_products: bool = True,
) -> Lowered:
    """y = x · weightᵀ + bias in fp32, but for the product; weight: `[out, in]`.

    fp32_products: whether the device multiplies fp32 matrices. Those that do not, such as Turing
    with TensorRT for RTX, get the router's as sums of elementwise products.
    """
    x, y = node.input[0], node.output[0]
    chosen = precision_of(weight, precision)
    lowered = Lowered()
    product = y if bias is None else f"{y}.product"
    if chosen == "fp32":
        lowered.initializers.append(data.add(weight, shape, np.float32, read(weight)))
        if fp32_products:
            lowered.nodes.append(helper.make_node("Gemm", [x, weight], [product], transB=1))
        else:
            _add_sums(lowered, x, weight, product)
    else:
        matrix = _half_matrix(lowered, weight, shape, chosen, precision, read(weight), data)
        half_product(lowered.nodes, x, matrix, product, "Gemm", transB=1)
    if bias is not None:
        lowered.initializers.append(data.add(bias, shape[:1], np.float32, read(bias)))
        lowered.nodes.append(helper.make_node("Add", [product, bias], [y]))
    return lowered


def lower_head_linear(
    node: onnx.NodeProto,
    parameter: str,
    weight: np.ndarray,
    precision: Precision,
    data: ExternalData,
) -> Lowered:
    """y[t, h] = x[t, h] · matrix[h] for x `[T, heads, in]`: one product for all heads."""
    x, y = node.input[0], node.output[0]
    name, matrices = head_matrices(node, parameter, weight)
    heads, rows, columns = matrices.shape
    chosen = precision_of(parameter, precision)
    lowered = Lowered()
    flat = matrices.reshape(heads * rows, columns)
    if chosen == "fp32":
        lowered.initializers.append(data.add(name, flat.shape, np.float32, iter([flat])))
        stored = name
    else:
        stored = _half_matrix(
            lowered, name, (heads * rows, columns), chosen, precision, iter([flat]), data
        )
    by_head = numpy_helper.from_array(np.array([heads, rows, columns]), f"{name}.shape")
    lowered.initializers.append(by_head)
    lowered.nodes += [
        helper.make_node("Reshape", [stored, by_head.name], [f"{name}.heads"]),
        helper.make_node("Transpose", [f"{name}.heads"], [f"{name}.across"], perm=[0, 2, 1]),
        helper.make_node("Transpose", [x], [f"{name}.x"], perm=[1, 0, 2]),
    ]
    if chosen == "fp32":
        product = helper.make_node("MatMul", [f"{name}.x", f"{name}.across"], [f"{name}.y"])
        lowered.nodes.append(product)
    else:
        half_product(lowered.nodes, f"{name}.x", f"{name}.across", f"{name}.y", "MatMul")
    lowered.nodes.append(helper.make_node("Transpose", [f"{name}.y"], [y], perm=[1, 0, 2]))
    return lowered


def gpu_lowering(*, fp32_products: bool) -> Lowering:
    """See lower_linear."""
    return Lowering(partial(lower_linear, fp32_products=fp32_products), lower_head_linear)


def _add_sums(lowered: Lowered, x: str, weight: str, y: str) -> None:
    """y = x · weightᵀ without a product of matrices."""
    middle, last = f"{y}.middle", f"{y}.last"
    lowered.initializers += [
        numpy_helper.from_array(np.array([1], np.int64), middle),
        numpy_helper.from_array(np.array([-1], np.int64), last),
    ]
    lowered.nodes += [
        helper.make_node("Unsqueeze", [x, middle], [f"{y}.by_row"]),
        helper.make_node("Mul", [f"{y}.by_row", weight], [f"{y}.terms"]),
        helper.make_node("ReduceSum", [f"{y}.terms", last], [y], keepdims=0),
    ]


def half_product(
    nodes: list[onnx.NodeProto], x: str, matrix: str, y: str, operator: str, **attributes: Any
) -> None:
    """y = x · matrix in fp16, for x and y in fp32 and a matrix in fp16."""
    nodes += [
        helper.make_node("Cast", [x], [f"{y}.x16"], to=TensorProto.FLOAT16),
        helper.make_node(operator, [f"{y}.x16", matrix], [f"{y}.y16"], **attributes),
        helper.make_node("Cast", [f"{y}.y16"], [y], to=TensorProto.FLOAT),
    ]


def _half_matrix(
    lowered: Lowered,
    name: str,
    shape: tuple[int, int],
    chosen: str,
    precision: Precision,
    tiles: Iterator[np.ndarray],
    data: ExternalData,
) -> str:
    """Stores a matrix `[out, in]` in int4, int8 or fp16; returns the name of its fp16 values."""
    if chosen == "fp16":
        lowered.initializers.append(data.add(name, shape, np.float16, tiles))
        return name
    bits, block_size = QUANTIZED_BITS[chosen], precision.block_size
    scales: list[np.ndarray] = []

    def values() -> Iterator[np.ndarray]:
        for tile in tiles:
            quantized = quantize_matrix(tile, bits, block_size)
            scales.append(quantized.scales)
            yield quantized.packed_int4() if bits == 4 else quantized.values

    if bits == 4:
        lowered.initializers.append(data.add_int4(name, shape, values()))
    else:
        lowered.initializers.append(data.add(name, shape, np.int8, values()))
    columns = shape[1] // block_size
    lowered.initializers.append(data.add(f"{name}.scales", (shape[0], columns), np.float16, scales))
    lowered.nodes.append(
        helper.make_node(
            "DequantizeLinear", [name, f"{name}.scales"], [f"{name}.fp16"],
            axis=1, block_size=block_size,
        )
    )  # fmt: skip
    return f"{name}.fp16"
