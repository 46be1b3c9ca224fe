"""Backends: which of them work here for a bundle, and why the others do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...bundle.gpu_graphs import EngineSet, GpuGraphs, capability_name, plain_file
from ...bundle.manifest import Manifest
from ...engines.hardware import CudaPythonError, start_cuda
from ...engines.libraries import load_tensorrt
from ...errors import EngineError
from ...extras import how_to_add
from ..cpu.installed import find_onnxruntime
from .cuda_device import CudaDevice
from .cuda_graph import GraphCapture
from .device import Device, Stream
from .executor import Loader
from .tensorrt_executor import TensorRtLoader, remedy

_BEST_FIRST = ("tensorrt-rtx", "tensorrt", "cuda")
_LABELS = {"tensorrt-rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """name: one of opening.BACKENDS. engine: what computes, in words. files: what it loads. loader:
    makes what does, for a stream and a number of CPU threads."""

    name: str
    engine: str
    device: Device
    files: tuple[str, ...]
    loader: Callable[[Stream, int], Loader]


def find_backend(name: str, root: Path, manifest: Manifest) -> Backend:
    """A backend that was asked for by its name.

    Raises:
        EngineError: it does not work here for this bundle: why, and what to do.
    """
    if manifest.graphs is None:
        raise EngineError(
            f"{root} has nothing for GPUs; compile it again with a GPU as --target "
            "(`pocketmoe targets` lists them)"
        )
    try:
        runtime = start_cuda()
    except CudaPythonError as error:
        raise EngineError(f"{error.problem}: {_install(name)}") from error
    return _make(name, root, manifest, runtime, CudaDevice(runtime))


def _install(name: str) -> str:
    """What a backend needs of packages, in one command, or two where another is in its way."""
    command = how_to_add(name)
    if name == "cuda" and find_onnxruntime() not in (None, "onnxruntime-gpu"):
        return f"pip uninstall -y {find_onnxruntime()}, then {command}"
    return command


class Candidates:
    """Those that work here, best first, for "auto"; `reasons` says why the others do not."""

    def __init__(self, root: Path, manifest: Manifest):
        self._root, self._manifest = root, manifest
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[Backend]:
        if self._manifest.graphs is None:
            self.reasons.append("the bundle has nothing for GPUs")
            return
        try:
            runtime = start_cuda()
            device = CudaDevice(runtime)
        except EngineError as error:
            self.reasons.append(str(error))
            return
        for name in _BEST_FIRST:
            try:
                yield _make(name, self._root, self._manifest, runtime, device)
            except EngineError as error:
                self.drop(name, error)

    def drop(self, name: str, error: EngineError) -> None:
        """One that does not work after all."""
        _log.info("backend %s does not work: %s", name, error)
        self.reasons.append(f"{name}: {error}")

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons) or "it is the best that works"


def _make(name: str, root: Path, manifest: Manifest, runtime: Any, device: CudaDevice) -> Backend:
    graphs = manifest.graphs
    if graphs is None:
        raise EngineError(f"{root} has nothing for GPUs")
    if name == "cuda":
        return onnx_backend(root, graphs, manifest, device)
    trt = load_tensorrt(name)
    engines = choose_engines(name, trt.__version__, root, manifest, device)
    capture = partial(GraphCapture, runtime) if name == "tensorrt" else None
    return Backend(
        name, f"{_LABELS[name]} {trt.__version__}", device,
        tuple(engine.file for engine in engines.engines),
        lambda stream, threads: TensorRtLoader(
            root, engines, trt, device, graphs.segments, capture
        ),
    )  # fmt: skip


def onnx_backend(root: Path, graphs: GpuGraphs, manifest: Manifest, device: Device) -> Backend:
    """ONNX Runtime: its CUDA provider, or the CPU's where the device is without hardware.

    Raises:
        EngineError: it is not installed, or has no CUDA provider for a GPU.
    """
    from ..cpu.ort import version  # says what to install where there is none
    from .onnx_executor import OnnxLoader, check_cuda_provider

    on_gpu = isinstance(device, CudaDevice)
    plain: frozenset[str] = frozenset()
    if on_gpu:
        check_cuda_provider()
        plain = plain_for_cuda(graphs, manifest)
    weights = [f"{name.rpartition('.')[0]}.bin" for name in graphs.segments]
    files = (
        *(plain_file(name) if name in plain else name for name in graphs.files()),
        *(name for name in weights if name in manifest.files),
    )
    return Backend(
        "cuda" if on_gpu else "host", f"onnxruntime {version()}, {'CUDA' if on_gpu else 'CPU'}",
        device, files, lambda stream, threads: OnnxLoader(root, device, stream, threads, plain),
    )  # fmt: skip


def plain_for_cuda(graphs: GpuGraphs, manifest: Manifest) -> frozenset[str]:
    """The graphs whose plain files the CUDA provider takes: blocks of int8 it does not dequantize,
    those of int4 it does.

    Raises:
        EngineError: nor those of fp8.
    """
    precisions = {layer.layer: layer.format.precision for layer in manifest.experts}
    if "fp8" in precisions.values():
        raise EngineError(
            "the CUDA provider of ONNX Runtime computes no experts in fp8; use tensorrt-rtx, or "
            "compile with other --precision"
        )
    names = set(graphs.segments)
    for item in graphs.layers:
        if precisions[item.layer] == "int8":
            names |= {item.expert, item.token}
    return frozenset(name for name in names if plain_file(name) in manifest.files)


def choose_engines(
    toolchain: str, version: str, root: Path, manifest: Manifest, device: Device
) -> EngineSet:
    """The bundle's engines for this version and GPU.

    Raises:
        EngineError: it has none; the message names both sides.
    """
    info = device.info
    name = capability_name(info.compute_capability)
    how = remedy(toolchain, root, name)
    of_toolchain = [item for item in manifest.engines if item.toolchain == toolchain]
    for item in of_toolchain:
        if (item.version, item.compute_capability) == (version, info.compute_capability):
            if item.device is not None and item.device != info.name:
                _log.warning(
                    "%s was built on %s, and this is %s: it may be slow; build it again with %s",
                    root / item.folder, item.device, info.name, how,
                )  # fmt: skip
            return item
    here = f"{_LABELS[toolchain]} {version} on {info.name} ({name})"
    if not of_toolchain:
        whole = "" if not manifest.incomplete else " that are whole"
        raise EngineError(f"{root} has no engines{whole} for {here}; make them with {how}")
    there = ", ".join(
        f"{_LABELS[toolchain]} {item.version} on {item.device or item.capability_name}"
        for item in of_toolchain
    )
    raise EngineError(f"{root} has engines for {there}, and this is {here}; make others with {how}")
