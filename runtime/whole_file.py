"""A text file that is written beside its place and renamed when all of it is there."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import TextIO

from ..errors import InputError


class WholeFile:
    """ASCII text. A name that ends in .gz is gzipped.

    Until `finish` the path keeps what it had; a process that is killed leaves `.NAME.PID.tmp`.

    Raises:
        InputError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        opener = gzip.open if path.name.endswith(".gz") else open
        try:
            self._file: TextIO = opener(self._beside, "wt", encoding="ascii")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error})") from error

    def write(self, text: str) -> None:
        self._file.write(text)

    def finish(self) -> None:
        """Puts the file in its place; raises OSError."""
        try:
            self._file.close()
        except OSError:
            self._beside.unlink(missing_ok=True)
            raise
        self._beside.replace(self._path)

    def discard(self) -> None:
        """Leaves what was at the path."""
        self._file.close()
        self._beside.unlink(missing_ok=True)
