"""One pages.bin: reads of it past the page cache, and whether it has changed."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ...bundle.pages import PAGE_ALIGNMENT
from ...errors import BundleError

_O_DIRECT = getattr(os, "O_DIRECT", 0)
# Two writes within a tick of the kernel's clock leave the same time behind.
_SETTLED_NS = 2_000_000_000


class Stamp(NamedTuple):
    """What changes when a file is written: nanoseconds and bytes."""

    modified: int
    changed: int
    size: int

    @property
    def settled(self) -> bool:
        """Whether a write from now on would give another stamp."""
        return time.time_ns() - max(self.modified, self.changed) > _SETTLED_NS


class PageFile:
    """Read past the page cache where the file system allows it. Usable from several threads."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._retired: list[int] = []  # descriptors that another thread may be reading from
        self._direct = _O_DIRECT != 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
        except OSError:
            self._direct = False
            self._fd = self._open_buffered()

    def _open_buffered(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{self._path} cannot be opened ({error.strerror})") from error

    def _refuse_direct(self) -> None:
        with self._lock:
            if self._direct:
                self._retired.append(self._fd)
                self._fd = self._open_buffered()
                self._direct = False

    def read(self, target: memoryview, offset: int) -> int:
        """Fills `target` from `offset`; returns the bytes read.

        Raises:
            OSError: the read failed.
            BundleError: the file system refused a direct read, and the file cannot be opened again.
        """
        if self._direct and (offset % PAGE_ALIGNMENT == 0 and len(target) % PAGE_ALIGNMENT == 0):
            try:
                return os.preadv(self._fd, [target], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # opened, but not readable this way
                    raise
        if self._direct:
            self._refuse_direct()
        count = os.preadv(self._fd, [target], offset)
        # What is in a slot need not be in the page cache too.
        os.posix_fadvise(self._fd, offset, len(target), os.POSIX_FADV_DONTNEED)
        return count

    def stamp(self) -> Stamp:
        """Of the open file; raises OSError."""
        status = os.fstat(self._fd)
        return Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_size)

    @property
    def direct(self) -> bool:
        return self._direct

    def close(self) -> None:
        """No read may be under way."""
        for fd in (*self._retired, self._fd):
            os.close(fd)
