"""The limit model of docs/design/limit-model.md, and the bandwidths that it needs."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketmoe.bundle.manifest import Manifest
from pocketmoe.errors import InputError
from pocketmoe.runtime.native.kernels import NativeKernels

BUFFER_BYTES = 512 << 20  # beyond every cache of a CPU
REPEATS = 3
READERS = 2  # reads in flight
ALIGNMENT = 4096


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second."""

    memory: float
    storage: float

    def mean(self, other: Bandwidths) -> Bandwidths:
        return Bandwidths((self.memory + other.memory) / 2, (self.storage + other.storage) / 2)

    def at_least(self, storage: Sequence[float]) -> Bandwidths:
        """With the largest of those of storage."""
        return Bandwidths(self.memory, max([self.storage, *storage]))

    def token_seconds(self, resident: float, missed: float) -> float:
        """The least that a token takes; bytes of weights that it reads, and of pages missed."""
        return max(resident / self.memory, missed / self.storage)


def measure_bandwidths(root: Path, manifest: Manifest, threads: int) -> Bandwidths:
    """Raises InputError where the native kernels are not built, or O_DIRECT is refused."""
    return Bandwidths(measure_memory(threads), measure_storage(root, manifest))


def measure_memory(threads: int) -> float:
    """The best of a few readings of a buffer by all threads."""
    try:
        kernels = NativeKernels(threads)
    except RuntimeError as error:
        raise InputError(f"memory cannot be measured: {error}") from error
    data = np.ones(BUFFER_BYTES, np.uint8)
    best = 0.0
    try:
        for _ in range(REPEATS):
            start = time.perf_counter()
            kernels.read(data)
            best = max(best, data.nbytes / (time.perf_counter() - start))
    finally:
        kernels.close()
    return best


def measure_storage(root: Path, manifest: Manifest, seconds: float = 2.0) -> float:
    """Whole pages in a random order, past the page cache, READERS at a time."""
    pages = list(manifest.pages())
    random.Random(0).shuffle(pages)
    deadline = time.perf_counter() + seconds

    def read(mine: list[tuple[Path, int, int]]) -> int:
        total = 0
        largest = max(nbytes for _, _, nbytes in mine)
        with mmap.mmap(-1, -(-largest // ALIGNMENT) * ALIGNMENT) as buffer:
            for path, offset, nbytes in mine:
                if time.perf_counter() > deadline:
                    break
                handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
                try:
                    aligned = -(-nbytes // ALIGNMENT) * ALIGNMENT
                    with memoryview(buffer)[:aligned] as part:
                        total += os.preadv(handle, [part], offset)
                finally:
                    os.close(handle)
        return total

    places = [(root / page.file, page.offset, page.nbytes) for page in pages]
    parts = [places[i::READERS] for i in range(min(READERS, len(places)))]
    start = time.perf_counter()
    try:
        with ThreadPoolExecutor(READERS) as pool:
            total = sum(pool.map(read, parts))
    except OSError as error:
        raise InputError(
            f"storage cannot be measured: {root} is not readable with O_DIRECT ({error.strerror})"
        ) from error
    return total / (time.perf_counter() - start)
