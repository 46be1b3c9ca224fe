"""Graphs of experts for GPUs: they hold no weights, their inputs are the tensors of pages.

    expert   one expert for any tokens of a batch, weighted: what a prompt runs, expert by expert
    combine  sums those terms for each token
    token    all experts of one token and their sum: what decoding runs, once for each layer

Products are fp16, or fp32 where the page is; the activation and all sums are fp32. Quantized
tensors go through DequantizeLinear as they lie in the page.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...bundle.gpu_graphs import TensorInfo, page_inputs
from ...bundle.pages import PageFormat
from ...model.spec import Activation
from ..graphs.stamp import IR_VERSION
from ..graphs.trace import OPSET
from .graph_writer import GraphWriter

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
_HALF_LARGEST = np.float32(65504.0)


def expert_graph(page_format: PageFormat, *, plain: bool = False) -> onnx.ModelProto:
    """x `[N, H]`, rows `[T]` of it and their weights `[T]` → terms `[T, H]`.

    plain: quantized weights are bytes to it, which plain operators make numbers of: for toolchains
    that take no quantized types as inputs. The bytes are the same.
    """
    hidden = page_format.hidden_size
    graph = GraphWriter()
    picked = graph.add("Gather", ["x", "rows"], "picked", axis=0)
    y = _Experts(graph, page_format, plain).ffn(picked, "")
    column = graph.add("Reshape", ["weights", graph.shape("column", -1, 1)], "weight_column")
    graph.add("Mul", [y, column], "terms")
    inputs = [
        _value("x", "float32", "batch", hidden),
        _value("rows", "int64", "tokens"),
        _value("weights", "float32", "tokens"),
        *map(_page_value, page_inputs(page_format, plain=plain)),
    ]
    return _model("expert", graph, inputs, [_value("terms", "float32", "tokens", hidden)])


def token_graph(page_format: PageFormat, top_k: int, *, plain: bool = False) -> onnx.ModelProto:
    """x `[1, H]`, weights `[1, k]` and base `[1, H]` → out `[1, H]`: base and the weighted experts,
    added in the order of the inputs. plain: see expert_graph."""
    hidden = page_format.hidden_size
    graph = GraphWriter()
    inputs = [
        _value("x", "float32", 1, hidden),
        _value("weights", "float32", 1, top_k),
        _value("base", "float32", 1, hidden),
    ]
    total = "base"
    for index in range(top_k):
        suffix = f".{index}"
        inputs += map(_page_value, page_inputs(page_format, suffix, plain=plain))
        y = _Experts(graph, page_format, plain).ffn("x", suffix)
        bounds = [graph.shape(f"from{suffix}", index), graph.shape(f"to{suffix}", index + 1)]
        bounds.append(graph.shape(f"axis{suffix}", 1))
        weight = graph.add("Slice", ["weights", *bounds], f"weight{suffix}")
        term = graph.add("Mul", [y, weight], f"term{suffix}")
        last = index == top_k - 1
        total = graph.add("Add", [total, term], "out" if last else f"sum{suffix}")
    return _model("token", graph, inputs, [_value("out", "float32", 1, hidden)])


def combine_graph(hidden_size: int, top_k: int) -> onnx.ModelProto:
    """terms `[M, H]`, the places `[N, k]` of each token's terms, base `[N, H]` → out `[N, H]`."""
    graph = GraphWriter()
    gathered = graph.add("Gather", ["terms", "places"], "gathered", axis=0)
    total = graph.add("ReduceSum", [gathered, graph.shape("of_experts", 1)], "total", keepdims=0)
    graph.add("Add", ["base", total], "out")
    inputs = [
        _value("terms", "float32", "terms", hidden_size),
        _value("places", "int64", "batch", top_k),
        _value("base", "float32", "batch", hidden_size),
    ]
    return _model("combine", graph, inputs, [_value("out", "float32", "batch", hidden_size)])


class _Experts:
    """Writes experts of one page format into a graph; what they are called ends in a suffix."""

    def __init__(self, graph: GraphWriter, page_format: PageFormat, plain: bool):
        self._graph, self._format, self._plain = graph, page_format, plain

    def ffn(self, x: str, suffix: str) -> str:
        """down(activation(gate(x), up(x))) for x fp32; returns the name of the result, fp32."""
        graph, rule = self._graph, self._format.activation
        gate, up = (self._project(x, name, suffix) for name in ("gate", "up"))
        inner = _activate(graph, rule, gate, up, suffix)
        if self._format.precision != "fp32":  # a product of two may be beyond fp16
            ends = [graph.constant(f"low{suffix}", -_HALF_LARGEST)]
            ends.append(graph.constant(f"high{suffix}", _HALF_LARGEST))
            inner = graph.add("Clip", [inner, *ends], f"clipped{suffix}")
        return self._project(inner, "down", suffix)

    def _project(self, x: str, name: str, suffix: str) -> str:
        graph, weight = self._graph, f"{name}{suffix}"
        if self._format.precision == "fp32":
            y = graph.add("Gemm", [x, weight], f"{name}_product{suffix}", transB=1)
        else:
            if self._format.quantized:
                weight = self._dequantize(name, suffix)
            x16 = graph.add("Cast", [x], f"{name}_x16{suffix}", to=TensorProto.FLOAT16)
            y16 = graph.add("Gemm", [x16, weight], f"{name}_y16{suffix}", transB=1)
            y = graph.add("Cast", [y16], f"{name}_product{suffix}", to=TensorProto.FLOAT)
        if self._format.bias:
            y = graph.add("Add", [y, f"{name}_bias{suffix}"], f"{name}_y{suffix}")
        return y

    def _dequantize(self, name: str, suffix: str) -> str:
        graph, weight, scales = self._graph, f"{name}{suffix}", f"{name}_scales{suffix}"
        if not self._plain:
            return graph.add(
                "DequantizeLinear", [weight, scales], f"{name}_w{suffix}",
                axis=1, block_size=self._format.block_size,
            )  # fmt: skip

        def add(operator: str, inputs: list[str], part: str, **attributes: int) -> str:
            return graph.add(operator, inputs, f"{name}_{part}{suffix}", **attributes)

        def number(part: str, value: float) -> str:
            return graph.constant(f"{name}_{part}{suffix}", np.float16(value))

        def signed(value: str, half: int, part: str) -> str:
            """What is half or more stands for a number below 0. Exact in fp16, like all here."""
            above = add("Mul", [value, number(f"{part}_share", 1 / half)], f"{part}_shares")
            above = add("Floor", [above], f"{part}_above")
            less = add("Mul", [above, number(f"{part}_range", 2 * half)], f"{part}_less")
            return add("Sub", [value, less], f"{part}_signed")

        rows, columns = (
            self._format.hidden_size, self._format.intermediate_size,
        ) if name == "down" else (
            self._format.intermediate_size, self._format.hidden_size,
        )  # fmt: skip
        stored = add("Cast", [weight], "bytes", to=TensorProto.FLOAT16)
        if self._format.precision == "int8":
            values = signed(stored, 128, "int8")
        else:
            sixteen = number("sixteen", 16)
            high = add(
                "Floor", [add("Mul", [stored, number("sixteenth", 1 / 16)], "high16")], "odd"
            )
            low = add("Sub", [stored, add("Mul", [high, sixteen], "high_part")], "even")
            pair = graph.shape(f"{name}_pair{suffix}", 2)
            both = [
                add("Unsqueeze", [signed(half, 8, part), pair], f"{part}_apart")
                for part, half in (("even", low), ("odd", high))
            ]
            values = add("Concat", both, "pairs", axis=2)
        size = self._format.block_size
        blocks = graph.shape(f"{name}_blocks{suffix}", rows, columns // size, size)
        by_block = add("Reshape", [values, blocks], "by_block")
        last = graph.shape(f"{name}_last{suffix}", 2)
        scaled = add("Mul", [by_block, add("Unsqueeze", [scales, last], "steps")], "scaled")
        whole = graph.shape(f"{name}_whole{suffix}", rows, columns)
        return add("Reshape", [scaled, whole], "w")


def _activate(graph: GraphWriter, rule: Activation, gate: str, up: str, suffix: str) -> str:
    """See model.spec.Activation."""

    def add(operator: str, inputs: list[str], name: str) -> str:
        return graph.add(operator, inputs, f"{name}{suffix}")

    def number(name: str, value: float) -> str:
        return graph.constant(f"{name}{suffix}", np.float32(value))

    if rule.kind == "silu":
        shares = add("Sigmoid", [gate], "gate_sigmoid")
        return add("Mul", [add("Mul", [gate, shares], "gate_silu"), up], "inner")
    limit, minus = number("limit", rule.limit), number("minus_limit", -rule.limit)
    gate = add("Min", [gate, limit], "gate_clamped")
    up = add("Clip", [up, minus, limit], "up_clamped")
    shares = add("Sigmoid", [add("Mul", [gate, number("alpha", rule.alpha)], "scaled")], "shares")
    up = add("Add", [up, number("one", 1.0)], "up_plus_one")
    return add("Mul", [add("Mul", [gate, shares], "gate_glu"), up], "inner")


def _value(name: str, dtype: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _TYPES[dtype], list(shape))


def _page_value(info: TensorInfo) -> onnx.ValueInfoProto:
    return _value(info.name, info.dtype, *info.shape)


def _model(
    name: str,
    graph: GraphWriter,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    made = helper.make_graph(graph.nodes, name, inputs, outputs, graph.initializers)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="pocketmoe",
    )  # fmt: skip
    onnx.checker.check_model(model)
    return model
