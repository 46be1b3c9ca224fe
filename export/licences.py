"""The licences of what is in an app: of each wheel, by its own files and words."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..bundle.licences import is_licence
from .installer.manifest import LICENCES, MODEL_LICENCES
from .requirements import Wheel

_NO_TEXT = (".py", ".pyc", ".pyi", ".so", ".h", ".json")
_LARGEST = 4 << 20  # bytes of one text


def collect_licences(wheels: Sequence[Wheel]) -> dict[str, bytes]:
    """The texts by their place in the archive, and a list of who says what: licences.json."""
    texts: dict[str, bytes] = {}
    said = []
    for wheel in wheels:
        folder = f"{LICENCES}{wheel.name}-{wheel.version}/"
        own = {f"{folder}{name}": data for name, data in _texts(wheel.path).items()}
        texts.update(own)
        said.append({
            "name": wheel.name, "version": str(wheel.version), "licence": licence_of(wheel),
            "files": sorted(name.removeprefix(LICENCES) for name in own),
        })  # fmt: skip
    texts[f"{LICENCES}licences.json"] = json.dumps(said, indent=1).encode() + b"\n"
    return texts


def licence_of(wheel: Wheel) -> str | None:
    """As the package's metadata names it."""
    words = wheel.metadata
    if words["License-Expression"]:
        return str(words["License-Expression"])
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in words.get_all("Classifier", [])
        if text.startswith("License ::")
    ]
    short = str(words["License"] or "").strip()
    return ", ".join(classifiers) or (short if short and "\n" not in short else None)


def model_licences(bundle: Path, given: Sequence[Path]) -> dict[str, Path]:
    """Those of the model: files that were given, and what lies in the bundle's folder."""
    there = [path for path in bundle.iterdir() if path.is_file() and is_licence(path.name)]
    return {f"{MODEL_LICENCES}{path.name}": path for path in [*sorted(there), *given]}


def _texts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {
            item.filename: archive.read(item)
            for item in archive.infolist()
            if not item.is_dir() and item.file_size <= _LARGEST and _is_licence(item.filename)
        }


def _is_licence(name: str) -> bool:
    within = re.search(r"\.dist-info/licen[cs]es?/", name) is not None
    return (within or is_licence(name.rpartition("/")[2])) and not name.endswith(_NO_TEXT)
