"""An expert's computation, as ONNX graphs over the tensors of its page."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...bundle.pages import PROJECTIONS, QUANTIZED, PageFormat, TensorPlace
from ...model.spec import Activation
from ..graphs.stamp import IR_VERSION
from ..graphs.trace import OPSET

_ONNX_TYPES = {
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "fp16": TensorProto.FLOAT16,
    "fp32": TensorProto.FLOAT,
    "scales": TensorProto.FLOAT16,
    "bias": TensorProto.FLOAT,
}


def expert_graph(page_format: PageFormat) -> onnx.ModelProto:
    """y = down(activation(gate(x), up(x))) in standard ONNX, its weights external to the graph.

    Quantized weights go through DequantizeLinear with a block size: what ONNX Runtime runs and
    TensorRT parses.
    """
    initializers = []
    for place in page_format.tensors():
        tensor = TensorProto(
            name=place.name,
            dims=place.shape,
            data_type=_ONNX_TYPES[place.kind],
            data_location=TensorProto.EXTERNAL,
        )
        initializers.append(tensor)
    nodes = []
    for name in PROJECTIONS:
        if page_format.quantized:
            nodes += [
                helper.make_node(
                    "Cast", [f"{name}_scales"], [f"{name}_s"], to=TensorProto.FLOAT
                ),
                helper.make_node(
                    "DequantizeLinear", [name, f"{name}_s"], [f"{name}_w"],
                    axis=1, block_size=page_format.block_size,
                ),
            ]  # fmt: skip
        else:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_w"], to=TensorProto.FLOAT))
    return ffn_model(page_format, nodes, [], initializers)


def point_into_page(
    graph: onnx.ModelProto, page_format: PageFormat, page_offset: int
) -> onnx.ModelProto:
    """A copy of the graph whose weights are those of the page at `page_offset` of pages.bin."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for place in page_format.tensors():
        entries = {
            "location": "pages.bin",
            "offset": page_offset + place.offset,
            "length": place.nbytes,
        }
        for key, value in entries.items():
            tensors[place.name].external_data.add(key=key, value=str(value))
    return model


def engine_graph(page_format: PageFormat) -> onnx.ModelProto:
    """The same function with the page's tensors as run-time inputs: what ONNX Runtime serves every
    expert of a format with.

    Its forms are those measured fastest there (docs/design.md): quantized weights are bound as
    rows of one block each, and int4 ones as bytes that hold an even and an odd column.
    """
    inputs, nodes, initializers = [], [], []
    for place in page_format.tensors():
        kind, shape = _ONNX_TYPES[place.kind], list(place.shape)
        if place.kind == "scales":
            shape = [shape[0] * shape[1]]
        elif place.kind in QUANTIZED:
            blocks = shape[0] * shape[1] // page_format.block_size
            per_row = page_format.block_size // (2 if place.kind == "int4" else 1)
            kind = TensorProto.UINT8 if place.kind == "int4" else kind
            shape = [blocks, per_row]
        inputs.append(helper.make_tensor_value_info(place.name, kind, shape))
    weights = [place for place in page_format.tensors() if place.name in PROJECTIONS]
    if page_format.precision == "int4":
        return _int4_engine(page_format, weights, inputs)
    for place in weights:
        name = place.name
        if page_format.quantized:
            initializers.append(_int64(f"{name}_shape", place.shape))
            nodes += [
                helper.make_node("Cast", [f"{name}_scales"], [f"{name}_s"], to=TensorProto.FLOAT),
                helper.make_node("DequantizeLinear", [name, f"{name}_s"], [f"{name}_q"], axis=0),
                helper.make_node("Reshape", [f"{name}_q", f"{name}_shape"], [f"{name}_w"]),
            ]
        else:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_w"], to=TensorProto.FLOAT))
    return ffn_model(page_format, nodes, inputs, initializers)


def _int4_engine(
    page_format: PageFormat, weights: list[TensorPlace], inputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """A byte b holds u_even + 16 · u_odd, with u = value + 8 once its top bits are flipped.

    W_even = (b & 15 - 8) · s, and P = (b - 136) · s / 16 = W_odd + W_even / 16. So
    x · Wᵀ = (x_even - x_odd / 16) · W_evenᵀ + x_odd · Pᵀ, which needs no unpacking.
    """
    initializers = [
        helper.make_tensor("flip", TensorProto.UINT8, [], [0x88]),
        helper.make_tensor("low", TensorProto.UINT8, [], [0x0F]),
        helper.make_tensor("sixteenth", TensorProto.FLOAT, [], [1 / 16]),
    ]
    nodes: list[onnx.NodeProto] = []
    add = nodes.append

    def dequantized(place: TensorPlace, name: str, values: str, scales: str, zero: int) -> None:
        blocks = place.shape[0] * place.shape[1] // page_format.block_size
        points = np.full(blocks, zero, np.uint8)
        initializers.append(onnx.numpy_helper.from_array(points, f"{name}_zero"))
        add(
            helper.make_node(
                "DequantizeLinear", [values, scales, f"{name}_zero"], [f"{name}_q"], axis=0
            )
        )
        add(helper.make_node("Reshape", [f"{name}_q", f"{place.name}_shape"], [name]))

    for place in weights:
        name, (rows, columns) = place.name, place.shape
        initializers.append(_int64(f"{name}_shape", (rows, columns // 2)))
        add(helper.make_node("Cast", [f"{name}_scales"], [f"{name}_s"], to=TensorProto.FLOAT))
        add(helper.make_node("Mul", [f"{name}_s", "sixteenth"], [f"{name}_s16"]))
        add(helper.make_node("BitwiseXor", [name, "flip"], [f"{name}_b"]))
        add(helper.make_node("BitwiseAnd", [f"{name}_b", "low"], [f"{name}_low"]))
        dequantized(place, f"{name}_even", f"{name}_low", f"{name}_s", 8)
        dequantized(place, f"{name}_pair", f"{name}_b", f"{name}_s16", 136)

    def halves(source: str, prefix: str, width: int) -> None:
        """x_even - x_odd / 16 and x_odd of `source` `[T, width]`."""
        initializers.append(_int64(f"{prefix}_pairs", (-1, width // 2, 2)))
        initializers.append(_int64(f"{prefix}_half", (-1, width // 2)))
        add(helper.make_node("Reshape", [source, f"{prefix}_pairs"], [f"{prefix}_p"]))
        add(
            helper.make_node(
                "Split", [f"{prefix}_p"], [f"{prefix}_e", f"{prefix}_o"], axis=2, num_outputs=2
            )
        )
        add(helper.make_node("Reshape", [f"{prefix}_e", f"{prefix}_half"], [f"{prefix}_even"]))
        add(helper.make_node("Reshape", [f"{prefix}_o", f"{prefix}_half"], [f"{prefix}_odd"]))
        add(helper.make_node("Mul", [f"{prefix}_odd", "sixteenth"], [f"{prefix}_odd16"]))
        add(helper.make_node("Sub", [f"{prefix}_even", f"{prefix}_odd16"], [f"{prefix}_diff"]))

    def project(name: str, prefix: str, out: str) -> None:
        even, pair = [f"{prefix}_diff", f"{name}_even"], [f"{prefix}_odd", f"{name}_pair"]
        pair += [f"{name}_bias"] if page_format.bias else []
        add(helper.make_node("Gemm", pair, [f"{name}_part"], transB=1))
        add(helper.make_node("Gemm", [*even, f"{name}_part"], [out], transB=1))

    halves("x", "x", page_format.hidden_size)
    project("gate", "x", "gate_y")
    project("up", "x", "up_y")
    nodes += activation_nodes(page_format.activation)
    initializers.extend(activation_constants(page_format.activation))
    halves("inner", "inner", page_format.intermediate_size)
    project("down", "inner", "y")
    return as_model(page_format, nodes, inputs, initializers)


def activation_nodes(rule: Activation) -> list[onnx.NodeProto]:
    """inner = activation(gate_y, up_y); the clamped one reads `activation_constants`."""
    if rule.kind == "silu":
        return [
            helper.make_node("Sigmoid", ["gate_y"], ["gate_sigmoid"]),
            helper.make_node("Mul", ["gate_y", "gate_sigmoid"], ["gate_silu"]),
            helper.make_node("Mul", ["gate_silu", "up_y"], ["inner"]),
        ]
    return [
        helper.make_node("Min", ["gate_y", "limit"], ["gate_c"]),
        helper.make_node("Clip", ["up_y", "minus_limit", "limit"], ["up_c"]),
        helper.make_node("Mul", ["gate_c", "alpha"], ["gate_alpha"]),
        helper.make_node("Sigmoid", ["gate_alpha"], ["gate_sigmoid"]),
        helper.make_node("Mul", ["gate_c", "gate_sigmoid"], ["gate_glu"]),
        helper.make_node("Add", ["up_c", "one"], ["up_one"]),
        helper.make_node("Mul", ["gate_glu", "up_one"], ["inner"]),
    ]


def activation_constants(rule: Activation) -> list[TensorProto]:
    if rule.kind == "silu":
        return []
    values = {"limit": rule.limit, "minus_limit": -rule.limit, "alpha": rule.alpha, "one": 1.0}
    return [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in values.items()]


def ffn_model(
    page_format: PageFormat,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
) -> onnx.ModelProto:
    """The gated FFN over `gate_w`, `up_w` and `down_w`, which `nodes` make."""

    def project(source: str, name: str, out: str) -> onnx.NodeProto:
        bias = [f"{name}_bias"] if page_format.bias else []
        return helper.make_node("Gemm", [source, f"{name}_w", *bias], [out], transB=1)

    nodes = [
        *nodes,
        project("x", "gate", "gate_y"),
        project("x", "up", "up_y"),
        *activation_nodes(page_format.activation),
        project("inner", "down", "y"),
    ]
    constants = activation_constants(page_format.activation)
    return as_model(page_format, nodes, inputs, [*initializers, *constants])


def as_model(
    page_format: PageFormat,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
) -> onnx.ModelProto:
    shape: list[str | int | None] = ["tokens", page_format.hidden_size]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "expert", [x, *inputs], [y], initializers)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pocketmoe",
    )


def _int64(name: str, values: tuple[int, ...]) -> TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)
