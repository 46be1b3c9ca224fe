"""The interface of a GPU: memory, streams, events and copies.

`CudaDevice` is one; `HostDevice` is one without hardware, for tests. Addresses are plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class DeviceInfo:
    """name: as "NVIDIA GeForce RTX 4090". compute_capability: as "8.9". unified: the GPU reads the
    host's memory as its own, as on Jetson. driver: the CUDA version that the driver knows, as
    "13.0"; empty where there is none."""

    name: str
    compute_capability: str
    unified: bool
    driver: str


class Buffer:
    """Memory on the device: `nbytes` from `address`, aligned to 256; `free` gives it back."""

    __slots__ = ("_free", "address", "nbytes")

    def __init__(self, address: int, nbytes: int, free: Callable[[], None]):
        self.address, self.nbytes = address, nbytes
        self._free: Callable[[], None] | None = free

    def free(self) -> None:
        """May be called twice."""
        free, self._free = self._free, None
        if free is not None:
            free()


class HostBuffer:
    """Memory on the host that copies run from and to without the processor: uint8 `data`.

    device_address: where the device sees it, on a device with unified memory; else 0.
    """

    __slots__ = ("_free", "address", "data", "device_address")

    def __init__(self, data: np.ndarray, device_address: int, free: Callable[[], None]):
        self.data: np.ndarray = data
        self.address: int = data.ctypes.data
        self.device_address = device_address
        self._free: Callable[[], None] | None = free

    def view(self, dtype: type[np.generic], shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
        """An array over the bytes from `offset` on."""
        count = int(np.prod(shape))
        flat = np.frombuffer(self.data.data, dtype, count, offset)
        return flat.reshape(shape)

    def free(self) -> None:
        """May be called twice. Arrays over it must not be used any more."""
        free, self._free = self._free, None
        if free is not None:
            free()


class Event(Protocol):
    """A point in a stream's work. One that was never recorded has happened already."""

    def wait(self) -> None:
        """Blocks the caller until all that was before the latest `record` is done."""
        ...

    def free(self) -> None: ...


class Stream(Protocol):
    """Work is done in the order in which it is given, while the caller goes on.

    handle: the cudaStream_t, as a number. Host memory of copies must be a HostBuffer's, and stay as
    it is until they are done.

    Raises (each call):
        EngineError: the device failed, in this call or in work given before.
    """

    handle: int

    def upload(self, target: int, source: int, nbytes: int) -> None:
        """From host to device."""
        ...

    def download(self, target: int, source: int, nbytes: int) -> None:
        """From device to host."""
        ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Within the device. The two must not overlap."""
        ...

    def clear(self, target: int, nbytes: int) -> None:
        """Zeroes device memory."""
        ...

    def record(self, event: Event) -> None: ...

    def wait(self, event: Event) -> None:
        """What is given from now on begins after the event, as it was recorded last."""
        ...

    def call(self, work: Callable[[], None]) -> None:
        """Has work of the host done in its turn; only where there is no hardware."""
        ...

    def synchronize(self) -> None:
        """Blocks the caller until all work is done."""
        ...

    def free(self) -> None: ...


class Device(Protocol):
    """Raises (each call):
    DeviceMemoryError: there is not as much memory.
    EngineError: the device failed.
    """

    @property
    def info(self) -> DeviceInfo: ...

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory; what is in it is not known."""
        ...

    def allocate_host(self, nbytes: int) -> HostBuffer: ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all; of unified memory, what the system has."""
        ...

    def close(self) -> None:
        """Once all that was made by it is freed."""
        ...
