"""The kernels that TensorRT for RTX compiles on the GPU at hand, kept for the next time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..files import write_atomically

_log = logging.getLogger(__name__)
KERNELS = "kernels.cache"  # beside the engines; no part of the bundle


class KernelCache:
    """One cache for all engines of a session. TensorRT for RTX itself refuses one that was made by
    another version or on another GPU."""

    def __init__(self, path: Path):
        self._path = path
        self._cache: Any = None
        self._size = 0

    def attach(self, config: Any) -> None:
        """config: an IRuntimeConfig."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read()
        config.set_runtime_cache(self._cache)

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except OSError:
            return
        if self._cache.deserialize(data):
            self._size = len(data)
        else:
            _log.info("%s is for another GPU or version, and is made again", self._path)

    def save(self) -> None:
        """Writes it where it has grown; a folder that cannot be written is no error."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        data = b"" if serialized is None else bytes(memoryview(serialized))
        if len(data) in (0, self._size):
            return
        try:
            write_atomically(self._path, data)
        except OSError as error:
            _log.info("%s is not kept (%s)", self._path, error.strerror)
