"""The parts of a report's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .svg import Picture


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. A long one is shown when asked for."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    long: bool = False


@dataclass(frozen=True)
class Key:
    """What a mark of a picture stands for: style is its class, shape `box`, `line` or `none`."""

    style: str
    shape: str
    name: str


@dataclass(frozen=True)
class Figure:
    """scale: what the two ends of the picture's colours stand for."""

    heading: str
    caption: str
    picture: Picture
    keys: Sequence[Key] = ()
    scale: tuple[str, str] | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """name: for links to it. missing: how to get what is not there."""

    name: str
    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    missing: str = ""
