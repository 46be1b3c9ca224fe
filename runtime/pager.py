"""The pager: expert pages in a bounded cache of slots, each page fetched by one read.

Which page gives up its slot is the policy's to say (`policy.py`).
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from ..errors import BundleError
from .bundle import Manifest
from .next_use import NextUse
from .pages import PAGE_ALIGNMENT, ExpertKey, ExpertPage, align
from .policy import CachePolicy

_O_DIRECT = getattr(os, "O_DIRECT", 0)


class PageFile:
    """One pages.bin, read past the page cache where the file system allows it."""

    def __init__(self, path: Path):
        self._path = path
        self._direct = _O_DIRECT != 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
        except OSError:
            self._reopen_buffered()

    def _reopen_buffered(self) -> None:
        self._direct = False
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{self._path} cannot be opened ({error.strerror})") from error

    def read(self, target: memoryview, offset: int) -> int:
        """Fills `target` from `offset`; returns the bytes read. Raises OSError."""
        if self._direct and offset % PAGE_ALIGNMENT == 0:
            try:
                return os.preadv(self._fd, [target], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # opened, but not readable this way
                    raise
        if self._direct:
            os.close(self._fd)
            self._reopen_buffered()
        count = os.preadv(self._fd, [target], offset)
        # What is in a slot need not be in the page cache too.
        os.posix_fadvise(self._fd, offset, len(target), os.POSIX_FADV_DONTNEED)
        return count

    @property
    def direct(self) -> bool:
        return self._direct

    def close(self) -> None:
        os.close(self._fd)


class Pager:
    """A cache of `slots` pages; `policy` says which of them leave, by default NextUse.

    The counters are since the pager was made: hits, misses, bytes_read, read_seconds (time in
    reads and in hashing), verified (pages whose hash was checked).
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        slots: int,
        *,
        verify: bool = True,
        policy: CachePolicy | None = None,
    ):
        self._root = root
        self._pages: dict[ExpertKey, ExpertPage] = {page.key: page for page in manifest.pages()}
        self._files = {layer.file: PageFile(root / layer.file) for layer in manifest.experts}
        self._unverified = set(self._pages) if verify else set()
        self._resident: dict[ExpertKey, np.ndarray] = {}
        self._policy = policy or NextUse(max(1, len(manifest.experts)))
        self._running: frozenset[ExpertKey] = frozenset()  # what the last visit named
        self._to_come: set[ExpertKey] = set()  # of those, what was not asked for yet
        self.slots = min(slots, len(self._pages))
        size = align(manifest.page_bytes, PAGE_ALIGNMENT)
        self._slab = mmap.mmap(
            -1, max(1, self.slots * size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        slab = np.frombuffer(self._slab, np.uint8)
        self._free = [slab[i * size : (i + 1) * size] for i in reversed(range(self.slots))]
        self.hits = self.misses = self.bytes_read = self.verified = 0
        self.read_seconds = 0.0

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        """A layer is about to run and to ask for the pages of these experts, each named once."""
        self._running = frozenset(ExpertKey(layer, expert) for expert in experts)
        self._to_come = set(self._running)
        self._policy.visit(layer, experts)

    def page(self, layer: int, expert: int) -> np.ndarray:
        """The bytes of an expert's page, uint8 `[slot size]`; valid until the next call.

        Raises:
            BundleError: the page cannot be read, or is not what the compiler wrote.
        """
        key = ExpertKey(layer, expert)
        self._to_come.discard(key)
        slot = self._resident.get(key)
        if slot is not None:
            self.hits += 1
            return slot
        self.misses += 1
        slot = self._free.pop() if self._free else self._resident.pop(self._victim())
        self._policy.add(key)
        try:
            self._load(self._pages[key], slot)
        except BaseException:
            self._policy.discard(key)
            self._free.append(slot)
            raise
        self._resident[key] = slot
        return slot

    def _victim(self) -> ExpertKey:
        """The page whose slot is given up.

        The running layer's pages stay while they fit together. Where they do not, as in a prompt,
        those that were used leave first, and in the end one that is still to come.
        """
        fit = len(self._running) <= self.slots
        choices: tuple[Container[ExpertKey], ...] = (self._to_come, ())
        for pinned in (self._running, *choices) if fit else choices:
            if victims := self._policy.evict(pinned):
                return victims[0]
        raise RuntimeError("the cache policy gives up no page of a full cache")

    def holds(self, layer: int, expert: int) -> bool:
        """Whether the page is in the cache."""
        return ExpertKey(layer, expert) in self._resident

    def resident(self) -> frozenset[ExpertKey]:
        """The pages in the cache."""
        return frozenset(self._resident)

    def _load(self, page: ExpertPage, slot: np.ndarray) -> None:
        started = time.perf_counter()
        target = slot.data[: page.nbytes]
        self._read(page, target)
        if page.key in self._unverified:
            if hashlib.sha256(target).hexdigest() != page.sha256:
                raise BundleError(
                    f"{self._where(page)} is damaged: its hash is not the manifest's; "
                    "compile the bundle again"
                )
            self._unverified.remove(page.key)
            self.verified += 1
        self.bytes_read += page.nbytes
        self.read_seconds += time.perf_counter() - started

    def _read(self, page: ExpertPage, target: memoryview) -> None:
        file = self._files[page.file]
        reason = ""
        for _ in range(2):
            try:
                count = file.read(target, page.offset)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if count == len(target):
                return
            reason = f"{count} of {len(target)} bytes"
        raise BundleError(
            f"{self._where(page)} cannot be read ({reason}); check the disk, "
            "or compile the bundle again"
        )

    def _where(self, page: ExpertPage) -> str:
        path, key = self._root / page.file, page.key
        return f"{path}: the page of layer {key.layer}, expert {key.expert}"

    @property
    def direct(self) -> bool:
        """Whether every file is read past the page cache."""
        return all(file.direct for file in self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._resident.clear()
        self._free.clear()
