"""The page's files: all of them are packaged, and none asks for anything from elsewhere."""

import re
from pathlib import Path

import pytest

from pocketmoe.tests.support.paths import ROOT

PAGE = ROOT / "server" / "page"
FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())


def test_every_file_is_packaged() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["pocketmoe.server"]
    assert len(FILES) > 10
    packaged = {path for pattern in patterns for path in PAGE.parent.glob(pattern)}
    assert [path for path in FILES if path not in packaged] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_names_no_other_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?:)?//[a-z0-9-]{2,}\.[a-z]", text, re.IGNORECASE)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert len(text.splitlines()) < 300


def test_what_files_refer_to_is_there() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"from '(\.[^']+)'", text)
        if path.suffix == ".html":
            named += re.findall(r'(?:src|href)="([^"#]+)"', text)
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text)
        assert [name for name in named if not (path.parent / name).is_file()] == []
