"""Workers that quantize experts: this process, processes beside it, or a Ray cluster.

An expert is a task of its own, computed on one thread whoever does it, so that the bytes do not
depend on how many work. A worker that dies is replaced, and its tasks are done again.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from ...bundle.pages import PageFormat
from ...cpus import cpu_count
from ...errors import InputError, how_to_add
from ...runtime.memory.host_memory import read_host_memory

_TRIES = 3
_WORTH_PROCESSES = 100_000_000  # weights
_MOST_SUGGESTED = 16
_PROCESS_BYTES = 384 << 20  # with torch, and nothing to do
_AHEAD = 2  # tasks for each worker that are under way or wait for it
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
Arrays = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


class Workers(Protocol):
    """share: makes arrays known that many tasks need; `Shared.arrays` gives them to a task."""

    def share(self, arrays: Arrays) -> Shared: ...

    def map(self, work: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Results in the order of the tasks, which are taken as they are needed.

        Raises:
            InputError: workers died again and again.
        """
        ...

    def close(self) -> None: ...


class Shared(Protocol):
    def arrays(self) -> Arrays: ...


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Here:
    """Arrays of this process."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays

    def arrays(self) -> Arrays:
        return self._arrays


class ThisProcess:
    """One after the other."""

    def share(self, arrays: Arrays) -> Shared:
        return _Here(arrays)

    def map(self, work: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        for task in tasks:
            with one_thread():
                result = work(task)
            yield result

    def close(self) -> None:
        pass


class _InFile:
    """Arrays in a file of this machine, which a worker reads once."""

    def __init__(self, path: str):
        self.path = path

    def arrays(self) -> Arrays:
        return _read_arrays(self.path)


@lru_cache(maxsize=1)
def _read_arrays(path: str) -> Arrays:
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def _begin() -> None:
    torch.set_num_threads(1)


class Processes:
    """`count` processes on this machine."""

    def __init__(self, count: int):
        self._count = count
        self._folder = tempfile.TemporaryDirectory(prefix="pocketmoe-workers-")
        self._shared = 0
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads' locks
        return ProcessPoolExecutor(self._count, mp_context=context, initializer=_begin)

    def share(self, arrays: Arrays) -> Shared:
        path = Path(self._folder.name) / f"{self._shared}.npz"
        self._shared += 1
        for old in Path(self._folder.name).iterdir():
            old.unlink()
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return _InFile(str(path))

    def map(self, work: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        pending: deque[tuple[_Task, Future[_Result]]] = deque()
        coming = iter(tasks)
        deaths = 0
        while True:
            while len(pending) < _AHEAD * self._count:
                task = next(coming, None)
                if task is None:
                    break
                pending.append((task, self._pool.submit(work, task)))
            if not pending:
                return
            try:
                result = pending[0][1].result()
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == _TRIES:
                    raise InputError(
                        f"workers died {_TRIES} times, for lack of memory perhaps; use fewer "
                        "--workers"
                    ) from error
                _log.warning("a worker died; its experts are quantized again")
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._pool = self._start()
                pending = deque((task, self._pool.submit(work, task)) for task, _ in pending)
                continue
            deaths = 0
            pending.popleft()
            yield result

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()


class _InCluster:
    """Arrays that Ray holds."""

    def __init__(self, reference: Any):
        self._reference = reference

    def arrays(self) -> Arrays:
        import ray

        found: Arrays = ray.get(self._reference)
        return found


class RayCluster:
    """The workers of a Ray cluster, which takes tasks over itself where one of them dies."""

    def __init__(self, address: str):
        """address: as `ray://host:10001`, or "ray" for one on this machine.

        Raises:
            InputError: Ray is not installed, or there is no cluster.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError(f"--workers {address} needs Ray: {how_to_add('ray')}") from error
        self._ray = ray
        where = None if address == "ray" else address
        try:
            if not ray.is_initialized():
                ray.init(where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"there is no Ray cluster at {address} ({reason}); is it up, and has "
                "RAY_AUTH_TOKEN its token, where it wants one?"
            ) from error
        self._own = where is None

    def share(self, arrays: Arrays) -> Shared:
        return _InCluster(self._ray.put(arrays))

    def map(self, work: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=_TRIES)(_alone)
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: deque[Any] = deque()
        coming = iter(tasks)
        while True:
            while len(pending) < most:
                task = next(coming, None)
                if task is None:
                    break
                pending.append(remote.remote(work, task))
            if not pending:
                return
            try:
                yield ray.get(pending.popleft())
            except ray.exceptions.WorkerCrashedError as error:
                raise InputError(f"a worker of Ray died {_TRIES} times ({error})") from error

    def close(self) -> None:
        if self._own:
            self._ray.shutdown()


def _alone(work: Callable[[Any], Any], task: Any) -> Any:
    with one_thread():
        return work(task)


def open_workers(choice: str, formats: Iterable[PageFormat] = ()) -> Workers:
    """choice: a number of processes, 1 for none beside this one; "auto", as many as `suggest_count`
    says for pages of these formats; or where a Ray cluster is.

    Raises:
        InputError: it is none of them.
    """
    if choice == "ray" or choice.startswith("ray://"):
        return RayCluster(choice)
    if choice == "auto":
        count = suggest_count(formats)
    elif choice.isdecimal() and int(choice) >= 1:
        count = min(int(choice), 4 * cpu_count())
    else:
        raise InputError(
            f"--workers is a number of processes, auto, or ray://HOST:PORT, not {choice!r}"
        )
    return ThisProcess() if count == 1 else Processes(count)


def suggest_count(formats: Iterable[PageFormat]) -> int:
    """A process for each CPU, as far as they fit into the memory that is free; 1 where the experts
    are done before processes have started. formats: of each page."""
    pages = list(formats)
    if sum(page.weights for page in pages) < _WORTH_PROCESSES:
        return 1
    held = max(map(_worker_bytes, set(pages)))
    try:
        fitting = read_host_memory().free // held - 1  # this process is one more
    except InputError:  # the system does not say
        fitting = 1
    return max(1, min(cpu_count(), _MOST_SUGGESTED, fitting))


def _worker_bytes(page: PageFormat) -> int:
    """What a process that quantizes such experts takes at most: measured with 40 to 250 MiB of
    moments and weights, rounded up."""
    most = max(page.hidden_size, page.intermediate_size)
    return _PROCESS_BYTES + 7 * 4 * (most**2 + page.weights)
