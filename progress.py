"""How long work tells how far it is. The command line shows it; a library caller may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Stages that follow one another, each of a known number of bytes."""

    def stage(self, name: str, total: int) -> None:
        """Ends the stage before and begins one of `total` bytes."""
        ...

    def advance(self, nbytes: int) -> None: ...


class Silent:
    """A Progress that nobody watches."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, nbytes: int) -> None: ...
