"""Compile a Mixture-of-Experts language model for a device too small for it, and run it there."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.opening import open_bundle as open
    from .runtime.session import Session

__all__ = ["Session", "__version__", "open"]
__version__ = version("pocketmoe")

_LAZY = {"open": "open_bundle", "Session": "Session"}


def __getattr__(name: str) -> Any:
    # ONNX Runtime is loaded with the first bundle, so that importing pocketmoe stays quick.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .runtime import opening

    value = getattr(opening, _LAZY[name])
    globals()[name] = value
    return value
