"""Compile a Mixture-of-Experts language model for a device too small for it, and run it there."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .errors import (
    BudgetError,
    BundleError,
    ContextError,
    EngineError,
    InputError,
    PocketMoEError,
)

if TYPE_CHECKING:
    from .runtime.generation import Generation
    from .runtime.grammar import Grammar
    from .runtime.opening import open_bundle as open
    from .runtime.pieces import Piece
    from .runtime.session import Session

_LATE = ("Generation", "Grammar", "Piece", "Session", "open")  # loaded with their first use
__all__ = [
    "BudgetError", "BundleError", "ContextError", "EngineError", "Generation", "Grammar",
    "InputError", "Piece", "PocketMoEError", "Session", "__version__", "open",
]  # fmt: skip
__version__ = version("pocketmoe")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


def __getattr__(name: str) -> Any:
    # So that importing pocketmoe stays quick.
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .runtime import generation, grammar, opening, pieces, session

    globals().update(
        open=opening.open_bundle, Session=session.Session, Generation=generation.Generation,
        Grammar=grammar.Grammar, Piece=pieces.Piece,
    )  # fmt: skip
    return globals()[name]
