"""The TensorRT libraries: stock TensorRT, and TensorRT for RTX."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import EngineError

MODULES = {"tensorrt-rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}


def load_tensorrt(toolchain: str) -> Any:
    """The Python module of "tensorrt" or "tensorrt-rtx".

    Raises:
        EngineError: it is not installed, or its library does not load.
    """
    try:
        return importlib.import_module(MODULES[toolchain])
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{toolchain} cannot be loaded ({error}): pip install 'pocketmoe[{toolchain}]'"
        ) from error
