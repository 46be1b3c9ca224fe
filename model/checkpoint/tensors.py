"""Reading parameters out of the files of a checkpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ...errors import CheckpointError
from ..families.names import Location
from ..parameters import Shape
from .encodings.encoding import EncodedMatrix
from .headers import StoredTensor

if TYPE_CHECKING:
    import torch

TILE_BYTES = 64 << 20

_TORCH_DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "I32": "int32", "I8": "int8", "U8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class StoredParameter:
    """Where a parameter of `shape` is stored.

    tensors: the one that it is part of, or those of an encoded matrix, by what they are to it.
    """

    shape: Shape
    location: Location
    tensors: Mapping[str, StoredTensor]
    matrix: EncodedMatrix | None = None

    @property
    def names(self) -> list[str]:
        return [tensor.name for tensor in self.tensors.values()]


class TensorReader:
    """Reads parameters one by one, from several threads if need be. Files are open until the `with`
    block ends; nothing is mapped, so that memory holds what was asked for and no more."""

    def __init__(self, sources: Mapping[str, StoredParameter]):
        self._sources = sources
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def read(self, parameter: str) -> torch.Tensor:
        """A parameter in the float type that it is stored in, or in float32 if it is encoded.

        Raises:
            CheckpointError: its file cannot be read.
        """
        source = self._sources[parameter]
        if source.matrix is not None:
            return self._decode(source, source.matrix)
        if _is_transposed(source):
            rows = 1 if source.location.place.rows == "all" else 2
            stored = (source.shape[1], rows * source.shape[0])
            return _select_rows(self._read_plain(source, 0, stored).T, source).contiguous()
        return self._read_rows(source, 0, source.shape[0])

    def tiles(self, parameter: str, max_bytes: int = TILE_BYTES) -> Iterator[torch.Tensor]:
        """A parameter in float32, as consecutive blocks of rows of up to max_bytes each (but at
        least one row).

        A plain one is never whole in memory, unless it is stored transposed.

        Raises:
            CheckpointError: its file cannot be read, or it holds numbers that are not finite, which
                quantizing would hide.
        """
        import torch

        source = self._sources[parameter]
        rows = source.shape[0]
        step = max(1, max_bytes // (4 * prod(source.shape[1:])))
        whole = self.read(parameter) if source.matrix or _is_transposed(source) else None
        for start in range(0, rows, step):
            count = min(step, rows - start)
            if whole is None:
                block = self._read_rows(source, start, count)
            else:
                block = whole[start : start + count]
            block = block.to(torch.float32)
            if not all(bool(torch.isfinite(end)) for end in torch.aminmax(block)):
                raise CheckpointError(
                    f"tensor {source.location.name} holds NaN or infinite values; "
                    "download the checkpoint again"
                )
            yield block

    def _read_rows(self, source: StoredParameter, start: int, count: int) -> torch.Tensor:
        """`count` rows of a parameter that is stored plainly and not transposed."""
        rows, row = source.location.place.rows, source.shape[1:]
        if rows in ("even", "odd"):
            both = self._read_plain(source, 2 * start * prod(row), (2 * count, *row))
            return both[int(rows == "odd") :: 2].contiguous()
        first = start + (source.shape[0] if rows == "second" else 0)
        return self._read_plain(source, first * prod(row), (count, *row))

    def _read_plain(self, source: StoredParameter, begin: int, shape: Shape) -> torch.Tensor:
        """Elements of the one tensor of `source`, from `begin` within the expert's part on."""
        (tensor,) = source.tensors.values()
        if source.location.expert is not None:
            rows = 1 if source.location.place.rows == "all" else 2
            begin += source.location.expert * rows * prod(source.shape)
        return self._read_elements(tensor, begin, shape)

    def _decode(self, source: StoredParameter, matrix: EncodedMatrix) -> torch.Tensor:
        expert = source.location.expert or 0
        tensors = {
            part: self._read_elements(tensor, expert * prod(shape), shape)
            for part, tensor in source.tensors.items()
            for shape in (matrix.parts[part].shape,)
        }
        if matrix.by_row:
            chosen = {part: _select_rows(tensor, source) for part, tensor in tensors.items()}
            return matrix.decode(chosen).contiguous()
        return _select_rows(matrix.decode(tensors), source).contiguous()

    def _read_elements(self, tensor: StoredTensor, begin: int, shape: Shape) -> torch.Tensor:
        """Consecutive elements of a tensor, as a tensor of `shape`."""
        import torch

        dtype = getattr(torch, _TORCH_DTYPES[tensor.dtype])
        data = torch.empty(prod(shape) * dtype.itemsize, dtype=torch.uint8)
        view, offset = data.numpy().data, tensor.offset + begin * dtype.itemsize
        try:
            descriptor = self._open(tensor.file)
            while view:
                count = os.preadv(descriptor, [view], offset)
                if count == 0:
                    raise OSError("the file ends before it")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} cannot be read ({error})"
            ) from error
        return data.view(dtype).reshape(shape)

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[file]


def _is_transposed(source: StoredParameter) -> bool:
    return source.location.place.transposed and len(source.shape) == 2


def _select_rows(matrix: torch.Tensor, source: StoredParameter) -> torch.Tensor:
    """The rows that belong to the parameter, of `[out, ...]` that may hold those of two."""
    rows, half = source.location.place.rows, source.shape[0]
    if rows == "all":
        return matrix
    if rows == "first":
        return matrix[:half]
    if rows == "second":
        return matrix[half:]
    return matrix[int(rows == "odd") :: 2]
