"""The facts of `inspect` about a bundle's engines."""

from __future__ import annotations

from dataclasses import dataclass

from ...bundle.gpu_graphs import EngineSet, TensorInfo, page_inputs
from ...bundle.manifest import Manifest
from ...engines.hardware import Gpu, find_gpu
from ...engines.libraries import STOCK
from ...errors import EngineError, TargetError
from ...targets import find_target


@dataclass(frozen=True)
class EngineFacts:
    """bytes: of its file. pages: the precision of the experts' pages that it takes as inputs; None
    where it takes none. constants: the precisions of weights inside."""

    graph: str
    file: str
    bytes: int
    pages: str | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineSetFacts:
    """One toolchain version's engines for one compute capability. device: the GPU on which they
    were built; None where they were built without one. here: whether this machine's GPU is such a
    one; None where it has none, or that cannot be asked."""

    toolchain: str
    version: str
    compute_capability: str
    device: str | None
    bytes: int
    here: bool | None
    engines: tuple[EngineFacts, ...]


def gpu_here() -> Gpu | None:
    """This machine's GPU, where there is one that can be used."""
    try:
        return find_gpu()
    except EngineError:
        return None


def built_on(manifest: Manifest) -> str | None:
    """The target, where its engines are built on it."""
    try:
        target = find_target(manifest.target)
    except TargetError:  # one that was measured elsewhere
        return None
    return target.name if manifest.graphs is not None and target.toolchain == STOCK else None


def engine_set_facts(item: EngineSet, manifest: Manifest, gpu: Gpu | None) -> EngineSetFacts:
    formats = {page_format for layer in manifest.experts for page_format in layer.formats}
    pages = {tensor.name for page_format in formats for tensor in page_inputs(page_format)}
    engines = tuple(
        EngineFacts(
            graph=engine.graph,
            file=engine.file,
            bytes=manifest.files[engine.file].size,
            pages=manifest.precision.experts
            if any(tensor.name.partition(".")[0] in pages for tensor in engine.inputs)
            else None,
            inputs=engine.inputs,
            outputs=engine.outputs,
            constants=_constants(engine.graph, manifest),
        )
        for engine in item.engines
    )
    return EngineSetFacts(
        toolchain=item.toolchain,
        version=item.version,
        compute_capability=item.compute_capability,
        device=item.device,
        bytes=sum(engine.bytes for engine in engines),
        here=_matches(item, gpu),
        engines=engines,
    )


def _constants(graph: str, manifest: Manifest) -> tuple[str, ...]:
    """Of a segment's large matrices; the last one has the head."""
    segments = manifest.graphs.segments if manifest.graphs is not None else ()
    if graph not in segments:
        return ()
    parts = manifest.precision
    if graph == segments[-1]:
        return tuple(dict.fromkeys((parts.backbone, parts.head)))
    return (parts.backbone,)


def _matches(item: EngineSet, gpu: Gpu | None) -> bool | None:
    """TensorRT's engines are for the very GPU; those of TensorRT for RTX for its architecture."""
    if gpu is None:
        return None
    same = item.compute_capability == gpu.compute_capability
    return same and item.device in (None, gpu.name)
