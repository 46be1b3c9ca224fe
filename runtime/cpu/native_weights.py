"""A segment's weights in memory, as the native kernels read them."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np

from ...bundle.weight_index import WeightIndex
from ...errors import BundleError
from ..native.kernels import PAGE_ALIGNMENT
from ..native.steps import WeightMatrix

_FLOATS = {"float16": "fp16", "float32": "fp32"}
_SIGNS = {4: 0x88, 8: 0x80}  # of unsigned values whose zero is 8 or 128, made two's complement
_STEP = 1 << 24  # bytes that are read, and whose signs are changed, at a time


class Weights:
    """All tensors of a segment's .bin, in one piece of memory that `load` fills.

    Until then none of it is touched, so that it takes no room yet.
    """

    def __init__(self, index: WeightIndex, block: int, file: Path):
        """block: of all that is quantized. file: where the index comes from, for messages."""
        self._index, self._block, self._file = index, block, file
        raw = np.empty(index.size + PAGE_ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % PAGE_ALIGNMENT
        self._data = raw[start : start + index.size]

    def vector(self, name: str, size: int) -> np.ndarray:
        """float32, of any shape, flat.

        Raises:
            KeyError: there is none.
            ValueError: it is not float32.
            BundleError: it does not have `size` elements.
        """
        place = self._index.places[name]
        if place.dtype != "float32":
            raise ValueError(f"{name} is not float32")
        if prod(place.shape) != size:
            raise self._wrong(name, (size,))
        return self._bytes(name).view(np.float32)

    def matrix(self, name: str, rows: int, columns: int, *, bias: bool) -> WeightMatrix:
        """The projection of that name, `.weight` and `.bias` left out.

        Raises:
            KeyError: it is not there.
            ValueError: it has a form that a matrix does not have.
            BundleError: it has other sizes.
        """
        weight = f"{name}.weight"
        place = self._index.places[weight]
        added = self.vector(f"{name}.bias", rows) if bias else None
        if place.dtype != "uint8":
            if place.shape != (rows, columns):
                raise self._wrong(weight, (rows, columns))
            values = self._bytes(weight)
            return WeightMatrix(_FLOATS[place.dtype], 0, rows, columns, values, None, added)
        bits, block = self._bits(weight), self._block
        blocks = columns // block
        if blocks * block != columns or place.shape[:-1] != (rows, blocks):
            raise self._wrong(weight, (rows, blocks))
        scales = self.vector(f"{weight}.scales", rows * blocks)
        return WeightMatrix(f"int{bits}", block, rows, columns, self._bytes(weight), scales, added)

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
        if not self._block or rest or bits not in _SIGNS:
            raise ValueError(f"{name} has blocks that are not of {self._block} values")
        return bits

    def _wrong(self, name: str, wanted: tuple[int, ...]) -> BundleError:
        shape = self._index.places[name].shape
        return BundleError(
            f"{self._file} is damaged ({name} is {list(shape)}, the model's {list(wanted)}); "
            "compile the bundle again"
        )

    def _bytes(self, name: str) -> np.ndarray:
        place = self._index.places[name]
        return self._data[place.offset : place.offset + place.nbytes]
