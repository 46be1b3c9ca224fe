"""Wheels without an index: of what is installed here, packed again, and of packages made up."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def repack(name: str, folder: Path) -> Path:
    """The wheel that an installed package came from, but for what pip added."""
    found = distribution(name)
    tags = [
        line.partition(": ")[2].split("-")
        for line in (found.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    ]
    tag = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    path = folder / f"{found.name.replace('-', '_')}-{found.version}-{tag}.whl"
    files = {
        str(file): Path(str(file.locate())).read_bytes()
        for file in found.files or []
        if ".." not in file.parts
        and "__pycache__" not in file.parts
        and file.name not in ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
    }
    (info,) = {file.split("/")[0] for file in files if file.split("/")[0].endswith(".dist-info")}
    _write(path, files, info)
    return path


def repack_closure(names: Iterable[str], folder: Path) -> None:
    """Packs installed packages and all that they need here."""
    queue, done = [Requirement(name) for name in names], set()
    while queue:
        wanted = queue.pop()
        key = (wanted.name.lower(), tuple(sorted(wanted.extras)))
        if key in done:
            continue
        done.add(key)
        found: Distribution = distribution(wanted.name)
        repack(wanted.name, folder)
        for text in found.requires or []:
            inner = Requirement(text)
            extras = ["", *wanted.extras]
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                queue.append(inner)


def invent(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    tag: str = "py3-none-any",
    files: Mapping[str, str] | None = None,
    metadata: str = "",
) -> Path:
    """A wheel with these files."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    content = {
        **{path: text.encode() for path, text in (files or {}).items()},
        f"{info}/METADATA": ("\n".join(lines) + "\n" + metadata).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    _write(path, content, info)
    return path


def _write(path: Path, files: Mapping[str, bytes], info: str) -> None:
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record)
