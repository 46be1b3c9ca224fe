"""The folder of an installed app, as tests look at it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketmoe.export.contents import Content
from pocketmoe.export.installer.main import main
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE

UNIT = ROOT / "export/app.service"
Parts = dict[str, Content]
Build = Callable[..., Path]


def snapshot(root: Path) -> dict[str, str]:
    """Every file and link below `root`, but for what running Python caches, and the lock."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and "__pycache__" not in name and name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def says(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [root / "run", *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout.strip()


def refused(
    arguments: list[str | Path], capsys: pytest.CaptureFixture[str], *words: str, to: Path
) -> None:
    """The command fails in one line, and the app is what it was."""
    before = snapshot(to)
    capsys.readouterr()
    assert main([*map(str, arguments), "--to", str(to)], to) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert snapshot(to) == before


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    import zstandard

    with zstandard.open(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return [(item, file.read()) for item in tar if (file := tar.extractfile(item))]
