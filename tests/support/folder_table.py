"""The table of folders in docs/contributing/where-things-go.md, as rules for tests."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = "docs/contributing/where-things-go.md"
# Nothing before it knows it, nor what follows it: the commands are made of these.
FIRST_ABOVE = "analysis"
_NAME = re.compile(r"`([\w.]+)`(?: \(but ([^)]*)\))?")


@dataclass(frozen=True)
class Rule:
    """name: what is never imported, as `runtime.gpu` or `torch`. but: what of it may be."""

    name: str
    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """name: as `runtime.paging`. never: rules of its own and of the folders that it lies in."""

    name: str
    never: tuple[Rule, ...]


def read_folders(root: Path) -> dict[str, Folder]:
    """The rows of the table, by name, in its order. root: of the repository.

    Raises:
        ValueError: the page has no such table.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)/` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    folders = {
        path.replace("/", "."): Folder(path.replace("/", "."), tuple(_rules(cell)))
        for path, cell in rows
    }
    if FIRST_ABOVE not in folders:
        raise ValueError(f"{PAGE} has no table of folders with {FIRST_ABOVE}/ in it")
    names = list(folders)
    above = [name for name in names[names.index(FIRST_ABOVE) :] if "." not in name]
    for name in names[: names.index(FIRST_ABOVE)]:
        folders[name] = replace(
            folders[name], never=(*folders[name].never, *[Rule(other) for other in above])
        )
    for name, folder in folders.items():
        if (outer := folders.get(name.rpartition(".")[0])) is not None:
            both = dict.fromkeys((*outer.never, *folder.never))
            folders[name] = replace(folder, never=tuple(both))
    return folders


def _rules(cell: str) -> list[Rule]:
    return [Rule(name, tuple(re.findall(r"`([\w.]+)`", but))) for name, but in _NAME.findall(cell)]
