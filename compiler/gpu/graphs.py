"""Writes a bundle's GPU graphs: the same model for GPUs, beside what CPUs run.

A segment's graph holds its weights; those of experts take pages as inputs, so that one graph, and
one engine built of it, serves all experts of a format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from ...bundle.gpu_graphs import (
    GPU_FOLDER,
    PLAIN_PRECISIONS,
    GpuGraphs,
    GraphLayer,
    plain_file,
)
from ...bundle.manifest import Precision
from ...bundle.pages import PageFormat
from ...model.spec import ModelSpec
from ...runtime.memory.budget import BATCH, CHUNK
from ..footprint import page_formats
from ..graphs.external_data import ExternalData
from ..graphs.stamp import Lowering, fill_segment, save_segment
from ..graphs.trace import trace_segment
from ..quantize import ReadTiles
from ..segments import SegmentPlan, plan_segments, segment_parameters
from .attention import expand_attention
from .experts import combine_graph, expert_graph, token_graph
from .lower import gpu_lowering
from .plain import split_blocks


def write_gpu_graphs(
    root: Path,
    spec: ModelSpec,
    precision: Precision,
    read: ReadTiles,
    *,
    context: int,
    fp32_products: bool = True,
    formats: Mapping[int, PageFormat] | None = None,
) -> GpuGraphs:
    """Writes `device/` below root.

    context: positions that attention is to be made for. fp32_products: see gpu/lower.py.
    formats: of the pages of each layer, by default those of the precision.
    """
    folder = root / GPU_FOLDER
    folder.mkdir()
    lowering = gpu_lowering(fp32_products=fp32_products)
    traced: dict[object, SegmentPlan] = {}
    segments = []
    for plan in plan_segments(spec):
        first = traced.setdefault(plan.kind(spec), plan)
        path = folder / f"segment_{plan.index:03d}.onnx"
        write_segment(path, spec, first, plan, precision, read, lowering)
        segments.append(f"{GPU_FOLDER}/{path.name}")
    return GpuGraphs(
        segments=tuple(segments),
        layers=write_expert_graphs(folder, spec, formats or page_formats(spec, precision)),
        chunk=min(CHUNK, context),
        batch=min(BATCH, context),
        context=context,
        fp32_products=fp32_products,
    )


def write_segment(
    path: Path,
    spec: ModelSpec,
    traced: SegmentPlan,
    plan: SegmentPlan,
    precision: Precision,
    read: ReadTiles,
    lowering: Lowering,
) -> None:
    """traced: a segment of the same kind, whose trace serves this one too."""
    data = ExternalData(path.with_suffix(".bin"))
    try:
        model, _ = fill_segment(
            trace_segment(spec, traced), traced, plan, precision,
            segment_parameters(spec, plan), read, data, lowering,
        )  # fmt: skip
    finally:
        data.close()
    expand_attention(model.graph, spec, plan)
    for node in model.graph.node:
        node.name = node.output[0]  # what builders name in their errors
    save_segment(model, path, ("",))
    if split_blocks(model.graph):
        onnx.save(model, path.with_name(plain_file(path.name)))


def write_expert_graphs(
    folder: Path, spec: ModelSpec, formats: Mapping[int, PageFormat]
) -> tuple[GraphLayer, ...]:
    """One set of graphs for all layers with the same pages and as many experts for a token."""
    written: dict[tuple[PageFormat, int], tuple[str, str, str]] = {}
    layers = []
    for layer, page_format in formats.items():
        router = spec.layers[layer].router
        if router is None:
            continue
        kind = page_format, router.top_k
        if kind not in written:
            number = len(written)
            graphs = {
                "expert": expert_graph(page_format),
                "token": token_graph(page_format, router.top_k),
                "combine": combine_graph(spec.hidden_size, router.top_k),
            }
            names = []
            for name, graph in graphs.items():
                file = f"{name}_{number:03d}.onnx"
                onnx.save(graph, folder / file)
                names.append(f"{GPU_FOLDER}/{file}")
            if page_format.precision in PLAIN_PRECISIONS:
                expert = expert_graph(page_format, plain=True)
                onnx.save(expert, folder / plain_file(f"expert_{number:03d}.onnx"))
                token = token_graph(page_format, router.top_k, plain=True)
                onnx.save(token, folder / plain_file(f"token_{number:03d}.onnx"))
            written[kind] = (names[0], names[1], names[2])
        layers.append(GraphLayer(layer, *written[kind]))
    return tuple(layers)
