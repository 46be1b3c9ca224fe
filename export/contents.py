"""The contents of an archive, file by file: its name, its hash, and where its bytes are."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..bundle.manifest import MANIFEST, Manifest
from ..errors import BundleError
from .installer.manifest import BUNDLE, Item


@dataclass(frozen=True)
class Content:
    """A file's bytes, or the path where they are; and what they have to be."""

    item: Item
    data: bytes | None = None
    path: Path | None = None

    def open(self) -> BinaryIO:
        if self.path is not None:
            return self.path.open("rb")
        return io.BytesIO(self.data or b"")


def of_bytes(data: bytes) -> Content:
    return Content(Item(len(data), hashlib.sha256(data).hexdigest()), data=data)


def of_file(path: Path) -> Content:
    """Reads the file once for its hash."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Content(Item(size, digest.hexdigest()), path=path)


def of_bundle(root: Path, manifest: Manifest) -> dict[str, Content]:
    """The bundle's files, by the hashes of its own manifest, which writing them checks.

    Engines that are incomplete are left out, as the runtime leaves them out.

    Raises:
        BundleError: a file's name leads out of the bundle, or it is no plain file.
    """
    found = {f"{BUNDLE}{MANIFEST}": of_file(root / MANIFEST)}
    for name, record in manifest.files.items():
        if name in manifest.missing:
            continue
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
            raise BundleError(f"{path} is no file of the bundle; compile it again")
        found[f"{BUNDLE}{name}"] = Content(Item(record.size, record.sha256), path=path)
    return found


def sizes_of(contents: Mapping[str, Content]) -> dict[str, Item]:
    return {name: content.item for name, content in contents.items()}
