"""An NVIDIA GPU, through the CUDA runtime of cuda-python."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import EngineError
from ..memory.host_memory import available_memory
from .device import Buffer, DeviceInfo, Event, HostBuffer
from .errors import DeviceMemoryError


class CudaDevice:
    """The first GPU that CUDA names."""

    def __init__(self, runtime: Any, index: int = 0):
        self._runtime = runtime
        self._call = _Caller(runtime, self.memory)
        self._call(runtime.cudaSetDevice, index)
        properties = self._call(runtime.cudaGetDeviceProperties, index)
        attribute = runtime.cudaDeviceAttr
        major = self._attribute(attribute.cudaDevAttrComputeCapabilityMajor, index)
        minor = self._attribute(attribute.cudaDevAttrComputeCapabilityMinor, index)
        registers = self._attribute(attribute.cudaDevAttrHostRegisterSupported, index)
        self._registers = bool(registers)
        name = properties.name
        _, driver = runtime.cudaDriverGetVersion()
        self.index = index
        self.info = DeviceInfo(
            name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=f"{major}.{minor}",
            unified=bool(self._attribute(attribute.cudaDevAttrIntegrated, index)),
            driver=_version(driver),
        )

    def _attribute(self, attribute: Any, index: int) -> int:
        return int(self._call(self._runtime.cudaDeviceGetAttribute, attribute, index))

    def allocate(self, nbytes: int) -> Buffer:
        address = int(self._call(self._runtime.cudaMalloc, nbytes, wanted=nbytes))
        return Buffer(address, nbytes, lambda: self._call(self._runtime.cudaFree, address))

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Registered anonymous memory where the device allows it: aligned to pages, private to the
        process, and counted as its own."""
        if not self._registers:
            return self._allocate_pinned(nbytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, max(1, nbytes), flags=flags)
        # Or writes after a fork would go to another copy of it than the one that the GPU reads.
        memory.madvise(mmap.MADV_DONTFORK)
        data = np.frombuffer(memory, np.uint8)
        address = data.ctypes.data
        runtime = self._runtime
        self._pin(runtime.cudaHostRegister, address, nbytes, runtime.cudaHostRegisterMapped)
        seen = 0
        if self.info.unified:
            seen = int(self._call(runtime.cudaHostGetDevicePointer, address, 0))
        return HostBuffer(data, seen, lambda: self._call(runtime.cudaHostUnregister, address))

    def _pin(self, function: Any, *arguments: Any) -> Any:
        """Raises EngineError where the host has no memory for it, or may not lock as much."""
        try:
            return self._call(function, *arguments)
        except DeviceMemoryError as error:
            raise EngineError(
                "host memory cannot be pinned; give a smaller --host-memory, or raise the limit "
                "of locked memory (ulimit -l)"
            ) from error

    def _allocate_pinned(self, nbytes: int) -> HostBuffer:
        runtime = self._runtime
        address = int(self._pin(runtime.cudaHostAlloc, nbytes, runtime.cudaHostAllocMapped))
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        data = np.frombuffer(memoryview(memory).cast("B"), np.uint8)
        seen = 0
        if self.info.unified:
            seen = int(self._call(runtime.cudaHostGetDevicePointer, address, 0))
        return HostBuffer(data, seen, lambda: self._call(runtime.cudaFreeHost, address))

    def stream(self) -> CudaStream:
        runtime = self._runtime
        return CudaStream(
            runtime, self._call,
            self._call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking),
        )  # fmt: skip

    def event(self) -> CudaEvent:
        runtime = self._runtime
        made = self._call(runtime.cudaEventCreateWithFlags, runtime.cudaEventDisableTiming)
        return CudaEvent(runtime, self._call, made)

    def memory(self) -> tuple[int, int]:
        status, free, total = self._runtime.cudaMemGetInfo()
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"cudaMemGetInfo failed: {_describe(self._runtime, status)}")
        if self.info.unified:  # cached files take free memory, and give it back
            available = available_memory()
            free = free if available is None else available
        return int(free), int(total)

    def close(self) -> None:
        pass


class CudaEvent:
    def __init__(self, runtime: Any, call: _Caller, event: Any):
        self._runtime, self._call = runtime, call
        self.event = event

    def wait(self) -> None:
        self._call(self._runtime.cudaEventSynchronize, self.event)

    def free(self) -> None:
        event, self.event = self.event, None
        if event is not None:
            self._call(self._runtime.cudaEventDestroy, event)


class CudaStream:
    def __init__(self, runtime: Any, call: _Caller, stream: Any):
        self._runtime, self._call = runtime, call
        self.stream = stream
        self.handle = int(stream)
        kinds = runtime.cudaMemcpyKind
        self._up = kinds.cudaMemcpyHostToDevice
        self._down = kinds.cudaMemcpyDeviceToHost
        self._within = kinds.cudaMemcpyDeviceToDevice

    def upload(self, target: int, source: int, nbytes: int) -> None:
        self._call(self._runtime.cudaMemcpyAsync, target, source, nbytes, self._up, self.stream)

    def download(self, target: int, source: int, nbytes: int) -> None:
        self._call(self._runtime.cudaMemcpyAsync, target, source, nbytes, self._down, self.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self._call(self._runtime.cudaMemcpyAsync, target, source, nbytes, self._within, self.stream)

    def clear(self, target: int, nbytes: int) -> None:
        self._call(self._runtime.cudaMemsetAsync, target, 0, nbytes, self.stream)

    def record(self, event: Event) -> None:
        self._call(self._runtime.cudaEventRecord, _own(event), self.stream)

    def wait(self, event: Event) -> None:
        self._call(self._runtime.cudaStreamWaitEvent, self.stream, _own(event), 0)

    def call(self, work: Callable[[], None]) -> None:
        raise NotImplementedError("only a device without hardware does work of the host")

    def synchronize(self) -> None:
        self._call(self._runtime.cudaStreamSynchronize, self.stream)

    def free(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            self._call(self._runtime.cudaStreamDestroy, stream)


class _Caller:
    """Calls functions of the CUDA runtime, and raises EngineError for what they say."""

    def __init__(self, runtime: Any, memory: Callable[[], tuple[int, int]]):
        self._runtime, self._memory = runtime, memory
        self._success = runtime.cudaError_t.cudaSuccess
        self._out_of_memory = runtime.cudaError_t.cudaErrorMemoryAllocation

    def __call__(self, function: Any, *arguments: Any, wanted: int = 0) -> Any:
        status, *values = function(*arguments)
        if status == self._success:
            return values[0] if values else None
        if status == self._out_of_memory:
            free, _ = self._memory()
            raise DeviceMemoryError(wanted, free)
        raise EngineError(
            f"{function.__name__} failed: {_describe(self._runtime, status)}; "
            "see `nvidia-smi` and the kernel's log (dmesg), then open the bundle again"
        )


def _own(event: Event) -> Any:
    if not isinstance(event, CudaEvent):
        raise TypeError("an event of another device")
    return event.event


def _describe(runtime: Any, status: Any) -> str:
    """Name and text of an error."""
    texts = []
    for function in (runtime.cudaGetErrorName, runtime.cudaGetErrorString):
        _, text = function(status)
        texts.append(text.decode() if isinstance(text, bytes) else str(text))
    return f"{texts[0]} ({texts[1]})"


def _version(number: int) -> str:
    """12080 is 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""
