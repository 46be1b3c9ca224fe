"""Files that are there as a whole or not at all, and text that comes in as bytes."""

from __future__ import annotations

import gzip
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from .errors import InputError

PRIVATE = 0o600  # readable by its owner alone


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end of the block, when all of it
    is on the disk. Where the block raises, `path` keeps what it had.

    A process that is killed meanwhile leaves a hidden file beside, `.NAME.….tmp`. mode: of the
    new file, less the umask.

    Raises:
        OSError: the file cannot be made, written or renamed.
    """
    beside = _beside(path)
    with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def write_atomically(path: Path, data: str | bytes, *, mode: int = 0o666) -> None:
    """Puts a file into its place, as `atomic_file` does. data: text is written as UTF-8.

    Raises:
        OSError: see atomic_file.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


class WholeFile:
    """ASCII text that is written bit by bit. A name that ends in .gz is gzipped.

    Until `finish` the path keeps what it had, and where it is a symlink, what that leads to; a
    process that is killed leaves `.NAME.….tmp`.

    Raises:
        InputError: the file cannot be made, or the path is that of something else than a file.
    """

    def __init__(self, path: Path, beginning: str = "", *, force: bool = False) -> None:
        """beginning: text that is written at once. A file that is there is replaced if its first
        line is the same; any other is somebody's, and is refused, unless with `force`."""
        self.path = path
        self._place = Path(os.path.realpath(path))
        opener = gzip.open if path.name.endswith(".gz") else open
        try:
            _need_replaceable(path, self._place, None if force else beginning.partition("\n")[0])
            self._beside = _beside(self._place)
            self._file: TextIO = opener(self._beside, "wt", encoding="ascii")
            try:
                self._file.write(beginning)
                self._file.flush()
            except OSError:
                self.discard()
                raise
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error})") from error

    def write(self, text: str) -> None:
        """Raises OSError."""
        self._file.write(text)

    def finish(self) -> None:
        """Puts the file in its place; raises OSError, and discards it then."""
        try:
            self._file.close()
            self._beside.replace(self._place)
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Leaves what was at the path. What goes wrong meanwhile does not matter."""
        with suppress(OSError):  # closing writes what is left in buffers
            self._file.close()
        with suppress(OSError):
            self._beside.unlink()


def _beside(path: Path) -> Path:
    """A name of its own, so that nobody who writes the same file at the same time has it too."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _need_replaceable(path: Path, place: Path, first_line: str | None) -> None:
    """Raises OSError, or InputError for what the file must not take the place of. first_line: of
    files that it may; None for any."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; give the name of a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a device or a pipe, not a file; give another name")
    if first_line is None:
        return
    with place.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(place, "rb") if zipped else place.open("rb") as found:
            line = found.readline(200)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        line = b"?"
    if line and line.rstrip(b"\n") != first_line.encode():
        raise InputError(f"{path} is there already and is another kind of file; give another name")


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        InputError: it is empty or not UTF-8.
    """
    text = decode_utf8(path.read_bytes(), str(path))
    if not text:
        raise InputError(f"{path} is empty; give a file with text")
    return text


def decode_utf8(data: bytes, source: str) -> str:
    """`data` as text; `source` names it in the error."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 text: byte 0x{data[error.start]:02x} at position "
            f"{error.start}; convert it to UTF-8"
        ) from error
