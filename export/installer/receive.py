"""Takes the files of an app in, and checks each of them on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import InstallError
from .manifest import INSTALLER, SUMS, App, sums_text
from .source import AppSource

_BLOCK = 1 << 20


def receive(
    source: AppSource, app: App, to: Path, wanted: set[str], advance: Callable[[int], None]
) -> None:
    """Writes the files `wanted` below `to`; the others are checked alone.

    Raises:
        InstallError: a file is missing, changed, cut, there twice, or not in the manifest.
    """
    seen: set[str] = set()
    for name, file in source.entries():
        if name in seen:
            raise InstallError(f"the app holds {name!r} twice; get it again")
        seen.add(name)
        if name == SUMS:
            text = sums_text(app, source.manifest)
            if file.read(len(text) + 1) != text:
                raise _damaged(SUMS)
            continue
        if name not in app.files:
            raise InstallError(f"the app holds {name!r}, which its manifest does not; get it again")
        _copy(file, app, name, to / name if name in wanted else None, advance)
    if missing := sorted({SUMS, *app.files} - seen):
        raise InstallError(f"the app lacks {missing[0]}; get it again")


def _copy(
    file: BinaryIO, app: App, name: str, path: Path | None, advance: Callable[[int], None]
) -> None:
    item, left, digest = app.files[name], app.files[name].size, hashlib.sha256()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(path if path is not None else os.devnull, "wb") as out:
        while left and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            out.write(block)
            left -= len(block)
            advance(len(block))
    if left or file.read(1) or digest.hexdigest() != item.sha256:
        raise _damaged(name)
    if path is not None:
        path.chmod(0o755 if name == INSTALLER else 0o644)


def _damaged(name: str) -> InstallError:
    return InstallError(f"{name} is damaged: its hash is not the manifest's; get the app again")
