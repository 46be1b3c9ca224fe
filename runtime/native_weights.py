"""A segment's weights in memory, as the native kernels read them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import BundleError
from .native.kernels import PAGE_ALIGNMENT
from .native.steps import Matrix
from .weight_index import WeightIndex

_FLOATS = {"float16": "fp16", "float32": "fp32"}
_SIGNS = {4: 0x88, 8: 0x80}  # of unsigned values whose zero is 8 or 128, made two's complement
_STEP = 1 << 24  # bytes that are read, and whose signs are changed, at a time


class Weights:
    """All tensors of a segment's .bin, in one piece of memory that `load` fills.

    Until then none of it is touched, so that it takes no room yet.
    """

    def __init__(self, index: WeightIndex, block: int):
        """block: of all that is quantized."""
        self._index, self._block = index, block
        raw = np.empty(index.size + PAGE_ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % PAGE_ALIGNMENT
        self._data = raw[start : start + index.size]

    def __contains__(self, name: str) -> bool:
        return name in self._index.places

    def vector(self, name: str) -> np.ndarray:
        """float32, of any shape, flat.

        Raises:
            KeyError: there is none.
            ValueError: it is not float32.
        """
        if self._index.places[name].dtype != "float32":
            raise ValueError(f"{name} is not float32")
        return self._bytes(name).view(np.float32)

    def matrix(self, name: str) -> Matrix:
        """The projection of that name, `.weight` and `.bias` left out.

        Raises:
            KeyError: it is not there.
            ValueError: it has a form that a matrix does not have.
        """
        weight = f"{name}.weight"
        place = self._index.places[weight]
        bias = self.vector(f"{name}.bias") if f"{name}.bias" in self else None
        if place.dtype != "uint8":
            rows, columns = place.shape
            return Matrix(_FLOATS[place.dtype], 0, rows, columns, self._bytes(weight), None, bias)
        rows, blocks, _ = place.shape
        bits, block = self._bits(weight), self._block
        scales = self.vector(f"{weight}.scales")
        if scales.size != rows * blocks:
            raise ValueError(f"{weight} has {scales.size} scales for {rows * blocks} blocks")
        return Matrix(f"int{bits}", block, rows, blocks * block, self._bytes(weight), scales, bias)

    def load(self, path: Path) -> None:
        """Reads all of it.

        Raises:
            BundleError: the file cannot be read.
        """
        view = self._data.data
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(view):
                    count = os.preadv(fd, [view[done : done + _STEP]], done)
                    if count == 0:
                        raise BundleError(f"{path} is too short; compile the bundle again")
                    done += count
            finally:
                os.close(fd)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error
        for name, place in self._index.places.items():
            if place.dtype == "uint8":
                values = self._bytes(name)
                np.bitwise_xor(values, _SIGNS[self._bits(name)], out=values)

    def _bits(self, name: str) -> int:
        bits, rest = divmod(8 * self._index.places[name].shape[-1], self._block or 1)
        if rest or bits not in _SIGNS:
            raise ValueError(f"{name} has blocks that are not of {self._block} values")
        return bits

    def _bytes(self, name: str) -> np.ndarray:
        place = self._index.places[name]
        return self._data[place.offset : place.offset + place.nbytes]
