"""The size and the names of what is in the folders: what a newcomer has to take in at once."""

import ast
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.test_imports import package_files

MOST_FILES = 22  # of sources in a folder, __init__.py included
MOST_LINES = 450  # of a file of sources
SOURCES = (".py", ".cpp", ".h", ".inl", ".js", ".css")


@pytest.fixture(scope="module")
def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a clone")
    paths = (ROOT / name for name in listed.stdout.splitlines() if name.endswith(SOURCES))
    return [path for path in paths if path.exists()]


def test_folders_are_small(sources: list[Path]) -> None:
    counted = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources)
    counted.pop("runtime/native", None)  # kernels, and what Python knows of them
    assert {folder: count for folder, count in counted.items() if count > MOST_FILES} == {}


def test_files_are_short(sources: list[Path]) -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines())
               for path in sources}  # fmt: skip
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_two_classes_have_one_name() -> None:
    defined = defaultdict(list)
    for path in package_files(ROOT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: where for name, where in defined.items() if len(where) > 1} == {}
