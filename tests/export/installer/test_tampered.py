"""Apps that somebody or something has changed: all of them are refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pocketmoe.export.installer.main import main
from pocketmoe.tests.support.app_folder import members, refused


def rewrite(out: Path, content: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(out, "w:gz") as tar:
        for item, data in content:
            if item.isreg():
                item.size = len(data)
            tar.addfile(item, io.BytesIO(data) if item.isreg() else None)
    return out


class TestTampered:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(12))
    def test_a_byte_is_flipped_or_the_end_is_missing(
        self, seed: int, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """Anywhere in the compressed archive."""
        chance, data = random.Random(seed), bytearray(second.read_bytes())
        if seed % 3:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(len(data) - 1000) :]
        path = tmp_path / "bad.tar.zst"
        path.write_bytes(data)
        refused(["install", path], capsys, to=root)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(8))
    def test_a_byte_is_flipped_in_a_file(
        self, seed: int, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """The archive itself is sound: some file of it is not."""
        chance, content = random.Random(seed), members(second)
        index = seed if seed < len(content) else chance.randrange(len(content))
        item, data = content[index]
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        content[index] = (item, bytes(changed))
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)

    @pytest.mark.slow
    def test_a_file_is_shorter_longer_missing_twice_or_new(
        self, second: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = members(second)
        at = next(i for i, (item, _) in enumerate(content) if item.name.endswith("/text"))
        item, data = content[at]
        new = tarfile.TarInfo("app/bundle/more")
        for bad, words in (
            ([(item, data[:-1])], "text is damaged"),
            ([(item, data + b"x")], "text is damaged"),
            ([], "lacks bundle/text"),
            (None, "lacks SHA256SUMS"),
            ([(item, data), (item, data)], "twice"),
            ([(item, data), (new, b"x")], "'bundle/more', which its manifest does not"),
        ):
            new_content = [*content[:at], *(bad or []), *content[at + 1 :]]
            if bad is None:
                new_content = [one for one in content if not one[0].name.endswith("SUMS")]
            path = rewrite(tmp_path / "bad.tar.gz", new_content)
            refused(["install", path], capsys, words, to=root)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name",
        [
            "../evil", "app/../evil", "app/bundle/../../../evil", "/tmp/evil", "evil",
            "app/./bundle/text", "app//bundle/text", "app/wheels/../../evil", "app/", "app",
        ],
    )  # fmt: skip
    def test_a_name_that_leads_out(
        self, name: str, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        content = [*members(second), (tarfile.TarInfo(name), b"evil")]
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)
        assert not [path for path in tmp_path.rglob("*evil*") if path.name != "bad.tar.gz"]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                                      tarfile.CHRTYPE])  # fmt: skip
    def test_what_is_no_plain_file(
        self, kind: bytes, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """A link to a folder outside, and then a file in it."""
        link = tarfile.TarInfo("app/bundle/link")
        link.type, link.linkname = kind, str(tmp_path)
        inside = tarfile.TarInfo("app/bundle/link/evil")
        content = members(second)
        bad = [content[0], (link, b""), (inside, b"evil"), *content[1:]]
        words = "which no exported app does"
        refused(["install", rewrite(tmp_path / "bad.tar.gz", bad)], capsys, words, to=root)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2}, {"name": "../x"}, {"name": 3}, {"files": []}, {"files": {"../x": {}}},
            {"files": {"bundle/a/../../x": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"current": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"bundle/\x1b[2J": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"bundle/a": {"size": -1, "sha256": "0" * 64}}},
            {"files": {"bundle/a": {"size": 1, "sha256": "x"}}},
            {"runtime": None, "model": None}, {"runtime": {"python": "3.11"}},
            {"runtime": {"python": "x"}}, {"model": 3}, {"model": "\x1b[2J"},
        ],
    )  # fmt: skip
    def test_a_manifest_that_cannot_be_trusted(
        self, change: Mapping[str, object], second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        (item, data), *rest = members(second)
        content = [(item, json.dumps({**json.loads(data), **change}).encode()), *rest]
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)

    def test_a_folder_with_a_link_a_new_file_or_none(
        self, second: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for item, data in members(second):
            path = tmp_path / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        app = tmp_path / "app"
        (app / "bundle/more").write_text("x")
        refused(["install", app], capsys, "'bundle/more', which its manifest", to=root)
        (app / "bundle/more").unlink()
        os.replace(app / "bundle/text", tmp_path / "text")
        refused(["install", app], capsys, "lacks bundle/text", to=root)
        os.symlink(tmp_path / "text", app / "bundle/text")
        refused(["install", app], capsys, "no plain file", to=root)

    def test_no_archive(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
        (tmp_path / "empty.tar").write_bytes(b"")
        for name in ("x.tar", "empty.tar", "missing.tar"):
            refused(["install", tmp_path / name], capsys, name, to=root)
        other = tarfile.TarInfo("a/b")
        refused(["install", rewrite(tmp_path / "y.tar.gz", [(other, b"")])], capsys,
                "does not begin with a manifest", to=root)  # fmt: skip

    def test_content_that_is_not_expected(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(["install", second, "--expect", "0" * 64], capsys, "not what --expect", to=root)
        identity = hashlib.sha256(members(second)[0][1]).hexdigest()
        assert main(["install", str(second), "--to", str(root), "--expect", identity], root) == 0
