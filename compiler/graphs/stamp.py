"""Stamps a layer's weights into a traced segment: placeholders become operators of a precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from ...bundle.manifest import Precision
from ...model.parameters import Shape
from ..footprint import float_bytes
from ..quantize import ReadTiles
from ..segments import SegmentPlan
from .external_data import ExternalData
from .lower import Lowered, lower_head_linear, lower_linear, read_whole
from .placeholders import LINEAR, LINEAR_DOMAIN

IR_VERSION = 10
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_CACHE = re.compile(r"^(past|present)_(key|value)_(\d+)$")
_LENGTH = re.compile(r"^(seqlens_k|total_length)_(full|w\d+)$")


@dataclass(frozen=True)
class Lowering:
    """What placeholders become: see `lower_linear` and `lower_head_linear`."""

    linear: Callable[..., Lowered]
    head_linear: Callable[..., Lowered]


ONNX_RUNTIME = Lowering(lower_linear, lower_head_linear)


def stamp_segment(
    traced: onnx.ModelProto,
    traced_plan: SegmentPlan,
    plan: SegmentPlan,
    precision: Precision,
    parameters: dict[str, Shape],
    read: ReadTiles,
    path: Path,
) -> int:
    """Writes the graph of `plan` to `path`, its weights beside it as `.bin`, and as `.json` where
    each of them lies.

    traced is the trace of a segment of the same kind; parameters are all that it has to hold.
    Returns the bytes that the weights take once loaded.
    """
    data = ExternalData(path.with_suffix(".bin"))
    try:
        model, loaded = fill_segment(
            traced, traced_plan, plan, precision, parameters, read, data, ONNX_RUNTIME
        )
        data.write_index(loaded)
    finally:
        data.close()
    for value in model.graph.output:
        # The buffer that is written may be declared larger than what is read.
        if value.name.startswith("present_"):
            value.type.tensor_type.shape.dim[2].dim_param += "_out"
    save_segment(model, path, ("", "com.microsoft"))
    return loaded


def fill_segment(
    traced: onnx.ModelProto,
    traced_plan: SegmentPlan,
    plan: SegmentPlan,
    precision: Precision,
    parameters: dict[str, Shape],
    read: ReadTiles,
    data: ExternalData,
    lowering: Lowering,
) -> tuple[onnx.ModelProto, int]:
    """A copy of the trace with the layers and the weights of `plan`, and the bytes that they take
    once loaded."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    layers = dict(zip(traced_plan.all_layers(), plan.all_layers(), strict=True))
    rename_layers(model.graph, layers)
    stamped, loaded = stamp_weights(
        model.graph, layers, precision, parameters, read, data, lowering
    )
    if stamped != set(parameters):
        lost = ", ".join(sorted(stamped ^ set(parameters)))
        raise RuntimeError(f"segment {plan.index} does not hold the model's parameters: {lost}")
    return model, loaded


def save_segment(model: onnx.ModelProto, path: Path, domains: tuple[str, ...]) -> None:
    """Writes the graph, of the operators of these domains, without the exporter's notes."""
    opsets = {item.domain: item for item in model.opset_import}
    opsets.setdefault("com.microsoft", helper.make_opsetid("com.microsoft", 1))
    del model.opset_import[:]
    model.opset_import.extend(opsets[domain] for domain in domains)
    model.ir_version = IR_VERSION
    model.producer_name = "pocketmoe"
    del model.graph.value_info[:]
    clear_metadata(model)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))


def stamp_weights(
    graph: onnx.GraphProto,
    layers: dict[int, int],
    precision: Precision,
    parameters: dict[str, Shape],
    read: ReadTiles,
    data: ExternalData,
    lowering: Lowering,
) -> tuple[set[str], int]:
    """Fills the named initializers and replaces the placeholders; returns the names of the
    parameters that the graph holds now, and the bytes that they take once loaded."""
    loaded = 0
    stamped: set[str] = set()
    for initializer in graph.initializer:
        name = initializer.name
        if name in parameters:
            shape = parameters[name]
            initializer.CopyFrom(data.add(name, shape, np.float32, read(name)))
            loaded += float_bytes(shape)
            stamped.add(name)
    # Both directions of a LatentProjection are made of one weight.
    read_latent = lru_cache(maxsize=1)(lambda name: read_whole(read, name))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.domain != LINEAR_DOMAIN:
            graph.node.append(node)
            continue
        names = {a.name: renumbered(a.s.decode(), layers) for a in node.attribute if a.s}
        weight, bias = names["parameter"], names.get("bias")
        if node.op_type == LINEAR:
            lowered = lowering.linear(node, weight, bias, parameters[weight], precision, read, data)
        else:
            lowered = lowering.head_linear(node, weight, read_latent(weight), precision, data)
        graph.node.extend(lowered.nodes)
        graph.initializer.extend(lowered.initializers)
        loaded += lowered.nbytes
        stamped.update({weight} if bias is None else {weight, bias})
    return stamped, loaded


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


def clear_metadata(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes (stack traces with local paths among them)."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
