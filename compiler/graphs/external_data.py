"""The weight file beside a graph, written tensor by tensor and row by row."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...bundle.weight_index import WeightIndex, WeightPlace, write_index

_INLINE_BYTES = 1024
_ALIGNMENT = 64


class ExternalData:
    """Tensors one after the other, each aligned to 64 bytes; small ones are in the graph as well.

    `write_index` says where they lie, for those who do not read the graph.
    """

    def __init__(self, path: Path):
        self._path, self._name = path, path.name
        self._file = path.open("wb")
        self._places: dict[str, WeightPlace] = {}

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        parts: Iterable[np.ndarray],
    ) -> TensorProto:
        """Appends a tensor, given as parts that follow each other along its first axis; returns an
        initializer that refers to it."""
        kind = np.dtype(dtype)
        nbytes = prod(shape) * kind.itemsize
        arrays: Iterable[np.ndarray] = (np.ascontiguousarray(part, kind) for part in parts)
        if nbytes < _INLINE_BYTES:
            arrays = list(arrays)
        offset = self._append(name, shape, arrays, nbytes)
        self._places[name] = WeightPlace(kind.name, tuple(shape), offset)
        if isinstance(arrays, list):
            whole = np.concatenate([array.reshape(-1) for array in arrays])
            return numpy_helper.from_array(whole.reshape(shape), name)
        return self._refer(name, shape, helper.np_dtype_to_tensor_dtype(kind), offset, nbytes)

    def add_int4(
        self, name: str, shape: tuple[int, int], parts: Iterable[np.ndarray]
    ) -> TensorProto:
        """An ONNX INT4 matrix, given as packed bytes, uint8 `[rows, columns / 2]`; it is not in
        the index."""
        nbytes = prod(shape) // 2
        offset = self._append(name, shape, map(np.ascontiguousarray, parts), nbytes)
        return self._refer(name, shape, TensorProto.INT4, offset, nbytes)

    def _append(
        self, name: str, shape: tuple[int, ...], arrays: Iterable[np.ndarray], nbytes: int
    ) -> int:
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        for array in arrays:
            self._file.write(array.data)
        if self._file.tell() - offset != nbytes:
            raise RuntimeError(f"{name} is not as long as its shape {list(shape)}")
        return offset

    def _refer(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, nbytes: int
    ) -> TensorProto:
        tensor = TensorProto(
            name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL
        )
        place = {"location": self._name, "offset": offset, "length": nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write_index(self, loaded_bytes: int) -> None:
        """Beside the weights, as `.json`; loaded_bytes: what all of them take in ONNX Runtime."""
        index = WeightIndex(loaded_bytes, self._file.tell(), self._places)
        write_index(self._path.with_suffix(".json"), index)

    def close(self) -> None:
        self._file.close()
