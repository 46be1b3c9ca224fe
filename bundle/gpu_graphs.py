"""The part of a bundle that is for GPUs: GPU graphs, and the engines that were built of them.

GPU graphs are standard ONNX whose expert weights are inputs: see docs/design.md. They lie in
`device/`; engines lie in `engines/`, a folder for each toolchain version and architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import gcd
from typing import Any

from .pages import PageFormat

GPU_FOLDER, ENGINE_FOLDER = "device", "engines"
# What TensorRT wants of a tensor's address, and what CUDA gives.
ALIGNMENT = 256
FLOAT, INT64 = 4, 8  # bytes
# Past positions are bound in multiples of it, so that one shape serves as many steps.
POSITION_BLOCK = 64
# What a mask adds to the score of a position that is not seen: exp of it is 0, and fp16 holds it.
MASKED = -30000.0
DTYPES = ("float32", "float16", "int64", "int4", "int8", "uint8", "fp8")
# What the plain graphs of experts take as bytes.
PLAIN_PRECISIONS = ("int4", "int8")
_PAGE_DTYPES = {"fp16": "float16", "fp32": "float32", "scales": "float16", "bias": "float32"}


@dataclass(frozen=True)
class GraphLayer:
    """The graphs of a paged layer's experts. expert: any number of tokens on one; token: all
    experts of one token and their sum; combine: sums the terms of many tokens."""

    layer: int
    expert: str
    token: str
    combine: str


@dataclass(frozen=True)
class GpuGraphs:
    """segments: a graph for each of the manifest's. chunk: tokens that a segment takes at most;
    batch: the same of an expert. context: positions that attention is made for. fp32_products:
    whether matrices of fp32 are multiplied, which not every architecture does."""

    segments: tuple[str, ...]
    layers: tuple[GraphLayer, ...]
    chunk: int
    batch: int
    context: int
    fp32_products: bool = True

    def files(self) -> tuple[str, ...]:
        """Every graph once, in the order in which they are needed."""
        experts = [name for item in self.layers for name in (item.expert, item.token, item.combine)]
        return tuple(dict.fromkeys((*self.segments, *experts)))


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. dtype: one of DTYPES; shape: -1 where it varies."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """graph: the GPU graph that `file` was built of."""

    graph: str
    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class EngineSet:
    """Engines for one toolchain version and one compute capability.

    toolchain: "tensorrt-rtx" or "tensorrt". compute_capability: as "8.9". device: the GPU on which
    they were built; None where they were built without one.
    """

    toolchain: str
    version: str
    compute_capability: str
    device: str | None
    engines: tuple[Engine, ...]

    @property
    def folder(self) -> str:
        """Where it lies, relative to the bundle; sets may share one."""
        return self.engines[0].file.rpartition("/")[0] if self.engines else ENGINE_FOLDER

    @property
    def files(self) -> frozenset[str]:
        return frozenset(engine.file for engine in self.engines)

    @property
    def capability_name(self) -> str:
        return capability_name(self.compute_capability)


def capability_name(compute_capability: str) -> str:
    """ "8.9" as "sm89", as files and the command line have it."""
    return f"sm{compute_capability.replace('.', '')}"


def rebuilding(bundle: str, sets: Iterable[EngineSet]) -> str:
    """How sets of engines are made anew, in words."""
    commands: dict[str, None] = {}
    options = ""
    for item in sets:
        if item.device is None:
            options += f" --arch {item.capability_name}"
        else:
            commands[f"'pocketmoe build {bundle}' on {item.device}"] = None
    if options:
        commands[f"'pocketmoe build {bundle}{options}'"] = None
    return f"{' and '.join(commands)} makes them anew"


def page_inputs(
    page_format: PageFormat, suffix: str = "", *, plain: bool = False
) -> tuple[TensorInfo, ...]:
    """The tensors of a page as inputs of a graph; plain: integers as the bytes that hold them."""
    inputs = []
    for place in page_format.tensors():
        dtype, shape = _PAGE_DTYPES.get(place.kind, place.kind), place.shape
        if plain and place.kind in PLAIN_PRECISIONS:
            shape = (shape[0], shape[1] // (2 if place.kind == "int4" else 1))
            dtype = "uint8"
        inputs.append(TensorInfo(f"{place.name}{suffix}", dtype, shape))
    return tuple(inputs)


def row_step(nbytes: int) -> int:
    """How many rows of so many bytes end where a tensor may begin."""
    return ALIGNMENT // gcd(ALIGNMENT, nbytes)


def plain_file(graph: str) -> str:
    """The file of the same graph for what takes fewer quantized types, which a bundle may have: an
    expert's integers are bytes there, a segment's int8 weights rows of one block."""
    return graph.replace(".onnx", ".plain.onnx")


def graphs_from_json(data: Mapping[str, Any] | None) -> GpuGraphs | None:
    """Inverse of `asdict`; KeyError or TypeError where it is none."""
    if data is None:
        return None
    layers = tuple(GraphLayer(**item) for item in data["layers"])
    return GpuGraphs(**{**data, "segments": tuple(data["segments"]), "layers": layers})


def engine_set_from_json(data: Mapping[str, Any]) -> EngineSet:
    """Inverse of `asdict`; KeyError or TypeError where it is none."""

    def tensors(items: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(i["name"], i["dtype"], tuple(i["shape"])) for i in items)

    engines = tuple(
        Engine(e["graph"], e["file"], tensors(e["inputs"]), tensors(e["outputs"]))
        for e in data["engines"]
    )
    return EngineSet(**{**data, "engines": engines})


def to_json(item: GpuGraphs | EngineSet | None) -> dict[str, Any] | None:
    return None if item is None else asdict(item)
