"""checkpoint + target → bundle, layer by layer."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx
import torch

from ..bundle.expert_layers import ExpertLayer
from ..bundle.gpu_graphs import EngineSet, GpuGraphs
from ..bundle.manifest import (
    EMBEDDING,
    TOKENIZER,
    FileRecord,
    Manifest,
    Precision,
    Segment,
    hash_file,
    write_manifest,
)  # fmt: skip
from ..bundle.pages import PageFormat
from ..engines.build import build_engines
from ..engines.libraries import RTX
from ..errors import BundleError, CheckpointError, InputError
from ..model.checkpoint.checkpoint import Checkpoint
from ..model.parameters import end_shapes, layer_shapes
from ..model.spec import ModelSpec
from ..progress import Progress, Silent
from ..runtime.context import choose_context
from ..runtime.generation.text import load_tokenizer
from ..targets import Target
from .calibrated.layers import (
    Calibration,
    check_calibration,
    resumable_by,
    write_calibrated_experts,
)
from .calibrated.unfinished import Unfinished, keeping_layers
from .calibrated.workers import Workers, open_workers
from .chat import write_chat_template
from .experts.pages import build_pages, choose_workers, write_expert_layer
from .footprint import page_formats
from .gpu.graphs import write_gpu_graphs
from .graphs.stamp import stamp_segment
from .graphs.trace import check_attention, trace_segment
from .output import building, copy_licences, refuse_existing
from .precision import check_blocks
from .predictors import write_predictors
from .quantize import ReadTiles
from .segments import SegmentPlan, plan_segments, segment_parameters

if TYPE_CHECKING:
    from .calibrated.bits import BitsPlan

_FP16_LARGEST = 65504.0

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Gives a parameter in float32, as consecutive blocks of rows."""

    def tiles(self, parameter: str) -> Iterator[torch.Tensor]: ...


class ParameterSource(Protocol):
    """Where a model's parameters come from: a `Checkpoint`, or anything with such a reader."""

    def tensors(self) -> AbstractContextManager[Reader]: ...


def compile_bundle(
    checkpoint: Path,
    out: Path,
    *,
    target: Target,
    precision: Precision,
    active_experts: int | None = None,
    context: int | None = None,
    fp32_products: bool = True,
    capabilities: Sequence[str] = (),
    calibration: Calibration | None = None,
    workers: str = "1",
    bits: float | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Compiles a checkpoint into a bundle at `out`, which is there only once it is complete.

    active_experts lowers the number of experts per token; the manifest names it as lossy. context:
    tokens that a GPU's graphs are made for, by default as `choose_context`; fp32_products: see
    gpu/lower.py; capabilities: the architectures to build its engines for, as "8.9".
    workers: who quantizes by calibration, see open_workers.
    calibration: on what experts are quantized; without it they are rounded. bits: what each expert
    weight takes on average, each expert stored as the calibration says that it is worth, and not as
    precision.experts says. resume: go on with the layers that a calibrated compile with the same
    arguments has left when it was stopped. force replaces a bundle that is there.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be compiled.
        InputError: `out` exists, active_experts, context or bits are out of range, bits or resume
            are given without a calibration, that is of another model, or there is nothing to
            resume.
        EngineError: TensorRT is not there, or cannot build an engine.
    """
    progress = progress or Silent()
    refuse_existing(out, force)
    source = Checkpoint(checkpoint)
    for line in source.skipped:
        _log.warning("%s: %s is not used", checkpoint, line)
    source.check_leftovers()
    spec, lossy = with_active_experts(source.spec, active_experts)
    check_attention(spec)
    check_blocks(spec, precision if bits is None else replace(precision, experts="fp16"))
    tokenizer = find_tokenizer(source)
    context = choose_context(context, spec, str(checkpoint))
    if calibration is not None:
        check_calibration(calibration, source, precision, bits)
    elif resume:
        raise InputError("--resume needs --calibration: what is only rounded is quick")
    plan = None
    if bits is not None:
        plan = _plan_bits(calibration, spec, target, bits)
    counts, uniform = expert_counts(spec), page_formats(spec, precision)
    formats: Mapping[int, Sequence[PageFormat]]
    formats = plan.formats if plan is not None else {
        layer: [page_format] * counts[layer] for layer, page_format in uniform.items()
    }  # fmt: skip
    if plan is not None:
        precision = replace(precision, experts=plan.precision)
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    with ExitStack() as stack:
        work: Unfinished | None = None
        pool: Workers | None = None
        if calibration is not None:
            pool = open_workers(workers, chain(*formats.values()))
            stack.callback(pool.close)
            by = resumable_by(source, precision, calibration, bits)
            by |= {"--active-experts": active_experts, "version": toolchain()}
            work = stack.enter_context(keeping_layers(out, by, resume))
        root = stack.enter_context(building(out, force))
        write_chat_template(root, source.path)
        segments, backbone_bytes = write_backbone(root, source, spec, precision, progress)
        graphs = None
        if target.kind == "gpu":
            graphs = write_graphs(
                root, source, spec, precision, context=context, fp32_products=fp32_products,
                progress=progress, formats={layer: own[0] for layer, own in formats.items()},
            )  # fmt: skip
        engines: tuple[EngineSet, ...] = ()
        if graphs is not None and capabilities:
            engines = build_engines(
                root, graphs, root, toolchain=RTX, compute_capabilities=capabilities,
                progress=progress,
            )  # fmt: skip
        if calibration is None or work is None or pool is None:
            experts = write_experts(root, source, spec, precision, progress)
        else:
            experts = write_calibrated_experts(
                root, source, spec, precision, calibration, formats, pool, progress, work
            )
        dtype = write_embedding(root, source, precision)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, root / TOKENIZER)
        copy_licences(source.path, root)
        manifest = Manifest(
            spec=spec,
            target=target.name,
            precision=precision,
            embedding_dtype=dtype,
            segments=segments,
            experts=experts,
            backbone_bytes=backbone_bytes,
            toolchain=toolchain(),
            lossy=lossy,
            graphs=graphs,
            engines=engines,
            bits=plan.average if plan is not None else None,
        )
        manifest = replace(manifest, files=hash_files(root, progress))
        write_manifest(root, manifest)
    return manifest


def _plan_bits(
    calibration: Calibration | None, spec: ModelSpec, target: Target, bits: float
) -> BitsPlan:
    if calibration is None:
        raise InputError(f"--bits {bits:g} needs --calibration; 'pocketmoe calibrate' makes one")
    from .calibrated.bits import plan_bits  # scipy takes half a second

    return plan_bits(calibration.record, spec, target, bits, calibration.path)


def toolchain() -> dict[str, str]:
    """Versions of what makes a bundle."""
    return {name: version(name) for name in ("pocketmoe", "torch", "onnx")}


def with_active_experts(spec: ModelSpec, count: int | None) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec with fewer experts per token, and what that loses, in words."""
    if count is None:
        return spec, ()
    if not any(layer.is_moe for layer in spec.layers):
        raise InputError("--active-experts has no effect: the model has no routed experts")
    layers, changed = [], set()
    for layer in spec.layers:
        if layer.router is not None and layer.is_moe:
            if not 1 <= count <= layer.router.top_k:
                raise InputError(
                    f"--active-experts {count} is out of range: the model uses "
                    f"{layer.router.top_k} experts per token, so choose 1 to {layer.router.top_k}"
                )
            if count < layer.router.top_k:
                changed.add(f"active experts {layer.router.top_k} → {count}")
            layer = replace(layer, router=replace(layer.router, top_k=count))
        layers.append(layer)
    return replace(spec, layers=tuple(layers)), tuple(sorted(changed))


def find_tokenizer(source: Checkpoint) -> Path | None:
    """The checkpoint's tokenizer.json, which was tried; None, with a warning, where it has none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = source.tokenizer_path
    try:
        if load_tokenizer(path) is not None:
            return path
    except BundleError as error:
        raise CheckpointError(
            f"{path} is not a tokenizer ({error.__cause__}); copy it there again, or remove it "
            "for a bundle that runs token ids alone"
        ) from error
    _log.warning("%s has no %s: the bundle will run token ids alone", source.path, path.name)
    return None


def head_parameter(spec: ModelSpec, parameter: str) -> str:
    """Where a parameter is stored: a tied head is the embedding."""
    tied = spec.tie_word_embeddings and parameter == "head.weight"
    return "embed.weight" if tied else parameter


def tile_reader(reader: Reader, spec: ModelSpec, advance: Callable[[int], None]) -> ReadTiles:
    """Parameters as float32 blocks of rows; advance is told the bytes of each."""

    def read(parameter: str) -> Iterator[np.ndarray]:
        for tile in reader.tiles(head_parameter(spec, parameter)):
            array = tile.numpy()
            advance(array.nbytes)
            yield array

    return read


def write_backbone(
    root: Path, source: ParameterSource, spec: ModelSpec, precision: Precision, progress: Progress
) -> tuple[tuple[Segment, ...], int]:
    """Traces each kind of segment once and stamps every segment's weights; returns the bytes that
    they take once loaded."""
    (root / "backbone").mkdir()
    plans = plan_segments(spec)
    traces: dict[object, tuple[onnx.ModelProto, SegmentPlan]] = {}
    segments, loaded = [], 0
    progress.stage("backbone", backbone_float32_bytes(spec))
    for plan in plans:
        kind = plan.kind(spec)
        if kind not in traces:
            traces[kind] = (trace_segment(spec, plan), plan)
        traced, traced_plan = traces[kind]
        file = f"backbone/segment_{plan.index:03d}.onnx"
        with source.tensors() as reader:
            loaded += stamp_segment(
                traced, traced_plan, plan, precision, segment_parameters(spec, plan),
                tile_reader(reader, spec, progress.advance), root / file,
            )  # fmt: skip
        segments.append(Segment(file, plan.layers, plan.router_layer))
    with source.tensors() as reader:
        write_predictors(root, spec, tile_reader(reader, spec, lambda _: None))
    return tuple(segments), loaded


def write_graphs(
    root: Path,
    source: ParameterSource,
    spec: ModelSpec,
    precision: Precision,
    *,
    context: int,
    fp32_products: bool,
    progress: Progress,
    formats: Mapping[int, PageFormat] | None = None,
) -> GpuGraphs:
    """The graphs for GPUs, for which the backbone's weights are read once more. formats: of the
    pages of each layer, by default those of the precision."""
    progress.stage("graphs for GPUs", backbone_float32_bytes(spec))
    with source.tensors() as reader:
        read = tile_reader(reader, spec, progress.advance)
        return write_gpu_graphs(
            root, spec, precision, read, context=context, fp32_products=fp32_products,
            formats=formats,
        )  # fmt: skip


def backbone_float32_bytes(spec: ModelSpec) -> int:
    """Everything but pages and the embedding, as it is read: in float32."""
    shapes = {**end_shapes(spec), "head.weight": (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_hidden_layers):
        shapes |= layer_shapes(spec, layer)
    return sum(4 * math.prod(shape) for shape in shapes.values())


def write_experts(
    root: Path, source: Checkpoint, spec: ModelSpec, precision: Precision, progress: Progress
) -> tuple[ExpertLayer, ...]:
    formats = page_formats(spec, precision)
    counts = expert_counts(spec)
    progress.stage("experts", sum(formats[layer].nbytes * counts[layer] for layer in formats))
    workers = choose_workers(formats.values(), encoded=source.encoding is not None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    written = []
    try:
        for layer, page_format in formats.items():
            with source.tensors() as reader:
                read = tile_reader(reader, spec, lambda _: None)
                pages = build_pages(layer, counts[layer], page_format, read, workers)
                written.append(
                    write_expert_layer(
                        root, layer, [page_format] * counts[layer], pages, progress.advance
                    )
                )
    finally:
        torch.set_num_threads(threads)
    return tuple(written)


def expert_counts(spec: ModelSpec) -> dict[int, int]:
    """Experts of each paged layer."""
    routers = {layer: spec.layers[layer].router for layer in spec.paged_layers}
    return {layer: router.num_experts for layer, router in routers.items() if router is not None}


def write_embedding(root: Path, source: ParameterSource, precision: Precision) -> str:
    """Rows in float16, or in float32 where the backbone is, or where float16 would overflow."""
    path = root / EMBEDDING
    with source.tensors() as reader:
        if precision.backbone != "fp32" and write_half_rows(path, reader.tiles("embed.weight")):
            return "float16"
        with path.open("wb") as file:
            for rows in reader.tiles("embed.weight"):
                file.write(rows.contiguous().numpy().data)
    return "float32"


def write_half_rows(path: Path, tiles: Iterator[torch.Tensor]) -> bool:
    """Writes float16 rows; False, at the first of them, where a value is too large."""
    with path.open("wb") as file:
        for rows in tiles:
            if float(rows.abs().max()) > _FP16_LARGEST:
                return False
            file.write(rows.to(torch.float16).contiguous().numpy().data)
    return True


def hash_files(root: Path, progress: Progress) -> dict[str, FileRecord]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    progress.stage("hashing", sum(path.stat().st_size for path in paths))
    return {
        path.relative_to(root).as_posix(): FileRecord(
            path.stat().st_size, hash_file(path, progress.advance)
        )
        for path in paths
    }
