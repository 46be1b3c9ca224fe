"""Stamps a layer's weights into a traced segment: placeholders become operators of a precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.bundle import Precision
from .quantize import quantize_matrix
from .segments import SegmentPlan
from .trace import LINEAR, LINEAR_DOMAIN

IR_VERSION = 10
_INLINE_BYTES = 1024
_ALIGNMENT = 64
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_CACHE = re.compile(r"^(past|present)_(key|value)_(\d+)$")
_LENGTH = re.compile(r"^(seqlens_k|total_length)_(full|w\d+)$")

ReadMatrix = Callable[[str], np.ndarray]


class ExternalData:
    """A weight file beside a graph: tensors one after the other, each aligned to 64 bytes."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")

    def add(self, name: str, array: np.ndarray) -> TensorProto:
        """Appends the array; returns an initializer that refers to it."""
        if array.nbytes < _INLINE_BYTES:
            return numpy_helper.from_array(array, name)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": self._file.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(np.ascontiguousarray(array).data)
        return tensor

    def close(self) -> None:
        self._file.close()


def stamp_segment(
    traced: onnx.ModelProto,
    traced_plan: SegmentPlan,
    plan: SegmentPlan,
    precision: Precision,
    parameters: set[str],
    read: ReadMatrix,
    path: Path,
) -> int:
    """Writes the graph of `plan` to `path` and its weights beside it, as `.bin`.

    traced is the trace of a segment of the same kind; parameters are the names of all that it has
    to hold; read gives a parameter as float32. Returns
    the bytes that the weights take once loaded.
    """
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    layers = dict(zip(traced_plan.all_layers(), plan.all_layers(), strict=True))
    data = ExternalData(path.with_suffix(".bin"))
    loaded = 0
    stamped: set[str] = set()
    graph = model.graph
    rename_layers(graph, layers)
    for initializer in graph.initializer:
        if _LAYER.match(initializer.name) or initializer.name == "norm.weight":
            initializer.CopyFrom(data.add(initializer.name, read(initializer.name)))
            loaded += int(np.prod(initializer.dims)) * 4
            stamped.add(initializer.name)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.domain != LINEAR_DOMAIN or node.op_type != LINEAR:
            graph.node.append(node)
            continue
        name = renumbered(node.attribute[0].s.decode(), layers)
        chosen = precision_of(name, precision)
        lowered, initializers, nbytes = lower_linear(
            node, name, read(name), chosen, precision.block_size, data
        )
        graph.node.extend(lowered)
        graph.initializer.extend(initializers)
        loaded += nbytes
        stamped.add(name)
    data.close()
    if stamped != parameters:
        lost = ", ".join(sorted(stamped ^ parameters))
        raise RuntimeError(f"the trace of {path.name} does not hold the model's parameters: {lost}")
    opsets = [item for item in model.opset_import if item.domain != LINEAR_DOMAIN]
    if not any(item.domain == "com.microsoft" for item in opsets):
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = IR_VERSION
    model.producer_name = "pocketmoe"
    del graph.value_info[:]
    clear_metadata(model)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
    return loaded


def precision_of(parameter: str, precision: Precision) -> str:
    """Routers stay in fp32: a wrong expert costs more than their few bytes."""
    if ".router." in parameter:
        return "fp32"
    return precision.head if parameter == "head.weight" else precision.backbone


def lower_linear(
    node: onnx.NodeProto,
    name: str,
    weight: np.ndarray,
    precision: str,
    block_size: int,
    data: ExternalData,
) -> tuple[list[onnx.NodeProto], list[TensorProto], int]:
    """Nodes and initializers for y = x · weightᵀ, and the bytes they take once loaded."""
    x, y = node.input[0], node.output[0]
    rows, columns = weight.shape
    if precision in ("int4", "int8"):
        bits = 4 if precision == "int4" else 8
        quantized = quantize_matrix(weight, bits, block_size)
        initializers = [
            data.add(name, quantized.unsigned_blocks()),
            data.add(f"{name}.scales", quantized.scales.astype(np.float32).reshape(-1)),
        ]
        nodes = [
            helper.make_node(
                "MatMulNBits", [x, name, f"{name}.scales"], [y], domain="com.microsoft",
                K=columns, N=rows, bits=bits, block_size=block_size, accuracy_level=4,
            )
        ]  # fmt: skip
        return nodes, initializers, rows * columns * bits // 8 + 4 * quantized.scales.size
    # ONNX Runtime computes in fp32 on a CPU: what is stored as fp16 is cast when it is loaded.
    if precision == "fp16":
        initializers = [data.add(name, weight.astype(np.float16))]
        nodes = [
            helper.make_node("Cast", [name], [f"{name}.fp32"], to=TensorProto.FLOAT),
            helper.make_node("Gemm", [x, f"{name}.fp32"], [y], transB=1),
        ]
    else:
        initializers = [data.add(name, weight)]
        nodes = [helper.make_node("Gemm", [x, name], [y], transB=1)]
    return nodes, initializers, rows * columns * 4


def renumbered(name: str, layers: dict[int, int]) -> str:
    return _LAYER.sub(lambda match: f"layers.{layers[int(match[1])]}.", name)


def rename_layers(graph: onnx.GraphProto, layers: dict[int, int]) -> None:
    """From the traced segment's layer numbers to this one's, and to the bundle's input names."""

    def renamed(name: str) -> str:
        if match := _CACHE.match(name):
            return f"{match[1]}_{match[2]}.{layers[int(match[3])]}"
        if match := _LENGTH.match(name):
            return f"{match[1]}.{match[2]}"
        return renumbered(name, layers)

    for node in graph.node:
        node.name = ""
        for slots in (node.input, node.output):
            slots[:] = [renamed(name) for name in slots]
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = renamed(value.name)
    for value in graph.output:
        # The buffer that is written may be declared larger than what is read.
        if value.name.startswith("present_"):
            value.type.tensor_type.shape.dim[2].dim_param += "_out"


def clear_metadata(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes (stack traces with local paths among them)."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
