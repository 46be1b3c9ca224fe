"""The model's licence, which goes where the model goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..bundle.licences import is_licence


def copy_licences(checkpoint: Path, root: Path) -> None:
    """Copies the licences beside a checkpoint's weights into a bundle."""
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and is_licence(path.name):
            shutil.copyfile(path, root / path.name)
