"""Errors within the GPU runtime, which opening a bundle turns into ones with a remedy."""

from __future__ import annotations

from ...errors import EngineError
from ...sizes import format_size


class DeviceMemoryError(EngineError):
    """The device has not as much memory. wanted, free: bytes; wanted is 0 where it is not known."""

    def __init__(self, wanted: int, free: int):
        self.wanted, self.free = wanted, free
        what = f"{format_size(wanted)} more" if wanted else "more memory"
        super().__init__(
            f"the GPU is out of memory: {what} was asked for, and {format_size(free)} is free; "
            "give it less GPU memory or a shorter context"
        )
