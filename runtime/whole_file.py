"""A text file that is written beside its place and renamed when all of it is there."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..errors import InputError


class WholeFile:
    """ASCII text. A name that ends in .gz is gzipped.

    Until `finish` the path keeps what it had, and where it is a symlink, what that leads to; a
    process that is killed leaves `.NAME.PID.tmp`.

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
            self._beside = self._place.with_name(f".{self._place.name}.{os.getpid()}.tmp")
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
