"""The wheels that a runtime needs on a platform, got by pip and checked for completeness.

pip evaluates markers such as `python_version < "3.11"` for the Python that runs it, whatever
--python-version says. So what it got is checked here with the platform's own values, and what it
passed over is asked for in another round.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from ..errors import ExportError
from .platforms import Platform

_ROUNDS = 6
_PIP = "pip>=23"  # carried along: it installs the others on the device


@dataclass(frozen=True)
class Wheel:
    """A wheel file. name: canonical."""

    path: Path
    name: str
    version: Version
    metadata: Message

    @property
    def installed_bytes(self) -> int:
        with zipfile.ZipFile(self.path) as archive:
            return sum(item.file_size for item in archive.infolist())


def read_wheel(path: Path) -> Wheel:
    name, version, _, _ = parse_wheel_filename(path.name)
    with zipfile.ZipFile(path) as archive:
        inner = next(
            item for item in archive.namelist()
            if item.endswith(".dist-info/METADATA") and item.count("/") == 1
        )  # fmt: skip
        text = archive.read(inner).decode("utf-8", "replace")
    return Wheel(path, canonicalize_name(name), version, Parser().parsestr(text))


def gather_wheels(
    own: Path,
    extras: Sequence[str],
    platform: Platform,
    folder: Path,
    *,
    find_links: Path | None,
    constraint: Path | None,
) -> list[Wheel]:
    """All wheels of a runtime, pocketmoe's own first, pip's last; downloaded into `folder`.

    find_links: a folder of wheels to take them from, without an index. constraint: a file of
    versions, as pip reads it.

    Raises:
        ExportError: pip is missing or finds none that fit.
    """
    first = read_wheel(own)
    _check_extras(first, extras)
    asked: list[str] = [_PIP]
    found: dict[str, Wheel] = {}
    for _ in range(_ROUNDS):
        needed, missing = closure(first, extras, found, platform)
        if not missing and found:
            pips = [found["pip"]]
            return [first, *(found[name] for name in sorted(needed - {first.name, "pip"})), *pips]
        asked += missing
        _download(asked, platform, folder, find_links, constraint)
        found = {wheel.name: wheel for wheel in map(read_wheel, sorted(folder.glob("*.whl")))}
    raise ExportError(f"these requirements are not to be had for {platform}: {', '.join(missing)}")


def closure(
    first: Wheel, extras: Sequence[str], found: dict[str, Wheel], platform: Platform
) -> tuple[set[str], list[str]]:
    """The names of all wheels that `first` needs, and the requirements that none in `found` is
    for."""
    needed: set[str] = set()
    missing: list[str] = []
    done: set[tuple[str, str]] = set()
    queue: list[tuple[Wheel, str]] = [(first, extra) for extra in ("", *extras)]
    while queue:
        wheel, extra = queue.pop()
        if (wheel.name, extra) in done:
            continue
        done.add((wheel.name, extra))
        needed.add(wheel.name)
        for text in wheel.metadata.get_all("Requires-Dist", []):
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({**platform.markers(), "extra": extra}):
                continue
            name = canonicalize_name(wanted.name)
            other = first if name == first.name else found.get(name)
            if other is None or not wanted.specifier.contains(other.version, prereleases=True):
                wanted.marker = None
                if str(wanted) not in missing:
                    missing.append(str(wanted))
                continue
            queue += [(other, inner) for inner in ("", *wanted.extras)]
    return needed, missing


def _check_extras(own: Wheel, extras: Sequence[str]) -> None:
    known = own.metadata.get_all("Provides-Extra", [])
    for extra in extras:
        if extra not in known:
            raise ExportError(f"pocketmoe has no extra {extra!r}: it has {', '.join(known)}")


def _download(
    asked: Sequence[str],
    platform: Platform,
    folder: Path,
    find_links: Path | None,
    constraint: Path | None,
) -> None:
    if find_spec("pip") is None:
        raise ExportError("this Python has no pip; install it, as it gets the runtime's wheels")
    for path in folder.glob("*.whl"):
        path.unlink()
    version = "".join(map(str, platform.python))
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder),
        "--implementation", "cp", "--python-version", platform.python_text, "--abi", f"cp{version}",
    ]  # fmt: skip
    for tag in platform.tags():
        command += ["--platform", tag]
    if find_links is not None:
        command += ["--no-index", "--find-links", str(find_links)]
    if constraint is not None:
        command += ["--constraint", str(constraint)]
    done = subprocess.run(
        [*command, *asked], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        said = (lines or done.stderr.splitlines()[-1:] or ["it said nothing"])[0]
        raise ExportError(f"pip finds no wheels for {platform}: {said.removeprefix('ERROR: ')}")
