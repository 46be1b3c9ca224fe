"""The processes that run an installed app."""

from __future__ import annotations

import os
from pathlib import Path


def users_of(folders: list[Path]) -> list[int]:
    """Ids of the processes whose command names one of the folders, or what is in them, as far as
    this user may see: the scripts of an app name both its interpreter and its bundle."""
    names = tuple(os.fsencode(os.path.realpath(folder)) for folder in folders)
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if any(word == name or word.startswith(name + b"/") for word in words for name in names):
            found.append(int(path.name))
    return sorted(found)
