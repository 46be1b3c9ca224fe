"""Bundles that are damaged, cut or too new, and reads that fail."""

from __future__ import annotations

import errno
import re
import shutil
import threading
from pathlib import Path

import pytest

import pocketmoe
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import BundleError
from pocketmoe.runtime.paging import page_file
from pocketmoe.tests.support.session_runs import TOKENS, run


def test_a_flipped_byte_is_found_when_its_page_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    layer = read_manifest(broken).experts[0]
    for expert in range(8):  # so that whichever is chosen first is damaged
        with (broken / layer.file).open("r+b") as file:
            file.seek(layer.offsets[expert] + 5)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    with (
        pocketmoe.open(broken) as session,
        pytest.raises(BundleError, match=rf"{layer.file}.*layer 1, expert \d"),
    ):
        session.forward(TOKENS)
    with pocketmoe.open(broken, verify_pages=False) as session:
        session.forward(TOKENS)


@pytest.mark.parametrize("name", ["backbone/segment_001.bin", "experts/layer_002/pages.bin"])
def test_missing_and_cut_files_are_found_at_once(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    path = broken / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} has"):
        pocketmoe.open(broken)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        pocketmoe.open(broken)


def test_a_newer_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    newer = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, newer)
    manifest = newer / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3,', '"version": 4,', 1))
    with pytest.raises(BundleError, match="update pocketmoe"):
        pocketmoe.open(newer)


def test_damage_outside_the_pages_is_found_at_opening(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    for name in ("backbone/segment_001.bin", "experts/layer_002/engine.onnx"):
        shutil.copytree(tiny_bundle, broken, dirs_exist_ok=True)
        path = broken / name
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match=f"{re.escape(path.name)} is damaged"):
            pocketmoe.open(broken)
    shutil.copytree(tiny_bundle, broken, dirs_exist_ok=True)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"theta": 10000.0', '"theta": 9.0'))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        pocketmoe.open(broken)


def test_a_read_that_fails_twice_leaves_the_session_usable(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
    real = page_file.PageFile.read
    broken = threading.Event()

    def read(self: page_file.PageFile, target: memoryview, offset: int) -> int:
        if broken.is_set():
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target, offset)

    with pocketmoe.open(tiny_bundle) as session:
        session.set_memory_budget(session.plan.fixed + 3 * session.plan.page)
        monkeypatch.setattr(page_file.PageFile, "read", read)
        session.forward(TOKENS[:50])
        broken.set()
        with pytest.raises(BundleError, match=r"layer \d+, expert \d+ cannot be read \(Input"):
            session.forward(TOKENS[50:])
        broken.clear()
        session.reset()
        assert run(session).tobytes() == resident.tobytes()
