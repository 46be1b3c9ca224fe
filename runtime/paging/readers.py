"""Reader threads: they fill slots with pages while the caller computes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from ...bundle.pages import PAGE_ALIGNMENT, ExpertKey, ExpertPage, align
from ...errors import BundleError, InputError
from ..native.checksum import find_xxh64
from ..recording.timeline import Recorder
from .page_file import PageFile, Stamp

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
        "dropped", "early", "error", "file", "finished", "page", "parts_left", "slot", "stamp",
        "unwanted", "where",
    )  # fmt: skip

    def __init__(
        self,
        page: ExpertPage,
        file: PageFile,
        slot: Slot,
        where: Callable[[], str],
        *,
        early: bool = False,
    ):
        """where: names the page in errors."""
        self.page, self.file, self.slot, self.where, self.early = page, file, slot, where, early
        self.stamp: Stamp | None = None  # of the file, as it was some time before the read
        self.error: Exception | None = None
        self.unwanted = self.dropped = self.finished = False
        self.parts_left = 0


class Readers:
    """Threads that read pages and verify them. Each Load is finished in the end, whatever happens
    to it; `done` is set then, to be waited for.

    The counters: bytes_read; verified, pages whose hash was checked; read_seconds, while at least
    one read was under way, hashing not counted.
    """

    def __init__(self, *, verify: bool, threads: int = THREADS, trace: Recorder | None = None):
        self.done = threading.Event()
        self.bytes_read = self.verified = 0
        self._read_seconds = 0.0
        self._verify = verify
        self._trace = trace
        self._xxh64 = find_xxh64()
        self._trusted: dict[ExpertKey, Stamp] = {}  # pages that were right when the file was so
        self._parts: deque[tuple[Load, int, int]] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()  # that there are parts; False ends a thread
        self._lock = threading.Lock()
        self._reading = 0
        self._reading_since = 0.0
        self._wanted = threads
        self._threads: list[threading.Thread] = []
        self._process = os.getpid()

    @property
    def read_seconds(self) -> float:
        with self._lock:
            running = time.perf_counter() - self._reading_since if self._reading else 0.0
            return self._read_seconds + running

    def submit(self, load: Load) -> None:
        """Has a page read. Its `finished` will be set, and then `done`.

        Raises:
            InputError: the system makes no thread.
        """
        if not self._threads:
            self._start()
        if self._verify and load.stamp is None:
            self._stamp(load)
        nbytes = load.page.nbytes
        count = max(1, round(nbytes / PART_BYTES))
        size = align(-(-nbytes // count), PAGE_ALIGNMENT)
        parts = [(load, start, min(start + size, nbytes)) for start in range(0, nbytes, size)]
        load.parts_left = len(parts)
        self._parts.extend(parts)
        for _ in parts:
            self._calls.put(True)

    def _start(self) -> None:
        for index in range(self._wanted):
            thread = threading.Thread(target=self._work, name=f"pages-{index}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # those that could be made will do
                if not self._threads:
                    raise InputError(
                        "no thread can be made to read pages; "
                        "raise the limit of processes (ulimit -u)"
                    ) from error
                return
            self._threads.append(thread)

    def close(self) -> None:
        """Ends the threads; what has not begun is left out."""
        if self._process != os.getpid():  # a fork has none of them
            return
        self._parts.clear()
        for _ in self._threads:
            self._calls.put(False)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        while self._calls.get():
            while self._parts:
                try:
                    load, start, stop = self._parts.popleft()
                except IndexError:  # another thread took it
                    break
                self._do(load, start, stop)

    def _do(self, load: Load, start: int, stop: int) -> None:
        try:
            if load.unwanted:
                load.dropped = True
            elif load.error is None:
                self._read(load, start, stop)
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            load.error = error
        if not self._is_last(load):
            return
        try:
            if load.error is None and not load.dropped and self._verify:
                self._check(load)
        except Exception as error:  # noqa: BLE001 - the same
            load.error = error
        load.finished = True
        self.done.set()

    def _is_last(self, load: Load) -> bool:
        """Counts a part as done."""
        with self._lock:
            load.parts_left -= 1
            return load.parts_left == 0

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
                f"{load.where()} is damaged: its hash is not the manifest's; "
                "compile the bundle again"
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
                self._read_seconds += time.perf_counter() - self._reading_since

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
            f"{load.where()} cannot be read ({reason}); check the disk, or compile the bundle again"
        )
