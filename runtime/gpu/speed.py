"""The speed of a GPU: copies within its memory, and over the link to the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .device import Device, Stream

_BYTES = 256 << 20
_SHARE = 8  # of free memory, what is taken at most
_TIMES = 5


@dataclass(frozen=True)
class DeviceSpeed:
    """Bytes per second: of its memory, read and written; of the link, None where there is none."""

    memory_bandwidth: float
    link_bandwidth: float | None


def measure_device(device: Device, nbytes: int = _BYTES) -> DeviceSpeed:
    """Takes two pieces of `nbytes`, or less where little is free.

    Raises:
        EngineError: the device fails, or has no memory left.
    """
    nbytes = max(1 << 20, min(nbytes, device.memory()[0] // _SHARE))
    stream = device.stream()
    source, target = device.allocate(nbytes), device.allocate(nbytes)
    try:
        stream.clear(source.address, nbytes)
        copies = _best(stream, lambda: stream.copy(target.address, source.address, nbytes))
        link = None
        if not device.info.unified:
            host = device.allocate_host(nbytes)
            try:
                link = nbytes / _best(
                    stream, lambda: stream.upload(target.address, host.address, nbytes)
                )
            finally:
                host.free()
        return DeviceSpeed(2 * nbytes / copies, link)
    finally:
        stream.free()
        source.free()
        target.free()


def _best(stream: Stream, work: Callable[[], None]) -> float:
    """Seconds of the quickest of some runs."""
    best = float("inf")
    for _ in range(_TIMES):
        stream.synchronize()
        started = time.perf_counter()
        work()
        stream.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
