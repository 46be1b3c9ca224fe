"""Every path and link in the documentation leads somewhere, and a figure stands on one page."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from pocketmoe.tests.support.paths import ROOT

LONGEST_README = 200
# Files that documentation names by their name alone, as `errors.py`.
SOURCES = (".py", ".md", ".toml", ".cpp", ".h", ".inl", ".js")
NO_FILES = ("llama.cpp",)
BUILT = ".so"  # git has none of these
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n+)+")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_PATH = re.compile(r"[\w./-]+")


def pages(root: Path) -> list[Path]:
    """What is written for people to read; the change log is history, and names what was."""
    top = [root / "README.md", root / "CONTRIBUTING.md"]
    return [page for page in (*top, *sorted((root / "docs").rglob("*.md"))) if page.is_file()]


@cache
def known_files(root: Path) -> frozenset[str]:
    """The repository's files, those that git ignores left out where there is git."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        told = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout
        names = told.splitlines()
    except (OSError, subprocess.CalledProcessError):
        inside = (path.relative_to(root) for path in root.rglob("*"))
        names = [str(path) for path in inside if path.parts[0] not in ("build", ".venv")]
    return frozenset(name for name in names if (root / name).is_file())


def prose_and_code(text: str) -> tuple[str, list[str], list[str]]:
    """A page's text without code, its spans of code, and its blocks of code."""
    blocks = [found[0] for found in _FENCE.finditer(text)]
    text = _FENCE.sub("", text)
    blocks += _INDENTED.findall(text)
    text = _INDENTED.sub("", text)
    spans = [found[2] for found in _CODE.finditer(text)]
    return _CODE.sub("", text), spans, blocks


def named_paths(text: str, tops: frozenset[str]) -> Iterator[str]:
    """Paths of the repository that a page names in its code: words that begin with one of its
    folders, and names of sources. In blocks, which show other files too, only paths of sources."""
    _, spans, blocks = prose_and_code(text)
    for code, in_block in [*((span, False) for span in spans), *((b, True) for b in blocks)]:
        for word in code.split():
            path = word.strip("()'\",:;").partition("::")[0].removeprefix("./")
            if not _PATH.fullmatch(path) or path in NO_FILES or path.endswith(BUILT):
                continue
            source = path.endswith(SOURCES)
            if "/" in path:
                if path.split("/")[0] in tops and (source or not in_block):
                    yield path
            elif source and (path.endswith(".py") or not in_block):
                yield path


def lost_paths(root: Path) -> list[str]:
    """A line for each path that a page names and that is not there."""
    files = known_files(root)
    folders = {str(parent) for name in files for parent in Path(name).parents}
    names = {Path(name).name for name in files}
    tops = frozenset(name.split("/")[0] for name in files if "/" in name)
    found = []
    for page in pages(root):
        for path in dict.fromkeys(named_paths(page.read_text(encoding="utf-8"), tops)):
            there = path in files or path.rstrip("/") in folders
            if not there and not ("/" not in path and path in names):
                found.append(f"{page.relative_to(root)} names {path}")
    return found


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = defaultdict(int)
    made = set()
    for title in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        plain = _LINK.sub("", title).replace("[", "").strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return made


def lost_links(root: Path) -> list[str]:
    """A line for each relative link whose file or heading is not there."""
    found = []
    for page in pages(root):
        prose, _, _ = prose_and_code(page.read_text(encoding="utf-8"))
        for link in _LINK.findall(prose):
            if re.match(r"[a-z][a-z+.-]*:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists():
                found.append(f"{page.relative_to(root)} links to {link}")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                found.append(f"{page.relative_to(root)} links to {link}, which has no such heading")
    return found


def repeated_rows(root: Path) -> list[str]:
    """A line for each row of a table with figures that stands on two pages."""
    places: dict[str, list[str]] = defaultdict(list)
    for page in pages(root):
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            figures = [cell for cell in cells if re.match(r"[+\-]?\d", cell)]
            if line.startswith("|") and len(figures) > 1:
                places[" | ".join(cells)].append(str(page.relative_to(root)))
    return [f"{', '.join(where)}: {row}" for row, where in places.items() if len(set(where)) > 1]


def stale_mentions(root: Path) -> list[str]:
    """A line for each page that a source names and that is not there."""
    return [
        f"{name} names {page}"
        for name in sorted(known_files(root))
        if name.endswith((".py", ".cpp", ".h"))
        for page in re.findall(r"docs/[\w/-]+\.md", (root / name).read_text(encoding="utf-8"))
        if not (root / page).is_file() and name != "tests/test_docs.py"
    ]


def test_paths_are_there() -> None:
    assert lost_paths(ROOT) == []


def test_links_lead_somewhere() -> None:
    assert lost_links(ROOT) == []


def test_a_figure_stands_on_one_page() -> None:
    assert repeated_rows(ROOT) == []


def test_sources_name_pages_that_are_there() -> None:
    assert stale_mentions(ROOT) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_the_page_of_http_has_every_request_and_field() -> None:
    api = json.loads((ROOT / "server/openapi.json").read_text(encoding="utf-8"))
    text = load(ROOT / "docs/extensions/openapi_tables.py").markdown(api)
    for path, methods in api["paths"].items():
        for method in methods:
            assert f"## `{method.upper()} {path}`" in text
    for name, schema in api["components"]["schemas"].items():
        assert f"### {name}\n" in text
        for field in schema.get("properties", {}):
            assert f"| `{field}` |" in text, (name, field)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_pages(root: Path, **texts: str) -> Path:
    for name in ("runtime/session.py", "docs/pictures/a.png", "errors.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        (root / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "text",
    [
        "It is in `runtime/pager.py`.",
        "See `python runtime/lost.py --tokens 5`.",
        "In `runtime/lost/`.",
        "As `lost.py` says.",
        "So:\n\n    python runtime/lost.py\n\nand on.",
        "So:\n\n```\nruntime/lost.py   a file\n```\n",
    ],
)
def test_a_planted_path_is_found(tmp_path: Path, text: str) -> None:
    assert len(lost_paths(write_pages(tmp_path, page=text))) == 1


@pytest.mark.parametrize(
    "text",
    ["[a](lost.md)", "[a](other.md#lost)", "[a](#lost)", "![a](pictures/lost.png)"],
)
def test_a_planted_link_is_found(tmp_path: Path, text: str) -> None:
    assert len(lost_links(write_pages(tmp_path, page=f"# Page\n{text}", other="# Other"))) == 1


def test_what_is_there_is_not_found(tmp_path: Path) -> None:
    text = (
        "# Page\n## Two `words`, here\nIn `runtime/session.py` and `errors.py`, `runtime/`, "
        "`build/demo`, `config.json`; ![a](pictures/a.png) [b](other.md#a-b) [c](#two-words-here) "
        "[d](https://example.org/x)\n\n    backbone/segment_000.onnx  a graph\n"
    )
    root = write_pages(tmp_path, page=text, other="# A b\n\n| a | 1 | 2 |\n")
    assert lost_paths(root) + lost_links(root) + repeated_rows(root) == []


def test_a_planted_repetition_is_found(tmp_path: Path) -> None:
    row = "| int4 | 9.157 | 1.81e-02 |\n"
    assert len(repeated_rows(write_pages(tmp_path, page=row, other=row))) == 1
