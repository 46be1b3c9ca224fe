"""All that is made on a device for one purpose, given back together."""

from __future__ import annotations

from contextlib import ExitStack

from .device import Buffer, Device, DeviceInfo, Event, HostBuffer, Stream


class Scope:
    """A device that frees what was made by it when it is closed, last first; also where making one
    of several things failed. `close` may be called twice."""

    def __init__(self, device: Device):
        self._device = device
        self._ends = ExitStack()

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    def allocate(self, nbytes: int) -> Buffer:
        made = self._device.allocate(nbytes)
        self._ends.callback(made.free)
        return made

    def allocate_host(self, nbytes: int) -> HostBuffer:
        made = self._device.allocate_host(nbytes)
        self._ends.callback(made.free)
        return made

    def stream(self) -> Stream:
        """Its work ends before it is freed, and before what was made earlier."""
        made = self._device.stream()
        self._ends.callback(made.free)
        self._ends.callback(made.synchronize)
        return made

    def event(self) -> Event:
        made = self._device.event()
        self._ends.callback(made.free)
        return made

    def memory(self) -> tuple[int, int]:
        return self._device.memory()

    def close(self) -> None:
        self._ends.close()
