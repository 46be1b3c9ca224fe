"""Host memory that small things are sent up from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .device import Device, Event, HostBuffer, Stream

_TURNS = 2


class Uploads:
    """Two pieces of host memory in turn: one is filled while the other is on its way up."""

    def __init__(self, device: Device, stream: Stream, nbytes: int):
        self._stream = stream
        self._turns: list[tuple[HostBuffer, Event]] = [
            (device.allocate_host(nbytes), device.event()) for _ in range(_TURNS)
        ]
        self._turn = 0

    @contextmanager
    def fill(self) -> Iterator[HostBuffer]:
        """Memory whose last uploads are done; those of now are given to the stream in the body."""
        buffer, event = self._turns[self._turn]
        self._turn = (self._turn + 1) % _TURNS
        event.wait()
        try:
            yield buffer
        finally:
            self._stream.record(event)
