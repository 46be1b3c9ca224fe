"""Speed of the native kernels over experts for one token, beside a plain read of the same
memory: python bench/speed/native_speed.py [--shape 2048x1024] [--experts 512] [--group 8]

Pages lie in more memory than any cache holds. Both are measured taking turns, since what a shared
machine's memory gives changes from second to second.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable

import numpy as np

from pocketmoe.bundle.pages import PageFormat
from pocketmoe.runtime.native.kernels import ExpertFormat, NativeKernels

FORMATS = [("int4", 32), ("int4", 64), ("int4", 128), ("int8", 32), ("int8", 64), ("int8", 128),
           ("fp16", 0)]  # fmt: skip


def random_pages(fmt: PageFormat, experts: int) -> np.ndarray:
    """[experts, page size]; the same random page in all places."""
    page = np.random.default_rng(0).integers(0, 256, fmt.nbytes, np.uint8)
    for place in fmt.tensors():
        if place.kind == "scales" or fmt.precision == "fp16":
            numbers = np.full(place.nbytes // 2, 0.01, np.float16)
            page[place.offset : place.offset + place.nbytes] = numbers.view(np.uint8)
    memory = mmap.mmap(-1, experts * fmt.nbytes)
    pages = np.frombuffer(memory, np.uint8).reshape(experts, fmt.nbytes)
    pages[:] = page
    return pages


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(kernels: NativeKernels, fmt: PageFormat, pages: np.ndarray, group: int) -> list[float]:
    """GB/s of a read and of the experts, the best of seven turns; the median of their ratios."""
    form = ExpertFormat(fmt)
    x = np.random.default_rng(1).standard_normal((1, fmt.hidden_size), np.float32)
    out = np.zeros_like(x)
    starts, tokens = np.arange(group + 1), np.zeros(group, np.int64)
    weights = np.ones(group, np.float32)

    def experts() -> None:
        for first in range(0, len(pages), group):
            some = list(pages[first : first + group])
            kernels.run_experts(form, some, starts, tokens, weights, x, out)

    turns = [(seconds(lambda: kernels.read(pages.reshape(-1))), seconds(experts)) for _ in range(7)]
    read, computed = np.array(turns).T
    size = pages.nbytes / 1e9
    return [size / read.min(), size / computed.min(), float(np.median(read / computed))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2048x1024", help="hidden x intermediate")
    parser.add_argument("--experts", type=int, default=512, help="a multiple of the group")
    parser.add_argument("--group", type=int, default=8, help="experts in one call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    hidden, intermediate = map(int, args.shape.split("x"))
    print("precision block  threads  read GB/s  experts GB/s  share")
    for precision, block in FORMATS:
        fmt = PageFormat(precision, block, hidden, intermediate)
        pages = random_pages(fmt, args.experts // (1 if precision == "int4" else 2))
        for threads in args.threads:
            kernels = NativeKernels(threads)
            read, computed, share = measure(kernels, fmt, pages, args.group)
            print(
                f"{precision:9} {block:5}  {threads:7}  {read:9.1f}  {computed:12.1f}  {share:5.2f}"
            )
            kernels.close()


if __name__ == "__main__":
    main()
