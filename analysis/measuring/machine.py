"""Measuring this machine: memory, storage, and what the runtime reaches. Imports no torch."""

from __future__ import annotations

import datetime
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...bundle.manifest import is_bundle, read_manifest
from ...bundle.pages import PAGE_ALIGNMENT, PageFormat, align
from ...cpus import cpu_count
from ...errors import InputError
from ...progress import Progress, Silent
from ...runtime.native.kernels import ExpertFormat, NativeKernels
from ...runtime.native.library import available
from ...sizes import format_size
from ...targets import Target, check_name, measured_target
from ..planning.limits import MachineSpeed, assumed_speed

_MIB = 1 << 20
_BUFFER_BYTES = 256 * _MIB  # beyond every cache of a CPU
_REPEATS = 3
_READ_BYTES = 3 * _MIB  # of one read, such as a page
_READERS = 2
_READ_SECONDS = 2.0
_FILE_BYTES, _LEAST_FILE_BYTES = 1024 * _MIB, 64 * _MIB
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_FORMAT = PageFormat("int4", 64, 2048, 1024)  # the pages that stand for all
_TOP_K, _PREFILL_ROWS = 8, 16  # experts of a token; tokens of an expert in a chunk of a prompt
_SILENT = Silent()


@dataclass(frozen=True)
class StorageSpeed:
    """bandwidth: bytes per second. direct: read past the page cache."""

    bandwidth: float
    direct: bool


def measure_memory(threads: int, memory_budget: int | None = None) -> float:
    """Bytes per second at which `threads` read memory together, in a share of the budget."""
    nbytes = min(_BUFFER_BYTES, (memory_budget or _BUFFER_BYTES * 4) // 4)
    data = np.ones(align(max(1, nbytes), 128), np.uint8)
    if available():
        kernels = NativeKernels(threads)
        return data.nbytes / _best(lambda: kernels.read(data))
    parts = np.array_split(data.view(np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return data.nbytes / _best(lambda: list(pool.map(np.sum, parts)))


def _best(run: Callable[[], object]) -> float:
    """The shortest time of a few runs, in seconds."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_storage(path: Path, seconds: float = _READ_SECONDS) -> StorageSpeed:
    """Reads of a page's size at random places, two at a time.

    path: a bundle, whose pages are read; a large file; or a directory, into which a temporary file
    is written.

    Raises:
        InputError: it is none of these, is too small, or cannot be read or written.
    """
    try:
        with _descriptors(path) as files:
            return _read_randomly(files, seconds)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be measured ({reason}); give another place") from error


@contextmanager
def _descriptors(path: Path) -> Iterator[list[int]]:
    """Files to read, as open descriptors."""
    opened: list[int] = []
    try:
        if path.is_dir() and not is_bundle(path):
            with tempfile.TemporaryFile(dir=path) as file:  # it has no name: nothing can be left
                _fill(file.fileno(), path)
                opened.append(_open(f"/proc/self/fd/{file.fileno()}"))
                yield opened
            return
        names = [path]
        if path.is_dir():
            names = [path / layer.file for layer in read_manifest(path).experts]
        elif not path.is_file():
            raise InputError(f"{path} does not exist; give a file, a bundle or a directory")
        opened += [_open(name) for name in names]
        nbytes = sum(os.fstat(file).st_size for file in opened)
        if nbytes < _LEAST_FILE_BYTES:
            raise InputError(
                f"{path} has {format_size(nbytes)} to read, too little to measure by; give "
                f"{format_size(_LEAST_FILE_BYTES)} or more, or a directory"
            )
        yield opened
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open(path: str | Path) -> int:
    """A descriptor that reads past the page cache, where the file system allows it."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        file = os.open(path, flags | _O_DIRECT)
    except OSError:
        return os.open(path, flags)
    with mmap.mmap(-1, PAGE_ALIGNMENT) as buffer, memoryview(buffer) as target:
        try:
            os.preadv(file, [target], 0)
        except OSError:  # opened, but not readable this way
            os.close(file)
            return os.open(path, flags)
    return file


def _fill(file: int, folder: Path) -> None:
    """Writes random bytes, which no file system makes smaller, and drops them from memory."""
    space = os.fstatvfs(file)
    nbytes = min(_FILE_BYTES, space.f_bavail * space.f_frsize // 2)
    if nbytes < _LEAST_FILE_BYTES:
        raise InputError(
            f"{folder} has no room for a file to measure by; free "
            f"{format_size(2 * _LEAST_FILE_BYTES)}, or name a large file or another directory"
        )
    random = np.random.default_rng(0)
    for _ in range(nbytes // (16 * _MIB)):
        os.write(file, random.bytes(16 * _MIB))
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_randomly(files: Sequence[int], seconds: float) -> StorageSpeed:
    sizes = [os.fstat(file).st_size for file in files]
    direct = all(_is_direct(file) for file in files)

    def read(reader: int, until: float) -> int:
        random = np.random.default_rng([reader, time.time_ns()])
        count = 0
        with mmap.mmap(-1, _READ_BYTES) as buffer:
            while time.perf_counter() < until:
                index = int(random.choice(len(files), p=np.array(sizes) / sum(sizes)))
                last = max(0, sizes[index] - _READ_BYTES) // PAGE_ALIGNMENT
                offset = int(random.integers(0, last + 1)) * PAGE_ALIGNMENT
                with memoryview(buffer) as target:
                    count += os.preadv(files[index], [target], offset)
                if not direct:
                    os.posix_fadvise(files[index], offset, _READ_BYTES, os.POSIX_FADV_DONTNEED)
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        counts = list(pool.map(lambda reader: read(reader, start + seconds), range(_READERS)))
    return StorageSpeed(sum(counts) / (time.perf_counter() - start), direct)


def _is_direct(file: int) -> bool:
    return bool(_O_DIRECT and fcntl.fcntl(file, fcntl.F_GETFL) & _O_DIRECT)


def measure_kernels(threads: int, speed: MachineSpeed) -> MachineSpeed:
    """`speed` with what the native kernels reach on pages beyond the caches."""
    kernels, expert = NativeKernels(threads), ExpertFormat(_FORMAT)
    size = align(_FORMAT.nbytes, PAGE_ALIGNMENT)
    count = _BUFFER_BYTES // 2 // size
    slab = np.frombuffer(mmap.mmap(-1, count * size), np.uint8).reshape(count, size)
    slab[:] = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    for place in _FORMAT.tensors():
        if place.kind == "scales":  # random bytes would be infinities among others
            slab[:, place.offset : place.offset + place.nbytes].view(np.float16)[:] = 0.01
    pages, hidden = list(slab), _FORMAT.hidden_size

    def run(groups: Sequence[list[np.ndarray]], rows: int) -> float:
        """Seconds in which each page is used by `rows` tokens, a call for each group."""
        x = np.ones((rows, hidden), np.float32)
        out = np.zeros_like(x)
        tokens = np.arange(rows, dtype=np.int64)

        def once() -> None:
            for group in groups:
                starts = np.arange(len(group) + 1, dtype=np.int64) * rows
                weights = np.ones(rows * len(group), np.float32)
                kernels.run_experts(
                    expert, group, starts, np.tile(tokens, len(group)), weights, x, out
                )

        once()
        return _best(once)

    nbytes = count * _FORMAT.nbytes
    single = run([[page] for page in pages], 1)
    many = run([pages[i : i + _TOP_K] for i in range(0, count, _TOP_K)], _PREFILL_ROWS)
    return replace(
        speed, expert_bandwidth=nbytes / single, expert_rate=_PREFILL_ROWS * nbytes / many
    )


def measure_target(
    name: str,
    *,
    storage: Path,
    bundle: Path | None = None,
    threads: int | None = None,
    progress: Progress = _SILENT,
) -> Target:
    """This machine as a target.

    storage: see measure_storage. bundle: is run to see how fast its backbone is and what a layer
    takes besides; without one, both are assumed from the memory's bandwidth.

    Raises:
        TargetError: the name cannot be had.
        InputError: the storage, or the bundle, cannot be measured.
    """
    check_name(name)
    threads = threads or cpu_count()
    progress.stage("storage", 0)
    disk = measure_storage(storage)
    progress.stage("memory", 0)
    memory = measure_memory(threads)
    speed = assumed_speed(memory, disk.bandwidth)
    native = available()
    if native:
        progress.stage("native kernels", 0)
        speed = measure_kernels(threads, speed)
    if bundle is not None:
        from .bundle_speed import measure_bundle

        progress.stage(f"run {bundle}", 0)
        speed = measure_bundle(bundle, speed, threads=threads, native=native)
    when = f"measured {datetime.date.today().isoformat()} by 'pocketmoe targets --measure'"
    ran = f"running {bundle}, {when}"
    way = "past the page cache" if disk.direct else "through the page cache (no O_DIRECT there)"
    share = "assumed, a share of the memory bandwidth; --bundle measures it"
    kernels = f"native kernels, {threads} threads, int4 pages of "
    kernels += f"{format_size(_FORMAT.nbytes)}, {when}"
    experts = kernels if native else ran if bundle is not None else share
    rest = ran if bundle is not None else share
    return measured_target(
        name,
        f"this machine's CPU, {threads} threads, as measured",
        {"memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), **vars(speed)},
        {
            "memory_bytes": f"asked of the operating system, {when}",
            "memory_bandwidth": f"{threads} threads reading, {when}",
            "storage_bandwidth": f"random reads of {format_size(_READ_BYTES)}, {_READERS} at a "
                                 f"time, at {storage.absolute()}, {way}, {when}",
            "expert_bandwidth": experts,
            "expert_rate": ran if bundle is not None else experts,
            "backbone_bandwidth": rest,
            "backbone_rate": rest,
            "layer_seconds": ran if bundle is not None
                             else "assumed; --bundle measures it",
        },
    )  # fmt: skip
