"""The native library, through ctypes: no Python headers, so one library serves all versions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

# As numbers of the C interface.
PRECISIONS = {"int4": 0, "int8": 1, "fp16": 2, "fp32": 3}
ACTIVATIONS = {"silu": 0, "clamped": 1}
_NAMES = ("libpocketmoe.so", "libpocketmoe.dylib", "pocketmoe.dll")


class FormatStruct(ctypes.Structure):
    _fields_ = (
        ("precision", c_int32),
        ("block", c_int32),
        ("activation", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
        ("reserved", c_int32),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("offsets", c_int64 * 9),
    )


class MatrixStruct(ctypes.Structure):
    _fields_ = (
        ("precision", c_int32),
        ("block", c_int32),
        ("wide_scales", c_int32),
        ("reserved", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pm_instruction_sets": (c_char_p, ()),
    "pm_create": (c_void_p, (c_int32, c_int32, c_char_p)),
    "pm_destroy": (None, (c_void_p,)),
    "pm_instruction_set": (c_char_p, (c_void_p,)),
    "pm_missing_threads": (c_int32, (c_void_p,)),
    "pm_memory": (c_int64, (c_void_p,)),
    "pm_scratch_bytes": (c_int64, (c_void_p, POINTER(FormatStruct), c_int64, c_int64)),
    "pm_run_experts": (
        c_int32,
        (
            c_void_p, POINTER(FormatStruct), c_int32, c_void_p, c_void_p, c_void_p, c_void_p,
            c_int64, c_void_p, c_void_p,
        ),
    ),
    "pm_expert_terms": (
        c_int32,
        (
            c_void_p, POINTER(FormatStruct), c_int32, c_void_p, c_void_p, c_void_p, c_void_p,
            c_int64, c_void_p, c_void_p,
        ),
    ),
    "pm_add_terms": (
        c_int32, (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p),
    ),
    "pm_product": (c_int32, (c_void_p, POINTER(MatrixStruct), c_int64, c_void_p, c_void_p)),
    "pm_xxh64": (c_uint64, (c_void_p, c_int64)),
    "pm_product_bytes": (c_int64, (c_void_p, POINTER(MatrixStruct), c_int64)),
    "pm_run_steps": (c_int32, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64)),
    "pm_exponentials": (None, (c_void_p, c_void_p, c_int64, c_void_p)),
    "pm_exponentials64": (None, (c_void_p, c_void_p, c_int64)),
    "pm_rotary_table": (
        None,
        (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_float, c_void_p, c_void_p),
    ),
    "pm_read": (c_uint64, (c_void_p, c_void_p, c_int64)),
}  # fmt: skip

_library: ctypes.CDLL | None = None


def library_path(folder: Path | None = None) -> Path | None:
    """The library beside this file (or in `folder`), if it was built."""
    folder = folder or Path(__file__).resolve().parent
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def load_library(path: Path | None = None) -> ctypes.CDLL | None:
    """None where there is no library, or the system cannot load it. `path`: for tests."""
    global _library
    if path is None and _library is not None:
        return _library
    found = path or library_path()
    if found is None:
        return None
    try:
        library = ctypes.CDLL(str(found))
    except OSError:
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if path is None:
        _library = library
    return library


def available() -> bool:
    return load_library() is not None


def instruction_sets(library: ctypes.CDLL | None = None) -> tuple[str, ...]:
    """Those that this machine can run, best first; empty where the library is missing."""
    library = library or load_library()
    return tuple(library.pm_instruction_sets().decode().split(",")) if library else ()
