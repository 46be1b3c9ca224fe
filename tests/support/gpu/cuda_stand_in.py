"""The CUDA runtime as cuda-python has it, over the host's memory, for tests of what calls it.

Work is done at once. Where cuda-python is installed, each call is checked to have as many arguments
as its function takes.
"""

from __future__ import annotations

import ctypes
import enum
import re
from types import SimpleNamespace
from typing import Any

import numpy as np


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInitializationError = 3
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


def arities() -> dict[str, int]:
    """Arguments of each function, as cuda-python documents them; empty where it is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return {}
    found = {}
    for name in dir(runtime):
        function = getattr(runtime, name)
        match = re.search(rf"{name}\((.*?)\)", getattr(function, "__doc__", None) or "")
        if name.startswith("cuda") and callable(function) and match is not None:
            found[name] = len([item for item in match[1].split(",") if item.strip()])
    return found


class CudaStandIn:
    """status: what cudaGetDeviceCount says. failing: names of functions that fail, and how."""

    cudaError_t = Status
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrIntegrated="integrated",
        cudaDevAttrHostRegisterSupported="registers",
    )
    cudaHostRegisterMapped = 2
    cudaHostAllocMapped = 2
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(
        self,
        *,
        status: Status = Status.cudaSuccess,
        driver: int = 13000,
        memory: int = 1 << 30,
        unified: bool = False,
        registers: bool = True,
        failing: dict[str, Status] | None = None,
    ):
        self.status, self.driver, self.total = status, driver, memory
        self.failing = failing or {}
        self.attributes = {
            "major": 8, "minor": 9, "integrated": int(unified), "registers": int(registers)
        }  # fmt: skip
        self.blocks: dict[int, np.ndarray] = {}
        self.registered: set[int] = set()
        self.made: set[int] = set()
        self.launches: list[str] = []
        self._arities = arities()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def checked(*arguments: Any) -> tuple[Any, ...]:
            expected = self._arities.get(name)
            assert expected is None or len(arguments) == expected, name
            if name in self.failing:
                return (self.failing[name], None)
            result = value(*arguments)
            return (Status.cudaSuccess, *result) if isinstance(result, tuple) else (result, None)

        checked.__name__ = name
        return checked

    def cudaGetDeviceCount(self) -> Any:
        return (1,) if self.status == Status.cudaSuccess else self.status

    def cudaDriverGetVersion(self) -> Any:
        return (self.driver,)

    def cudaRuntimeGetVersion(self) -> Any:
        return (13040,)

    def cudaSetDevice(self, index: int) -> Any:
        return ()

    def cudaGetDeviceProperties(self, index: int) -> Any:
        return (SimpleNamespace(name=b"Stand-in 4090"),)

    def cudaDeviceGetAttribute(self, attribute: str, index: int) -> Any:
        return (self.attributes[attribute],)

    def cudaGetErrorName(self, status: Status) -> Any:
        return (status.name.encode(),)

    def cudaGetErrorString(self, status: Status) -> Any:
        return (b"in words",)

    def cudaGetLastError(self) -> Any:
        return ()

    def cudaMemGetInfo(self) -> Any:
        used = sum(len(block) for block in self.blocks.values())
        return (self.total - used, self.total)

    def cudaMalloc(self, nbytes: int) -> Any:
        if sum(len(block) for block in self.blocks.values()) + nbytes > self.total:
            return Status.cudaErrorMemoryAllocation
        block = np.zeros(nbytes, np.uint8)
        self.blocks[block.ctypes.data] = block
        return (block.ctypes.data,)

    def cudaFree(self, address: int) -> Any:
        del self.blocks[address]
        return ()

    def cudaHostAlloc(self, nbytes: int, flags: int) -> Any:
        block = np.zeros(nbytes, np.uint8)
        self.registered.add(block.ctypes.data)
        self._kept = block
        return (block.ctypes.data,)

    def cudaFreeHost(self, address: int) -> Any:
        self.registered.remove(address)
        return ()

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> Any:
        self.registered.add(address)
        return ()

    def cudaHostUnregister(self, address: int) -> Any:
        self.registered.remove(address)
        return ()

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> Any:
        return (address,)

    def _make(self) -> Any:
        number = max(self.made, default=0) + 1
        self.made.add(number)
        return (number,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._make()

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._make()

    def cudaStreamDestroy(self, stream: int) -> Any:
        self.made.remove(stream)
        return ()

    def cudaEventDestroy(self, event: int) -> Any:
        self.made.remove(event)
        return ()

    def cudaMemcpyAsync(
        self, target: int, source: int, nbytes: int, kind: Kind, stream: int
    ) -> Any:
        ctypes.memmove(target, source, nbytes)
        return ()

    def cudaMemsetAsync(self, target: int, value: int, nbytes: int, stream: int) -> Any:
        ctypes.memset(target, value, nbytes)
        return ()

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        return ()

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        return ()

    def cudaEventSynchronize(self, event: int) -> Any:
        return ()

    def cudaStreamSynchronize(self, stream: int) -> Any:
        return ()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self.launches.append("begin")
        return ()

    def cudaStreamEndCapture(self, stream: int) -> Any:
        self.launches.append("end")
        return (7,)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return self._make()

    def cudaGraphDestroy(self, graph: int) -> Any:
        return ()

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        self.launches.append("launch")
        return ()

    def cudaGraphExecDestroy(self, graph: int) -> Any:
        self.made.remove(graph)
        return ()
