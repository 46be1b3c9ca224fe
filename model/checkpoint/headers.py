"""Headers of safetensors files: which tensors a file holds, and where; and comparing tensors byte
by byte. Standard library only.

A file is 8 bytes of header length (little-endian), the header in JSON, and the data; offsets count
from the data's start (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..parameters import Shape

_PIECE = 1 << 22  # bytes

# Bytes of an element, of the types that checkpoints are made of.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: as the header names it. offset: in bytes from the file's start."""

    name: str
    file: Path
    dtype: str
    shape: Shape
    offset: int
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by their names. Reads no weights.

    Raises:
        CheckpointError: it is no safetensors file, or it ends before its tensors do.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header ends after the file's {size} bytes")
            entries = json.loads(stream.read(length))
        if not isinstance(entries, dict):
            raise ValueError("its header is not a JSON object")
        entries.pop("__metadata__", None)
        tensors = {
            name: _stored_tensor(file, name, entry, 8 + length, size)
            for name, entry in entries.items()
        }
        end = max((t.offset + t.nbytes for t in tensors.values()), default=8 + length)
        if end != size:
            raise ValueError(f"its tensors end at byte {end} of {size}")
        return tensors
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); it may be truncated: download it again"
        ) from error


def _stored_tensor(file: Path, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    """One entry of a header. data: offset of the file's data; size: of the file. Raises ValueError
    where the entry makes no sense or lies beyond the end."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        valid = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(dtype, str) or begin > end:
        raise ValueError(f"its header describes tensor {name} in a way that makes no sense")
    if dtype in DTYPE_BYTES and end - begin != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"tensor {name} has {end - begin} bytes, which {shape} of {dtype} is not")
    if data + end > size:
        raise ValueError(f"tensor {name} ends at byte {data + end} of {size}")
    return StoredTensor(name, file, dtype, shape, data + begin, end - begin)


def is_copy(tensor: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are the same, byte for byte.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
        return False
    starts = range(0, tensor.nbytes, _PIECE)
    return all(_read_bytes(tensor, start) == _read_bytes(other, start) for start in starts)


def is_zero(tensor: StoredTensor) -> bool:
    """Whether all elements are zero.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return not any(any(_read_bytes(tensor, start)) for start in range(0, tensor.nbytes, _PIECE))


def _read_bytes(tensor: StoredTensor, start: int) -> bytes:
    """Up to so many bytes of a tensor from `start` on."""
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset + start)
            return stream.read(min(_PIECE, tensor.nbytes - start))
    except OSError as error:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} cannot be read ({error})"
        ) from error
