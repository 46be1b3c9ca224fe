"""The user's folders, by the environment."""

from __future__ import annotations

import os
from pathlib import Path


def config_folder() -> Path:
    """Where the user's files are: $POCKETMOE_CONFIG, or pocketmoe below the XDG folder."""
    if chosen := os.environ.get("POCKETMOE_CONFIG"):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.config")) / "pocketmoe"


def state_folder() -> Path:
    """Where what the user did is kept: pocketmoe below the XDG folder."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.local/state")) / "pocketmoe"
