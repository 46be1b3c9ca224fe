"""Devices: a table of them, those that were measured, and how one is found by its name.

A new device is an entry in `cpus.py`, `jetson.py`, `geforce.py` or `servers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import TargetError
from .cpus import CPU, CPUS
from .geforce import GEFORCE
from .jetson import JETSON
from .measured import LOCAL, check_word, check_writable, read_targets, with_figures, write_target
from .nearest import nearest_names
from .servers import SERVERS
from .target import Target

__all__ = [
    "CPU", "LOCAL", "TARGETS", "Target", "all_targets", "check_name",
    "check_writable", "find_target", "measured_target", "write_target",
]  # fmt: skip

TARGETS: tuple[Target, ...] = (*CPUS, *JETSON, *GEFORCE, *SERVERS)


def all_targets(measured: Path | None = None) -> tuple[Target, ...]:
    """The table of devices, and what the file `measured` holds; the table's come first, and hide
    those of the file that have one of their names.

    Raises:
        TargetError: the file cannot be read, or is not such a file.
    """
    if measured is None:
        return TARGETS
    names = {target.name for target in TARGETS}
    return (*TARGETS, *(found for found in read_targets(measured) if found.name not in names))


def find_target(name: str, measured: Path | None = None) -> Target:
    """The target called `name`, of the table of devices or of the file `measured`.

    Raises:
        TargetError: there is none, and the nearest is named; or the file is damaged.
    """
    for target in TARGETS:  # first, so that a damaged file stands in the way of its own alone
        if target.name == name:
            return target
    by_name = {target.name: target for target in all_targets(measured)}
    if name in by_name:
        return by_name[name]
    if name == LOCAL:
        raise TargetError(
            f"target {LOCAL} is not measured yet: 'pocketmoe targets --measure' makes it"
        )
    nearest = nearest_names(name, by_name)
    *first, last = nearest or [""]
    meant = f"{', '.join(first)} or {last}" if first else last
    hint = f"did you mean {meant}? " if nearest else ""
    raise TargetError(
        f"no target is called {name!r}; {hint}'pocketmoe targets' lists them: for a GPU that is "
        "not there, choose one of the same compute capability"
    )


def check_name(name: str) -> str:
    """The name, if a measured target can have it.

    Raises:
        TargetError: it is of the table of devices, or not a plain word.
    """
    return check_word(name, {target.name for target in TARGETS})


def measured_target(
    name: str, description: str, figures: Mapping[str, float | None], sources: Mapping[str, str]
) -> Target:
    """A CPU with figures of its own; raises TargetError for a name that it cannot have."""
    return with_figures(check_name(name), description, figures, sources)
