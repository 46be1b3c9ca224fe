"""pocketmoe's extras: what to do where one is missing."""

from __future__ import annotations

import sys
from pathlib import Path


def how_to_add(extra: str) -> str:
    """A command; in an exported app, which has neither pip nor a network, another export."""
    if (Path(sys.prefix).parent / "install.pyz").is_file():
        return f"export the app again, with --extra {extra} besides"
    return f"pip install 'pocketmoe[{extra}]'"
