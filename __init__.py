"""Compile a Mixture-of-Experts language model for a device too small for it, and run it there."""

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
    from .runtime.generation.generation import Generation
    from .runtime.generation.grammar import Grammar
    from .runtime.generation.pieces import Piece
    from .runtime.opening import open_bundle as open
    from .runtime.session import Session

    __version__: str

# Loaded with their first use, so that importing pocketmoe stays quick.
_LATE = ("Generation", "Grammar", "Piece", "Session", "__version__", "open")
__all__ = [
    "BudgetError", "BundleError", "ContextError", "EngineError", "Generation", "Grammar",
    "InputError", "Piece", "PocketMoEError", "Session", "__version__", "open",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return globals().setdefault(name, version("pocketmoe"))
    from .runtime import opening, session
    from .runtime.generation import generation, grammar, pieces

    globals().update(
        open=opening.open_bundle, Session=session.Session, Generation=generation.Generation,
        Grammar=grammar.Grammar, Piece=pieces.Piece,
    )  # fmt: skip
    return globals()[name]
