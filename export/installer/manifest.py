"""The manifest of an exported app: what the archive holds. This file owns its format, for the
export, which writes it, and for the device, which trusts nothing in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InstallError

FORMAT = 1
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
INSTALLER, README, UNIT = "install.pyz", "README.txt", "app.service"
WHEELS, BUNDLE, LICENCES, MODEL_LICENCES = "wheels/", "bundle/", "licences/", "licences/model/"
LARGEST_MANIFEST = 64 << 20  # bytes; a bundle of 10,000 experts has 2 MB
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """A file of the archive: bytes, and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Runtime:
    """What runs bundles. machine: as `uname -m` says; python: "3.11"; glibc: the oldest that will
    do, "2.34". installed_bytes: of the wheels' files, unpacked. kernels: whether pocketmoe's wheel
    has the native library."""

    version: str
    machine: str
    python: str
    glibc: str
    extras: tuple[str, ...]
    installed_bytes: int
    kernels: bool


@dataclass(frozen=True)
class App:
    """The content of an archive; a part that it lacks is None.

    name: of the app; None for a runtime that fits any. model: what the bundle is, for people.
    identity: SHA-256 of the manifest, and so of all content.
    """

    name: str | None
    runtime: Runtime | None
    model: str | None
    files: Mapping[str, Item]
    identity: str = ""

    def part(self, part: str) -> dict[str, Item]:
        """The files of "runtime" or "bundle"."""
        return {name: item for name, item in self.files.items() if part_of(name) == part}

    def part_id(self, part: str) -> str:
        """Equal for equal content, whatever else is in the archive."""
        lines = "".join(
            f"{item.sha256}  {name}\n" for name, item in sorted(self.part(part).items())
        )
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


def part_of(name: str) -> str:
    if name == README:
        return "archive"
    return "bundle" if name.startswith((BUNDLE, MODEL_LICENCES)) else "runtime"


def write_manifest(app: App) -> bytes:
    runtime = None if app.runtime is None else vars(app.runtime)
    data = {
        "format": FORMAT, "name": app.name, "runtime": runtime, "model": app.model,
        "files": {
            name: {"size": item.size, "sha256": item.sha256}
            for name, item in sorted(app.files.items())
        },
    }  # fmt: skip
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


def read_manifest(data: bytes) -> App:
    """Raises InstallError where it is not one that this installer can trust."""
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise TypeError("no object")
        if found.get("format") != FORMAT:
            raise InstallError(
                f"the app has format {found.get('format')!r}, this installer reads {FORMAT}; "
                "use the installer that came with it"
            )
        files = {_safe(name): _item(value) for name, value in found["files"].items()}
        app = App(
            _app_name(found["name"]), _runtime(found["runtime"]), _model(found["model"]), files,
            hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InstallError(
            f"the app's manifest is damaged ({type(error).__name__}: {error})"
        ) from error
    if app.runtime is None and app.model is None:
        raise InstallError("the app's manifest names neither a runtime nor a bundle")
    return app


def _runtime(data: Any) -> Runtime | None:
    if data is None:
        return None
    texts = {name: data[name] for name in ("version", "machine", "python", "glibc")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("runtime: a text is expected")
    for name in ("python", "glibc"):
        if not re.fullmatch(r"\d+\.\d+", texts[name]):
            raise ValueError(f"{name} {texts[name]!r}")
    extras = tuple(str(extra) for extra in data["extras"])
    size, kernels = data["installed_bytes"], data["kernels"]
    return Runtime(**texts, extras=extras, installed_bytes=_size(size), kernels=bool(kernels))


def _item(data: Any) -> Item:
    if not isinstance(data["sha256"], str) or not _HASH.fullmatch(data["sha256"]):
        raise ValueError("a hash is not a SHA-256")
    return Item(_size(data["size"]), data["sha256"])


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise ValueError(f"size {value!r}")
    return value


def _app_name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not _NAME.fullmatch(value)):
        raise ValueError(f"name {value!r}")
    return value


def _model(value: Any) -> str | None:
    """It is shown on terminals."""
    if value is not None and (not isinstance(value, str) or not value.isprintable()):
        raise ValueError(f"model {value!r}")
    return value


def is_name(name: str) -> bool:
    """Whether an app can have it: of files, units and URLs it becomes a part."""
    return _NAME.fullmatch(name) is not None


def _safe(name: str) -> str:
    """A name below the archive's folder, and of a place that archives have."""
    parts = name.split("/")
    known = name in (INSTALLER, README, UNIT) or name.startswith((WHEELS, BUNDLE, LICENCES))
    if not known or not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"file name {name!r}")
    return name


def sums_text(app: App, manifest: bytes) -> bytes:
    """SHA256SUMS, for `sha256sum -c`."""
    hashes = {name: item.sha256 for name, item in app.files.items()}
    hashes[MANIFEST] = hashlib.sha256(manifest).hexdigest()
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
