"""Engines of TensorRT, and of TensorRT for RTX: the two Python interfaces are nearly one.

All contexts share one piece of device memory for what they compute, since they run one after the
other on one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...bundle.gpu_graphs import Engine, EngineSet, TensorInfo
from ...engines.kernel_cache import KERNELS, KernelCache
from ...engines.log import LibraryLog, library_log
from ...errors import BundleError, EngineError
from .cuda_graph import GraphCapture
from .device import Buffer, Device, Stream
from .errors import DeviceMemoryError
from .executor import DECODE

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT8": "int8", "INT4": "int4",
    "FP8": "fp8", "UINT8": "uint8",
}  # fmt: skip

Place = tuple[int, tuple[int, ...]]  # address and shape


class TensorRtLoader:
    """The engines of one set.

    trt: the module of the set's toolchain. capture: makes what captures CUDA graphs of decoding
    segments by hand, where the toolchain does not do it itself.
    """

    grows = False

    def __init__(
        self,
        root: Path,
        engines: EngineSet,
        trt: Any,
        device: Device,
        segments: tuple[str, ...],
        capture: Callable[[], GraphCapture] | None,
    ):
        self._root = root
        self._set = engines
        self._engines = {item.graph: item for item in engines.engines}
        self._trt = trt
        self._device = device
        self._segments = frozenset(segments)
        self._capture = capture
        self._messages = library_log(trt)
        self._runtime = trt.Runtime(self._messages.logger)
        self._scratch = _Scratch(device)
        self._kernels = KernelCache(root / engines.folder / KERNELS)

    def load(self, graph: str) -> TensorRtExecutor:
        declared = self._engines.get(graph)
        if declared is None:
            raise BundleError(
                f"{self._root / self._set.folder} has no engine for {graph}; build the engines "
                f"again: {remedy(self._set.toolchain, self._root, self._set.capability_name)}"
            )
        path = self._root / declared.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error
        self._messages.clear()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            self._fail(f"{path} cannot be loaded")
        check_tensors(self._trt, engine, declared, path)
        decodes = graph in self._segments
        contexts = [
            self._context(engine, profile, path, graphs=decodes and profile == DECODE)
            for profile in range(engine.num_optimization_profiles)
        ]
        self._scratch.need(int(engine.device_memory_size_v2))
        capture = self._capture() if decodes and self._capture is not None else None
        return TensorRtExecutor(
            engine, contexts, declared, path, self._scratch, capture, self._messages
        )

    def _context(self, engine: Any, profile: int, path: Path, *, graphs: bool) -> Any:
        trt = self._trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._set.toolchain == "tensorrt-rtx":
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Else it compiles kernels for each shape beside the runs, whenever they are ready: a
            # prompt has hundreds of shapes, and the same prompt would not give the same numbers.
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.NONE
            )
            self._kernels.attach(config)
            if graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            self._fail(f"{path} has no room to run")
        stream = self._device.stream()
        try:
            if not context.set_optimization_profile_async(profile, stream.handle):
                self._fail(f"{path} has no profile {profile}")
            stream.synchronize()
        finally:
            stream.free()
        return context

    def _fail(self, what: str) -> None:
        reason = self._messages.last
        if "out of memory" in reason.lower():
            raise DeviceMemoryError(0, self._device.memory()[0])
        raise EngineError(
            f"{what} ({reason or 'TensorRT says no more'}); build the engines again: "
            f"{remedy(self._set.toolchain, self._root, self._set.capability_name)}"
        )

    def ready(self) -> None:
        self._scratch.buffer()

    def close(self) -> None:
        self._kernels.save()
        self._scratch.free()


class TensorRtExecutor:
    """One engine, with a context for each of its profiles."""

    def __init__(
        self,
        engine: Any,
        contexts: list[Any],
        declared: Engine,
        where: Path,
        scratch: _Scratch,
        capture: GraphCapture | None,
        messages: LibraryLog,
    ):
        self.inputs = {item.name: item for item in declared.inputs}
        self.outputs = {item.name: item for item in declared.outputs}
        self._engine = engine
        self._contexts = contexts
        self._where = where
        self._scratch = scratch
        self._capture = capture
        self._messages = messages
        self._bound: dict[str, Place] = {}
        self._changed: list[dict[str, Place]] = [{} for _ in contexts]  # by context
        self._memory = [0] * len(contexts)  # the address that each has
        self._dynamic = {item.name for item in declared.inputs if -1 in item.shape}
        self._shapes: list[dict[str, tuple[int, ...]]] = [{} for _ in contexts]

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        place = (address, shape)
        if self._bound.get(name) != place:
            for changed in self._changed:
                changed[name] = place
            self._bound[name] = place

    def run(self, stream: Stream, profile: int = DECODE) -> None:
        context, changed = self._contexts[profile], self._changed[profile]
        buffer = self._scratch.buffer()
        moved = buffer.address != self._memory[profile]
        if moved:
            context.set_device_memory(buffer.address, buffer.nbytes)
            self._memory[profile] = buffer.address
        fresh = moved or bool(changed)
        if changed:
            self._apply(context, changed, self._shapes[profile])
            changed.clear()

        def enqueue() -> None:
            if not context.execute_async_v3(stream.handle):
                raise EngineError(f"{self._where} does not run ({self._messages.last})")

        if self._capture is not None and profile == DECODE:
            self._capture.run(stream, enqueue, fresh=fresh)
        else:
            enqueue()

    def _apply(
        self, context: Any, changed: dict[str, Place], shapes: dict[str, tuple[int, ...]]
    ) -> None:
        for name, (address, shape) in changed.items():
            if name in self._dynamic and shapes.get(name) != shape:
                if not context.set_input_shape(name, shape):
                    raise EngineError(
                        f"{self._where} does not take {name} of shape {list(shape)} "
                        f"({self._messages.last})"
                    )
                shapes[name] = shape
            if not context.set_tensor_address(name, address):
                raise EngineError(
                    f"{self._where} does not take the address of {name} ({self._messages.last})"
                )

    def close(self) -> None:
        if self._capture is not None:
            self._capture.free()
        self._contexts.clear()
        self._engine = None


class _Scratch:
    """Device memory for the contexts: the largest that any of them needs."""

    def __init__(self, device: Device):
        self._device = device
        self._nbytes = 1
        self._buffer: Buffer | None = None

    def need(self, nbytes: int) -> None:
        self._nbytes = max(self._nbytes, nbytes)

    def buffer(self) -> Buffer:
        if self._buffer is None or self._buffer.nbytes < self._nbytes:
            self.free()
            self._buffer = self._device.allocate(self._nbytes)
        return self._buffer

    def free(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.free()


def check_tensors(trt: Any, engine: Any, declared: Engine, where: Path) -> None:
    """Raises BundleError where an engine's inputs and outputs are not those that the manifest
    says."""
    kinds = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}  # type: dict[Any, list[Any]]
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name).name
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        found = TensorInfo(name, _DTYPES.get(dtype, dtype.lower()), shape)
        kinds[engine.get_tensor_mode(name)].append(found)
    for kind, has, wanted in (
        ("input", kinds[trt.TensorIOMode.INPUT], declared.inputs),
        ("output", kinds[trt.TensorIOMode.OUTPUT], declared.outputs),
    ):
        if other := set(has) ^ set(wanted):
            name = min(item.name for item in other)
            raise BundleError(
                f"{where} has another {kind} {name} than the manifest says; build the engines again"
            )


def remedy(toolchain: str, root: Path, name: str) -> str:
    """The command that makes a set of engines; name: of the architecture, as "sm89"."""
    if toolchain == "tensorrt":
        return f"`pocketmoe build {root}` on this device"
    return f"`pocketmoe build {root} --arch {name}`"
