"""Sources of an app: an archive, read as a stream, or a folder that it was unpacked to."""

from __future__ import annotations

import contextlib
import importlib
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from .errors import InstallError
from .manifest import LARGEST_MANIFEST, MANIFEST

_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
# Modules with an `open` or a decompressor for zstd, where Python or the runtime has one.
_ZSTD_MODULES = ("compression.zstd", "backports.zstd", "zstandard")
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError)


class AppSource(Protocol):
    """The manifest's bytes, then each further file once: its name and its content. Names are not
    checked but for what the manifest has to say on them."""

    manifest: bytes

    def entries(self) -> Iterator[tuple[str, BinaryIO]]: ...


class Folder:
    """An unpacked archive."""

    def __init__(self, path: Path):
        self._path = path
        if not (path / MANIFEST).exists():
            raise InstallError(
                f"{path} holds no exported app; name an archive, or the folder that one was "
                "unpacked to"
            )
        with self._open(path / MANIFEST) as file:
            self.manifest = file.read(LARGEST_MANIFEST)

    def entries(self) -> Iterator[tuple[str, BinaryIO]]:
        for path in sorted(self._path.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(self._path).as_posix()
            if name == MANIFEST:
                continue
            with self._open(path) as file:
                yield name, file

    def _open(self, path: Path) -> BinaryIO:
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise InstallError(f"{path} is no plain file; unpack the app again")
            return path.open("rb")
        except OSError as error:
            raise InstallError(f"{path}: {error.strerror}; unpack the app again") from error


class Archive:
    """A .tar, .tar.gz or .tar.zst. Only what is a plain file below one folder comes out of it."""

    def __init__(self, path: Path, ends: contextlib.ExitStack):
        self._path = path
        stream, own_errors = _decompressed(path, ends)
        self._broken: tuple[type[Exception], ...] = (*_BROKEN, *own_errors)
        with self._told():
            tar = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115 - `ends` closes it
            self._tar = ends.enter_context(tar)
            self._members = self._walk()
            first = next(self._members, None)
            if first is None or first[0] != MANIFEST:
                raise InstallError(f"{path} is no exported app: it does not begin with a manifest")
            self.manifest = first[1].read(LARGEST_MANIFEST)

    def entries(self) -> Iterator[tuple[str, BinaryIO]]:
        while True:
            with self._told():
                found = next(self._members, None)
            if found is None:
                return
            yield found[0], cast(BinaryIO, _Told(found[1], self))

    def _walk(self) -> Iterator[tuple[str, BinaryIO]]:
        top = None
        for member in self._tar:
            parts = member.name.split("/")
            top = top or parts[0]
            if member.isdir() and ".." not in parts and parts[0] == top:
                continue
            if parts[0] != top or not member.isreg():
                raise InstallError(
                    f"{self._path} holds {member.name!r}, which no exported app does; get it again"
                )
            file = self._tar.extractfile(member)
            if file is not None:
                yield "/".join(parts[1:]), cast(BinaryIO, file)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Says of an archive that cannot be read that it cannot."""
        try:
            yield
        except self._broken as error:
            raise InstallError(
                f"{self._path} is damaged, or no archive ({error}); get it again"
            ) from error


class _Told:
    """A file of an archive whose errors are the archive's."""

    def __init__(self, file: BinaryIO, archive: Archive):
        self._file, self._archive = file, archive

    def read(self, nbytes: int) -> bytes:
        with self._archive._told():
            return self._file.read(nbytes)


def open_source(path: Path, ends: contextlib.ExitStack) -> AppSource:
    """path: an archive, or the folder that one was unpacked to."""
    if path.is_dir():
        return Folder(path)
    return Archive(path, ends)


def _decompressed(
    path: Path, ends: contextlib.ExitStack
) -> tuple[BinaryIO, tuple[type[Exception], ...]]:
    """The archive's bytes, and what reading them may raise besides the usual."""
    try:
        file = ends.enter_context(path.open("rb"))
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from error
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == _GZIP:
        import gzip

        return cast(BinaryIO, ends.enter_context(gzip.open(file))), ()
    if magic != _ZSTD:
        return file, ()
    for name in _ZSTD_MODULES:
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        opened = ends.enter_context(module.open(path, "rb"))
        return cast(BinaryIO, opened), (module.ZstdError,)
    try:
        command = ["zstd", "-dcq", "--", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise InstallError(
            "this machine cannot read zstd: install the package zstd, or export to a name that "
            "ends in .tar.gz"
        ) from error
    assert process.stdout is not None
    ends.callback(process.wait)
    ends.callback(process.kill)
    return cast(BinaryIO, process.stdout), ()
