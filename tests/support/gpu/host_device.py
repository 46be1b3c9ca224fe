"""A device without hardware: the host's memory, and streams that are threads.

For tests of all that has to be in the right order on a GPU. Copies and computations really run
beside the caller, each stream at its own pace, which `delay` can change; so where an event is not
waited for, numbers are wrong. Addresses outside of what was allocated are errors.
"""

from __future__ import annotations

import bisect
import ctypes
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from pocketmoe.errors import EngineError
from pocketmoe.runtime.gpu.device import Buffer, DeviceInfo, Event, HostBuffer
from pocketmoe.runtime.gpu.errors import DeviceMemoryError

# Told what a stream is to do next, "upload", "download", "copy", "clear" or "run", and how many
# bytes it is about; returns seconds to wait before.
Delay = Callable[[str, int], float]


class HostEvent:
    def __init__(self) -> None:
        self.ticket: threading.Event | None = None
        self.failure: Callable[[], None] = lambda: None

    def wait(self) -> None:
        if self.ticket is not None:
            self.ticket.wait()
        self.failure()

    def free(self) -> None:
        pass


class HostStream:
    """A thread that does one thing after the other."""

    def __init__(self, device: HostDevice, delay: Delay | None):
        self.handle = 0
        self._device = device
        self._delay = delay
        self._error: BaseException | None = None
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="host stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _submit(self, kind: str, nbytes: int, work: Callable[[], None]) -> None:
        self._check()

        def guarded() -> None:
            if self._error is not None:
                return
            if self._delay is not None and (seconds := self._delay(kind, nbytes)):
                time.sleep(seconds)
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                self._error = error

        self._work.put(guarded)

    def _check(self) -> None:
        if self._error is not None:
            raise EngineError(f"work on the device failed: {self._error}") from self._error

    def _move(self, kind: str, target: int, source: int, nbytes: int) -> None:
        if max(target, source) < min(target, source) + nbytes:
            raise EngineError(f"a {kind} of {nbytes} bytes overlaps itself")
        check = self._device.check
        check(kind, target, nbytes, on_device=kind != "download")
        check(kind, source, nbytes, on_device=kind != "upload")
        self._submit(kind, nbytes, lambda: _move(target, source, nbytes))

    def upload(self, target: int, source: int, nbytes: int) -> None:
        self._device.uploaded += nbytes
        self._move("upload", target, source, nbytes)

    def download(self, target: int, source: int, nbytes: int) -> None:
        self._move("download", target, source, nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self._move("copy", target, source, nbytes)

    def clear(self, target: int, nbytes: int) -> None:
        self._device.check("clear", target, nbytes, on_device=True)
        self._submit("clear", nbytes, lambda: _clear(target, nbytes))

    def record(self, event: Event) -> None:
        if not isinstance(event, HostEvent):
            raise TypeError("an event of another device")
        ticket = event.ticket = threading.Event()
        event.failure = self._check
        self._work.put(ticket.set)

    def wait(self, event: Event) -> None:
        if not isinstance(event, HostEvent):
            raise TypeError("an event of another device")
        if event.ticket is not None:
            ticket = event.ticket
            self._work.put(lambda: _wait(ticket))

    def call(self, work: Callable[[], None]) -> None:
        self._submit("run", 0, work)

    def synchronize(self) -> None:
        done = threading.Event()
        self._work.put(done.set)
        done.wait()
        self._check()

    def free(self) -> None:
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()


class HostDevice:
    """memory: bytes that it has. unified: as DeviceInfo says; then its slots are the host's.

    delay: see Delay. compute_capability: what it claims to be. uploaded: bytes so far.
    """

    def __init__(
        self,
        memory: int = 1 << 40,
        *,
        unified: bool = False,
        delay: Delay | None = None,
        compute_capability: str = "0.0",
    ):
        self.info = DeviceInfo("host memory", compute_capability, unified, "")
        self.uploaded = 0
        self._total = memory
        self._used = 0
        self._delay = delay
        self._lock = threading.Lock()
        self._device: dict[int, int] = {}  # sizes by address
        self._host: dict[int, int] = {}
        self._sorted: dict[bool, list[int]] = {True: [], False: []}

    def allocate(self, nbytes: int) -> Buffer:
        if self._used + nbytes > self._total:
            raise DeviceMemoryError(nbytes, self._total - self._used)
        array = _aligned(nbytes)
        array[:] = 0xFF  # NaNs, where something reads what was never written
        self._used += nbytes
        self._register(array, nbytes, on_device=True)

        def free() -> None:
            self._forget(array, nbytes, on_device=True)
            self._used -= nbytes

        return Buffer(array.ctypes.data, nbytes, free)

    def allocate_host(self, nbytes: int) -> HostBuffer:
        array = _aligned(nbytes)
        self._register(array, nbytes, on_device=False)
        seen = array.ctypes.data if self.info.unified else 0
        return HostBuffer(array, seen, lambda: self._forget(array, nbytes, on_device=False))

    def stream(self) -> HostStream:
        return HostStream(self, self._delay)

    def event(self) -> HostEvent:
        return HostEvent()

    def memory(self) -> tuple[int, int]:
        return self._total - self._used, self._total

    def close(self) -> None:
        left = sum(self._device.values())
        if left:
            raise EngineError(f"{left} bytes of device memory were not freed")

    def check(self, kind: str, address: int, nbytes: int, *, on_device: bool) -> None:
        """Raises EngineError unless the bytes lie in one piece of memory of that side."""
        with self._lock:
            starts = self._sorted[on_device]
            index = bisect.bisect_right(starts, address) - 1
            sizes = self._device if on_device else self._host
            inside = index >= 0 and address + nbytes <= starts[index] + sizes[starts[index]]
        if not inside:
            side = "device" if on_device else "pinned host"
            raise EngineError(f"a {kind} of {nbytes} bytes is outside of {side} memory")

    def _register(self, array: np.ndarray, nbytes: int, *, on_device: bool) -> None:
        address = array.ctypes.data
        with self._lock:
            (self._device if on_device else self._host)[address] = nbytes
            bisect.insort(self._sorted[on_device], address)

    def _forget(self, array: np.ndarray, nbytes: int, *, on_device: bool) -> None:
        address = array.ctypes.data
        with self._lock:
            del (self._device if on_device else self._host)[address]
            self._sorted[on_device].remove(address)


def _aligned(nbytes: int) -> np.ndarray:
    """uint8 `[nbytes]` at a multiple of 4 KiB, which reads past the page cache want."""
    whole = np.empty(nbytes + 4096, np.uint8)
    start = -whole.ctypes.data % 4096
    return whole[start : start + nbytes]


def _move(target: int, source: int, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


def _clear(target: int, nbytes: int) -> None:
    ctypes.memset(target, 0, nbytes)


def _wait(ticket: threading.Event) -> None:
    ticket.wait()
