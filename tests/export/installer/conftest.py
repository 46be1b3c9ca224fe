"""Exported apps, and one that is installed. Their runtime is a small package made up for it;
tests/export/test_export.py has the real one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pocketmoe.export.archive import write_archive
from pocketmoe.export.contents import of_bytes, of_file, sizes_of
from pocketmoe.export.installer import manifest as places
from pocketmoe.export.installer.main import main
from pocketmoe.export.installer.manifest import App, Runtime, write_manifest
from pocketmoe.export.installer_zip import make_installer
from pocketmoe.export.platforms import find_platform
from pocketmoe.progress import Silent
from pocketmoe.tests.support.app_folder import UNIT, Build, Parts, snapshot
from pocketmoe.tests.support.wheelhouse import invent, repack

PROGRAM = """
import sys
from pathlib import Path
from importlib.metadata import version
command = sys.argv[1]
if command == "--version":
    print(version("pocketmoe"))
else:
    text = (Path(sys.argv[2]) / "text").read_text()
    if text == "unreadable":
        sys.exit("error: this bundle is too new")
    print(version("pocketmoe"), command, text, *sys.argv[3:])
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes an archive: `runtime` is the version of the runtime in it, `text` the bundle's."""
    pip = repack("pip", tmp_path_factory.mktemp("pip"))

    def make(
        out: Path,
        runtime: str | None,
        text: str | None,
        *,
        name: str | None = "app",
        change: Callable[[Parts], None] = lambda parts: None,
        **facts: object,
    ) -> Path:
        parts: Parts = {places.INSTALLER: of_bytes(make_installer())}
        about = None
        if runtime is not None:
            folder = tmp_path_factory.mktemp("wheels")
            needs = ["helper"] if facts.pop("helper", True) else ["nowhere"]
            files = {"pocketmoe/__init__.py": "", "pocketmoe/__main__.py": PROGRAM}
            own = invent(folder, "pocketmoe", runtime, files=files, requires=needs)
            for wheel in (own, invent(folder, "helper", files={"helper.py": ""}), pip):
                parts[f"{places.WHEELS}{wheel.name}"] = of_file(wheel)
            parts[f"{places.LICENCES}helper-1.0/LICENSE"] = of_bytes(b"do as you like")
            parts[places.UNIT] = of_file(UNIT)
            here = find_platform(None, None)
            known = {
                "version": runtime, "machine": here.machine, "python": here.python_text,
                "glibc": "2.17", "extras": (), "installed_bytes": 10_000, "kernels": False,
            }  # fmt: skip
            about = Runtime(**{**known, **facts})  # type: ignore[arg-type]
        if text is not None:
            parts[f"{places.BUNDLE}text"] = of_bytes(text.encode())
            parts[f"{places.BUNDLE}experts/pages.bin"] = of_bytes(
                random.Random(0).randbytes(1 << 20)
            )
            parts[f"{places.MODEL_LICENCES}LICENSE"] = of_bytes(b"the model's")
        app = App(name, about, None if text is None else "a model", sizes_of(parts))
        data = write_manifest(app)
        first = {
            places.MANIFEST: of_bytes(data),
            places.SUMS: of_bytes(places.sums_text(app, data)),
        }
        change(parts)
        write_archive(out, "app", {**first, **parts}, Silent(), force=True)
        return out

    return make


@pytest.fixture(scope="module")
def first(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archives") / "first.tar.zst", "1.0", "one")


@pytest.fixture(scope="module")
def second(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archives") / "second.tar.zst", "2.0", "two")


@pytest.fixture(scope="module")
def installed_once(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("installed") / "app"
    assert main(["install", str(first), "--to", str(root)], first.parent) == 0
    return root


@pytest.fixture
def root(installed_once: Path) -> Iterator[Path]:
    """An installed app, as it was after its first installation. Environments cannot be moved, so
    every test has the same folder."""
    before = snapshot(installed_once)
    yield installed_once
    for part in ("versions", "runtimes", "bundles"):
        for path in (installed_once / part).iterdir():
            if not any(name.startswith(f"{part}/{path.name}/") for name in before):
                shutil.rmtree(path)
    for path in installed_once.glob(".new-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    new = installed_once / ".link"
    os.symlink("versions/1", new)
    os.replace(new, installed_once / "current")
    assert snapshot(installed_once) == before
