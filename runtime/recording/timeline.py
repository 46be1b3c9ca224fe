"""The timeline of a session as a Chrome trace: for chrome://tracing and ui.perfetto.dev.

The format is the Trace Event Format: a JSON object whose `traceEvents` are spans, marks and
counters of threads, times in microseconds.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..whole_file import WholeFile

# Events that are kept before they become text: a few MiB, and some ms of work, which is a span
# itself.
_MOST_KEPT = 8_192
_PROCESS = 1

_log = logging.getLogger(__name__)

# Kind of event, name, category, thread, start and duration in seconds, arguments.
_Event = tuple[str, str, str, int, float, float, dict[str, Any]]


class Recorder:
    """Writes a trace; the file is in its place once it is closed. Spans may come from any thread.

    Where the file cannot be written any further, a warning is logged, nothing more is recorded and
    no file is made: the run goes on.

    Who has none records nothing: `if trace is not None` is all that tracing costs then. Times are
    those of `time.perf_counter`.

    Raises:
        InputError: the file cannot be made.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """about: what the file is to say of the run."""
        process = _metadata("process_name", 0, name="pocketmoe")
        self._file: WholeFile | None = WholeFile(path, '{"traceEvents":[\n' + json.dumps(process))
        self._about = about
        self._origin = time.perf_counter()
        self._events: deque[_Event] = deque()
        self._threads: dict[int, tuple[int, str]] = {}  # by its identity: number, name
        self._numbers = itertools.count(1)
        self._thread()

    def span(self, name: str, category: str, started: float, **arguments: Any) -> None:
        """What this thread has done from `started` until now."""
        duration = time.perf_counter() - started
        self._add(("X", name, category, self._thread(), started, duration, arguments))

    def mark(self, name: str, when: float) -> None:
        """A line across all threads."""
        self._add(("i", name, "mark", self._thread(), when, 0.0, {}))

    def count(self, name: str, when: float, **values: int) -> None:
        """Values from `when` on."""
        self._add(("C", name, "count", self._thread(), when, 0.0, values))

    def flush(self) -> None:
        """Writes what there is, where it has become much."""
        if len(self._events) <= _MOST_KEPT or self._file is None:
            return
        started = time.perf_counter()
        with self._or_stop(self._file):
            self._write(self._file)
            self.span("write the trace", "trace", started)

    def close(self) -> None:
        file = self._file
        if file is None:
            return
        with self._or_stop(file):
            self._write(file)
            for event in self._thread_names():
                _put(file, event)
            about = json.dumps(self._about)
            file.write(f'\n],"displayTimeUnit":"ms","otherData":{about}}}\n')
            file.finish()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()

    def _add(self, event: _Event) -> None:
        if self._file is not None:
            self._events.append(event)

    @contextmanager
    def _or_stop(self, file: WholeFile) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("%s is not made: %s", file.path, error.strerror or error)
            file.discard()
            self._file = None
            self._events.clear()

    def _thread(self) -> int:
        identity = threading.get_ident()
        if identity not in self._threads:
            name = threading.current_thread().name
            self._threads[identity] = (next(self._numbers), name)
        return self._threads[identity][0]

    def _write(self, file: WholeFile) -> None:
        while self._events:
            kind, name, category, thread, started, duration, arguments = self._events.popleft()
            event: dict[str, Any] = {
                "ph": kind, "name": name, "cat": category, "pid": _PROCESS, "tid": thread,
                "ts": round(1e6 * (started - self._origin), 3), "args": arguments,
            }  # fmt: skip
            if kind == "X":
                event["dur"] = round(1e6 * duration, 3)
            elif kind == "i":
                event["s"] = "p"  # as high as all of the process
            _put(file, event)

    def _thread_names(self) -> Iterator[dict[str, Any]]:
        for number, name in self._threads.values():
            yield _metadata("thread_name", number, name="main thread" if number == 1 else name)
            yield _metadata("thread_sort_index", number, sort_index=number)


def _put(file: WholeFile, event: dict[str, Any]) -> None:
    file.write(",\n" + json.dumps(event, separators=(",", ":")))


def _metadata(name: str, thread: int, /, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": _PROCESS, "tid": thread, "args": arguments}
