"""Activations of all tokens of a run: in memory, or in files where they are too many."""

from __future__ import annotations

import errno
import os
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..sizes import format_size

IN_MEMORY = 1 << 30  # bytes of all of a run's arrays together, beyond which they lie on disk


class ActivationStore:
    """Makes arrays; those on disk are files of `folder` that are mapped into memory."""

    def __init__(self, folder: Path, nbytes: int):
        """nbytes: of all arrays that it will be asked for."""
        self._folder = folder
        self._on_disk = nbytes > IN_MEMORY

    def array(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32
    ) -> np.ndarray:
        """Zeroes at first.

        Raises:
            InputError: the disk has no room.
        """
        if not self._on_disk:
            return np.zeros(shape, dtype)
        path, nbytes = self._folder / f"{name}.bin", prod(shape) * np.dtype(dtype).itemsize
        try:
            with path.open("wb") as file:
                _reserve(file.fileno(), nbytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            path.unlink(missing_ok=True)
            raise InputError(
                f"{self._folder} has no room for activations of {format_size(nbytes)}; free some "
                "space there, or take fewer --tokens"
            ) from error
        return np.memmap(path, dtype, "r+", shape=shape)


def _reserve(descriptor: int, nbytes: int) -> None:
    """Takes the room on the disk at once: a mapping that finds none later ends the process."""
    if nbytes:
        os.posix_fallocate(descriptor, 0, nbytes)
