"""Writing an archive: a tar whose bytes follow from its content alone, as a stream."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..cpus import cpu_count
from ..errors import BundleError, InputError
from ..files import atomic_file
from ..progress import Progress
from .contents import Content
from .installer.manifest import INSTALLER

_DATE = 315_532_800  # 1980: tar frowns at older ones
_LEVEL = 3  # quantized weights hardly get smaller, whatever the effort
_BLOCK = 1 << 20
_ENDINGS = {
    ".tar.zst": "zstd", ".tzst": "zstd", ".tar.gz": "gzip", ".tgz": "gzip", ".tar": "none",
}  # fmt: skip


def compression_of(out: Path) -> str:
    """By the name's ending; raises InputError where it has none that is known."""
    for ending, kind in _ENDINGS.items():
        if out.name.lower().endswith(ending):
            return kind
    raise InputError(f"{out} is to end in .tar.zst, .tar.gz or .tar")


class _Counted:
    """A file to write to; keeps the hash and the size of what was written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size, self._digest = 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class _Checked:
    """A file to read from, which has to be what the manifest says."""

    def __init__(self, name: str, content: Content, file: BinaryIO, progress: Progress):
        self._name, self._item, self._file, self._progress = name, content.item, file, progress
        self._size, self._digest = 0, hashlib.sha256()

    def read(self, nbytes: int = -1) -> bytes:
        data = self._file.read(min(nbytes, _BLOCK) if nbytes >= 0 else _BLOCK)
        self._digest.update(data)
        self._size += len(data)
        self._progress.advance(len(data))
        return data

    def check(self) -> None:
        if (self._size, self._digest.hexdigest()) != (self._item.size, self._item.sha256):
            raise self.changed()

    def changed(self) -> BundleError:
        return BundleError(
            f"{self._name} is not what its manifest says: it is damaged, or has changed meanwhile; "
            "see `pocketmoe verify`"
        )


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raises InputError where something is at `out` that is not to be replaced."""
    if os.path.lexists(out) and not force:
        raise InputError(f"{out} exists; choose another -o, or replace it with --force")


def write_archive(
    out: Path, top: str, contents: Mapping[str, Content], progress: Progress, *, force: bool
) -> tuple[int, str]:
    """Writes `contents` in their order, below a folder `top`. Returns the archive's size and
    SHA-256. It is there as a whole or not at all.

    Raises:
        InputError: `out` exists, or has no ending that is known.
        BundleError: a file is not what its hash says.
    """
    kind = compression_of(out)
    refuse_existing(out, force=force)
    with _whole(out) as file:
        counted = _Counted(file)
        with _compressed(kind, cast(BinaryIO, counted)) as stream:
            _write_tar(stream, top, contents, progress)
    return counted.size, counted.sha256


def _write_tar(
    stream: BinaryIO, top: str, contents: Mapping[str, Content], progress: Progress
) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mtime = content.item.size, _DATE
            member.mode = 0o755 if name == INSTALLER else 0o644
            with content.open() as file:
                checked = _Checked(name, content, file, progress)
                try:
                    tar.addfile(member, cast(BinaryIO, _Exactly(checked)))
                except EOFError:
                    raise checked.changed() from None
                checked.check()


class _Exactly:
    """tar asks for so many bytes at once; a file that ends before is an error it can tell."""

    def __init__(self, file: _Checked):
        self._file = file

    def read(self, nbytes: int) -> bytes:
        parts = []
        while nbytes:
            part = self._file.read(nbytes)
            if not part:
                raise EOFError
            parts.append(part)
            nbytes -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def _compressed(kind: str, file: BinaryIO) -> Iterator[BinaryIO]:
    if kind == "none":
        yield file
    elif kind == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as out:
            yield cast(BinaryIO, out)
    else:
        import zstandard

        # One thread or many, the bytes are the same, as long as it is told to use threads at all.
        compressor = zstandard.ZstdCompressor(
            level=_LEVEL, threads=cpu_count(), write_checksum=True
        )
        with compressor.stream_writer(file, closefd=False) as writer:
            yield cast(BinaryIO, writer)


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[BinaryIO]:
    """As `atomic_file`; raises InputError where it cannot be made."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(atomic_file(out))
        except OSError as error:
            raise InputError(
                f"cannot write to {out.absolute().parent} ({error.strerror}); choose another -o"
            ) from error
        yield file
