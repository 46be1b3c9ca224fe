"""TensorRT as it is installed: stock TensorRT, or TensorRT for RTX. Nothing is imported before it
is asked for."""

from __future__ import annotations

import ctypes
import importlib
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import EngineError

RTX, STOCK = "tensorrt-rtx", "tensorrt"
TOOLCHAINS = (RTX, STOCK)
OLDEST_STOCK = (10, 3)  # of JetPack 6
INSTALL_RTX = "pip install 'pocketmoe[tensorrt-rtx]'"
_INSTALL_STOCK = (
    "on a Jetson it comes with JetPack, so make the virtual environment with the system's Python "
    "and --system-site-packages; elsewhere: pip install tensorrt"
)
_RTX_BINDINGS = "tensorrt_rtx_bindings"
# Packages that carry the libraries which the bindings were linked to.
_RTX_CARRIERS = ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx")
_RTX_LIBRARIES = ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx")


@cache
def load_tensorrt(toolchain: str) -> ModuleType:
    """The Python module of a toolchain, "tensorrt-rtx" or "tensorrt". Neither needs a driver to be
    loaded.

    Raises:
        EngineError: it is not installed, does not load, or is of a version that cannot be used.
    """
    if toolchain == RTX:
        return _load_rtx()
    if toolchain == STOCK:
        return _load_stock()
    raise EngineError(f"there is no toolchain {toolchain!r}: choose {' or '.join(TOOLCHAINS)}")


def is_installed(toolchain: str) -> bool:
    """Whether its module is there; it may still not load."""
    names = ("tensorrt_rtx", _RTX_BINDINGS) if toolchain == RTX else ("tensorrt",)
    return any(_find(name) is not None for name in names)


def _load_rtx() -> ModuleType:
    if _find("tensorrt_rtx") is not None:
        return _import("tensorrt_rtx", "TensorRT for RTX", INSTALL_RTX)
    if _find(_RTX_BINDINGS) is None:
        raise EngineError(f"TensorRT for RTX is not installed: {INSTALL_RTX}")
    libraries = rtx_libraries()
    for library in libraries:
        try:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise EngineError(
                f"TensorRT for RTX does not load ({error}); install it again: {INSTALL_RTX}"
            ) from error
    module = _import(_RTX_BINDINGS, "TensorRT for RTX", INSTALL_RTX)
    linked = libraries[0].name.partition(".so.")[2]
    if not f"{module.__version__}.".startswith(f"{linked}."):
        raise EngineError(
            f"TensorRT for RTX is installed in two versions, {module.__version__} of its Python "
            f"module and {linked} of its libraries: {INSTALL_RTX}"
        )
    return module


def rtx_libraries() -> list[Path]:
    """The libraries' files, in the order in which they are loaded."""
    for carrier in _RTX_CARRIERS:
        spec = _find(carrier)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            # The files with a whole version; what links to them may be missing or a copy.
            found = [sorted(Path(folder).glob(f"{name}.so.*.*")) for name in _RTX_LIBRARIES]
            if all(found):
                return [paths[-1] for paths in found]
    raise EngineError(
        "the libraries of TensorRT for RTX are not installed, but its Python module is: "
        f"{INSTALL_RTX}"
    )


def _load_stock() -> ModuleType:
    if _find("tensorrt") is None:
        raise EngineError(f"TensorRT is not installed: {_INSTALL_STOCK}")
    module = _import("tensorrt", "TensorRT", _INSTALL_STOCK)
    if version_numbers(module.__version__) < OLDEST_STOCK:
        raise EngineError(
            f"TensorRT {module.__version__} is too old: {'.'.join(map(str, OLDEST_STOCK))} "
            "(JetPack 6) is the oldest that works"
        )
    return module


def version_numbers(text: str) -> tuple[int, ...]:
    """`10.3.0.26` as numbers; what follows them is left out."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _find(name: str) -> ModuleSpec | None:
    """Where a package is; None too for a folder of type stubs alone."""
    if name in sys.modules:  # a module without a spec would be an error
        return ModuleSpec(name, None, origin="loaded")
    spec = find_spec(name)
    return spec if spec is not None and spec.origin is not None else None


def _import(name: str, label: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The package is there, and its compiled part is not: that is made for one Python version.
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise EngineError(
            f"the installed {label} is not made for Python {python} ({error}); use a version that "
            f"it is made for, or install it again: {remedy}"
        ) from error
    except (ImportError, OSError) as error:
        raise EngineError(f"{label} does not load ({error}); {remedy}") from error
