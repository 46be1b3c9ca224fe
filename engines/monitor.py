"""Progress of TensorRT with an engine, and stopping it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")
_LISTEN = 0.2  # seconds


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Turns TensorRT's phases, which lie within one another, into a share of one engine.

    TensorRT may call from several threads.
    """

    def __init__(self, advance: Callable[[int], None], total: int):
        """advance is told, in parts, that `total` is done."""
        self._advance = advance
        self._total = total
        self._told = 0
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done += 1
            roots = [root for root, phase in self._phases.items() if phase.parent is None]
            share = max((self._share(root) for root in roots), default=0.0)
            self._tell(int(self._total * share))

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def end(self) -> None:
        """The engine is built: whatever was not told yet is."""
        with self._lock:
            self._tell(self._total)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._share(c) for c, child in self._phases.items() if child.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)

    def _tell(self, done: int) -> None:
        if done > self._told:  # a phase of unknown length may go back
            self._advance(done - self._told)
            self._told = done


def make_monitor(
    module: Any, progress: BuildProgress, stop: threading.Event
) -> trt.IProgressMonitor:
    """The monitor for a builder's config. Once `stop` is set the build ends at its next step."""

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name)
            return not stop.is_set()

    monitor: trt.IProgressMonitor = Monitor()
    return monitor


def stoppable(work: Callable[[threading.Event], _T]) -> _T:
    """What `work` returns. It runs in a thread of its own, so that Ctrl-C is heard while a library
    works; the event is set then, and the interrupt goes on once `work` has ended."""
    stop, begun = threading.Event(), threading.Event()

    def run() -> _T:
        begun.wait()  # until the interrupt would be caught below
        return work(stop)

    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(run)
            begun.set()
            while not future.done():
                wait([future], _LISTEN)  # an interrupt just before it begins is heard after it
            return future.result()
        except KeyboardInterrupt:
            stop.set()
            raise
        finally:
            begun.set()
