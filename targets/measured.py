"""Targets that were measured: a file of them, which belongs to the user. Its only owner.

{"format": "pocketmoe targets", "version": 1, "targets": [{"name": "local", ...}]}
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TargetError
from ..files import write_atomically
from ..numeric import is_real
from .cpus import CPU
from .target import Target

FORMAT, VERSION = "pocketmoe targets", 1
LOCAL = "local"
FIGURES = (
    "memory_bytes", "memory_bandwidth", "storage_bandwidth", "expert_bandwidth",
    "backbone_bandwidth", "layer_seconds", "expert_rate", "backbone_rate",
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_word(name: str, taken: Collection[str]) -> str:
    """The name, if it is a plain word and none of `taken`, the names of the table of devices.

    Raises:
        TargetError: it is not.
    """
    if name in taken:
        raise TargetError(f"target {name} is built in; choose another name for what is measured")
    if not _NAME.fullmatch(name):
        raise TargetError(
            f"{name[:70]!r} is no name for a target; use lower-case letters, digits, '.', '_', '-'"
        )
    return name


def with_figures(
    name: str, description: str, figures: Mapping[str, float | None], sources: Mapping[str, str]
) -> Target:
    """A CPU with figures of its own; what they lack is unknown."""
    memory = figures.get("memory_bytes")
    rest: dict[str, Any] = {key: figures.get(key) for key in FIGURES if key != "memory_bytes"}
    return replace(
        CPU,
        name=name,
        description=description,
        memory_bytes=None if memory is None else int(memory),
        sources={**{k: v for k, v in CPU.sources.items() if k not in FIGURES}, **sources},
        **rest,
    )


def read_targets(path: Path) -> tuple[Target, ...]:
    """The targets of a file; none where it does not exist.

    Raises:
        TargetError: it cannot be read, or is not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise TargetError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _damaged(path, f"it does not say that it is a file of {FORMAT}")
    if data.get("version") != VERSION:
        raise TargetError(
            f"{path} has version {str(data.get('version'))[:20]}, and this pocketmoe reads "
            f"{VERSION}; update pocketmoe, or remove the file and measure again"
        )
    items = data.get("targets")
    if not isinstance(items, list):
        raise _damaged(path, "it has no list of targets")
    targets = tuple(_parse(path, item) for item in items)
    if len({target.name for target in targets}) < len(targets):
        raise _damaged(path, "a name is there twice")
    return targets


def _parse(path: Path, item: Any) -> Target:
    if not isinstance(item, dict):
        raise _damaged(path, "a target is not an object")
    unknown = set(item) - {"name", "description", "sources", *FIGURES}
    name, description, sources = item.get("name"), item.get("description"), item.get("sources")
    if unknown or not isinstance(name, str) or not isinstance(description, str):
        raise _damaged(path, f"unknown or missing keys: {', '.join(sorted(unknown)) or 'name'}")
    if not isinstance(sources, dict) or not all(isinstance(v, str) for v in sources.values()):
        raise _damaged(path, f"{name} has no sources")
    for key in FIGURES:
        value = item.get(key)
        if value is not None and not (is_real(value) and math.isfinite(value) and value > 0):
            raise _damaged(path, f"{key} of {name} is not a number above 0")
    try:
        # Names that the table has taken since are no damage: the table's target hides the other.
        check_word(name, {CPU.name})
    except TargetError as error:
        raise _damaged(path, str(error)) from error
    return with_figures(name, description, item, sources)


def _damaged(path: Path, reason: str) -> TargetError:
    return TargetError(
        f"{path} is not a file of measured targets ({reason}); remove it and run "
        "'pocketmoe targets --measure' again"
    )


def check_writable(path: Path) -> None:
    """Raises TargetError where `write_target` would."""
    read_targets(path)
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise TargetError(f"{path} cannot be written ({folder} is no directory)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TargetError(f"{path} cannot be written (permission denied)")


def write_target(path: Path, target: Target) -> None:
    """Puts a target into the file, in place of one of the same name.

    Raises:
        TargetError: the file that is there is damaged, or it cannot be written.
    """
    kept = [other for other in read_targets(path) if other.name != target.name]
    items = [_to_json(item) for item in sorted([*kept, target], key=lambda item: item.name)]
    data = {"format": FORMAT, "version": VERSION, "targets": items}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise TargetError(f"{path} cannot be written ({error.strerror or error})") from error


def _to_json(target: Target) -> dict[str, Any]:
    figures = {key: getattr(target, key) for key in FIGURES}
    return {
        "name": target.name,
        "description": target.description,
        **{key: value for key, value in figures.items() if value is not None},
        "sources": dict(target.sources),
    }
