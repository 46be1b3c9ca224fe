"""XXH64 checksums of memory, through the native library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .library import load_library


def find_xxh64() -> Callable[[np.ndarray], str] | None:
    """XXH64 with seed 0 of contiguous bytes (uint8), in hexadecimal; None without the library."""
    library = load_library()
    if library is None:
        return None
    function = library.pm_xxh64

    def xxh64(data: np.ndarray) -> str:
        if data.dtype != np.uint8 or not data.flags.c_contiguous:
            raise ValueError("a checksum is made of a contiguous array of uint8")
        return f"{function(data.ctypes.data, data.nbytes):016x}"

    return xxh64
