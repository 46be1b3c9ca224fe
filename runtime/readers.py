"""Reader threads: they fill slots with pages while the caller computes."""

from __future__ import annotations

import hashlib
import threading
import time
from queue import SimpleQueue

import numpy as np

from ..errors import BundleError
from .native.checksum import find_xxh64
from .page_file import PageFile, Stamp
from .pages import PAGE_ALIGNMENT, ExpertKey, ExpertPage, align
from .trace import Recorder

# Two reads at a time keep a disk busy; the third thread checks hashes meanwhile.
THREADS = 3
# A page is read in parts of about this size, so that its first parts need not wait for one another.
PART_BYTES = 2 << 20


class Slot:
    """Room for a page: uint8 `[slot size]` in memory of its own, aligned to 4 KiB."""

    __slots__ = ("address", "data")

    def __init__(self, data: np.ndarray):
        self.data = data
        self.address: int = data.ctypes.data


class Load:
    """A page on its way into a slot. Once it is done, the slot is filled, or `error` is set, or
    `dropped` is. unwanted: what has not begun may be left out. early: no visit has asked for it.
    """

    __slots__ = (
        "dropped", "early", "error", "file", "page", "parts_left", "slot", "stamp", "unwanted",
        "where",
    )  # fmt: skip

    def __init__(
        self, page: ExpertPage, file: PageFile, slot: Slot, where: str, *, early: bool = False
    ):
        self.page, self.file, self.slot, self.where, self.early = page, file, slot, where, early
        self.stamp: Stamp | None = None  # of the file, when it was last looked at
        self.error: BundleError | None = None
        self.unwanted = self.dropped = False
        self.parts_left = 0


class Readers:
    """Threads that read pages, verify them, and put each Load into `done`, whatever happens to it.

    The counters: bytes_read; verified, pages whose hash was checked; read_seconds, while at least
    one read was under way, hashing not counted.
    """

    def __init__(self, *, verify: bool, threads: int = THREADS, trace: Recorder | None = None):
        self.done: SimpleQueue[Load] = SimpleQueue()
        self.bytes_read = self.verified = 0
        self.read_seconds = 0.0
        self._verify = verify
        self._trace = trace
        self._xxh64 = find_xxh64()
        self._trusted: dict[ExpertKey, Stamp] = {}  # pages that were right when the file was so
        self._parts: SimpleQueue[tuple[Load, int, int] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._reading = 0
        self._reading_since = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"pages-{index}", daemon=True)
            for index in range(threads)
        ]
        self._started = False

    def submit(self, load: Load) -> None:
        """Has a page read. It comes back through `done`."""
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        nbytes = load.page.nbytes
        count = max(1, round(nbytes / PART_BYTES))
        size = align(-(-nbytes // count), PAGE_ALIGNMENT)
        starts = range(0, nbytes, size)
        load.parts_left = len(starts)
        if self._verify:
            self._stamp(load)
        for start in starts:
            self._parts.put((load, start, min(start + size, nbytes)))

    def close(self) -> None:
        """Ends the threads, once what was submitted is done."""
        if self._started:
            for _ in self._threads:
                self._parts.put(None)
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (part := self._parts.get()) is not None:
            load, start, stop = part
            try:
                if load.unwanted:
                    load.dropped = True
                elif load.error is None:
                    self._read(load, start, stop)
            except MemoryError:
                load.error = self._failure(load, "out of memory")
            self._finish_part(load)

    def _finish_part(self, load: Load) -> None:
        with self._lock:
            load.parts_left -= 1
            last = load.parts_left == 0
        if not last:
            return
        if load.error is None and not load.dropped and self._verify:
            self._check(load)
        self.done.put(load)

    def _read(self, load: Load, start: int, stop: int) -> None:
        target = load.slot.data.data[start:stop]
        reason = ""
        for _ in range(2):
            started = self._begin_read()
            count = 0
            try:
                count = load.file.read(target, load.page.offset + start)
            except OSError as error:
                reason = error.strerror or str(error)
            except BundleError as error:
                load.error = error
                return
            finally:
                self._end_read(count)
                self._record(load, "read", started, count)
            if count == len(target):
                return
            if count:
                reason = f"{count} of {len(target)} bytes"
            elif not reason:
                reason = "it ends before"
        load.error = self._failure(load, reason)

    def _check(self, load: Load) -> None:
        """Hashes a page that was not read from this state of the file before."""
        page, before = load.page, load.stamp
        self._stamp(load)
        after = load.stamp
        if load.error is not None or self._trusted.get(page.key) == after == before:
            return
        data = load.slot.data[: page.nbytes]
        started = time.perf_counter()
        if page.xxh64 and self._xxh64 is not None:
            right = self._xxh64(data) == page.xxh64
        else:
            right = hashlib.sha256(data.data).hexdigest() == page.sha256
        self._record(load, "hash", started, page.nbytes)
        if not right:
            load.error = BundleError(
                f"{load.where} is damaged: its hash is not the manifest's; compile the bundle again"
            )
            return
        with self._lock:
            self.verified += 1
        if after is not None and after == before and after.settled:
            self._trusted[page.key] = after

    def _stamp(self, load: Load) -> None:
        try:
            load.stamp = load.file.stamp()
        except OSError as error:
            load.error = self._failure(load, error.strerror or str(error))

    def _begin_read(self) -> float:
        """The time."""
        with self._lock:
            now = time.perf_counter()
            self._reading += 1
            if self._reading == 1:
                self._reading_since = now
        return now

    def _end_read(self, count: int) -> None:
        with self._lock:
            self.bytes_read += count
            self._reading -= 1
            if self._reading == 0:
                self.read_seconds += time.perf_counter() - self._reading_since

    def _record(self, load: Load, what: str, started: float, nbytes: int) -> None:
        if self._trace is not None:
            layer, expert = load.page.key.layer, load.page.key.expert
            name = f"{what} {layer}.{expert}{' early' if load.early else ''}"
            arguments: dict[str, int] = {"layer": layer, "expert": expert, "bytes": nbytes}
            if load.early:
                arguments["early"] = True
            self._trace.span(name, what, started, **arguments)

    @staticmethod
    def _failure(load: Load, reason: str) -> BundleError:
        return BundleError(
            f"{load.where} cannot be read ({reason}); check the disk, or compile the bundle again"
        )
