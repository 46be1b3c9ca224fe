"""The native kernels give the same bytes however they are run: threads, batches, callers, forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pocketmoe.bundle.pages import PageFormat
from pocketmoe.model.spec import SILU
from pocketmoe.runtime.native import kernels as native
from pocketmoe.runtime.native import library
from pocketmoe.tests.support.native_oracle import CLAMPED, SHAPES, make_page, run_one

pytestmark = pytest.mark.skipif(not library.available(), reason="no native library")
SETS = library.instruction_sets()


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.NativeKernels]:
    made = native.NativeKernels(2, instruction_set=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f"{f[0]}-{f[1]}-{f[2]}x{f[3]}")
def test_experts_are_the_same_in_all_instruction_sets(shape: tuple[str, int, int, int]) -> None:
    fmt = PageFormat(*shape, True, CLAMPED)
    rng = np.random.default_rng(2)
    page, _ = make_page(fmt, rng)
    x = rng.standard_normal((33, fmt.hidden_size), np.float32)
    results = set()
    for name in SETS:
        made = native.NativeKernels(1, instruction_set=name)
        results.add(run_one(made, fmt, page, x).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("columns", [1, 15, 16, 24, 64, 130])
def test_floats_are_summed_in_one_order(precision: str, columns: int) -> None:
    """In every instruction set and tile: rows that go together with others, and tokens."""
    rng = np.random.default_rng(columns)
    weights = rng.standard_normal((13, columns)).astype(precision.replace("fp", "float"))
    x = rng.standard_normal((9, columns), np.float32)
    results = set()
    for name in SETS:
        kernels = native.NativeKernels(1, instruction_set=name)
        for tokens in (1, 2, 3, 4, 5, 9):
            parts = [
                kernels.product(weights, x[t : t + tokens], precision=precision)
                for t in range(0, 9, tokens)
            ]
            results.add(np.concatenate(parts).tobytes())
        alone = [
            kernels.product(weights[r : r + 1].copy(), x, precision=precision) for r in range(13)
        ]
        results.add(np.concatenate(alone, axis=1).tobytes())
    assert len(results) == 1


def test_a_product_and_a_sum_are_rounded_once() -> None:
    """1 · c + (1 + ε) · (1 − ε) · 2^-24 lies closer to halfway between two floats than a double
    shows: what a processor without fused multiply-adds must not round first."""
    weights, x = np.zeros((2, 1, 32), np.float32)
    c, epsilon = np.float32(1 + 2**-23), np.float32(2**-15)
    weights[0, [0, 16]] = 1, 1 + epsilon
    x[0, [0, 16]] = c, (1 - epsilon) * np.float32(2**-24)
    for name in SETS:
        kernels = native.NativeKernels(1, instruction_set=name)
        assert kernels.product(weights, x, precision="fp32")[0, 0] == c


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("extra", [0, 1, 4, 11])
def test_long_rows_with_the_largest_values(precision: str, block: int, extra: int) -> None:
    """Sixteen blocks and some more, for one token and for many; sums as large as they can be."""
    rng = np.random.default_rng(extra)
    rows, columns = 37, (16 + extra) * block
    stored = columns // 2 if precision == "int4" else columns
    weights = rng.integers(0, 256, (rows, stored), np.uint8)
    weights[:2] = 0x88 if precision == "int4" else 0x80  # the lowest in all places
    weights[2:4] = 0x77 if precision == "int4" else 0x7F
    scales = rng.uniform(0.5, 1.5, (rows, 16 + extra)).astype(np.float16)
    x = rng.standard_normal((9, columns), np.float32)
    x[0], x[1] = 1, -1
    weights = weights.view(np.int8) if precision == "int8" else weights
    results = set()
    for name in SETS:
        kernels = native.NativeKernels(1, instruction_set=name)
        for count in (1, 2, 9):
            parts = [
                kernels.product(weights, x[t : t + count], precision=precision, scales=scales)
                for t in range(0, 9, count)
            ]
            results.add(np.concatenate(parts).tobytes())
    assert len(results) == 1


def a_layer(
    fmt: PageFormat, experts: int, n_tokens: int, top_k: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """pages, starts, tokens, weights, x of a layer with random routes."""
    rng = np.random.default_rng(3)
    pages = [make_page(fmt, rng)[0] for _ in range(experts)]
    x = rng.standard_normal((n_tokens, fmt.hidden_size), np.float32)
    chosen = np.argsort(rng.random((n_tokens, experts)), axis=1)[:, :top_k]
    order = np.argsort(chosen.ravel(), kind="stable")
    counts = np.bincount(chosen.ravel(), minlength=experts)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    weights = rng.random(n_tokens * top_k, np.float32)
    return pages, starts, (order // top_k).astype(np.int64), weights[order], x


@pytest.mark.parametrize("n_tokens", [1, 2, 9, 40, 300])
@pytest.mark.parametrize(
    "shape", [("int4", 32, 192, 96), ("int8", 64, 128, 192), ("fp16", 0, 72, 50)]
)
def test_same_bytes_however_it_is_run(
    kernels: native.NativeKernels, shape: tuple[str, int, int, int], n_tokens: int
) -> None:
    fmt = PageFormat(*shape, True, SILU)
    expert_format = native.ExpertFormat(fmt)
    pages, starts, tokens, weights, x = a_layer(fmt, 6, n_tokens, 3)
    base = np.random.default_rng(4).standard_normal(x.shape).astype(np.float32)
    wanted = base.copy()
    kernels.run_experts(expert_format, pages, starts, tokens, weights, x, wanted)

    for threads in (1, 3, 5):
        other = native.NativeKernels(threads, spin_us=0, instruction_set=kernels.instruction_set)
        out = base.copy()
        other.run_experts(expert_format, pages, starts, tokens, weights, x, out)
        assert out.tobytes() == wanted.tobytes()

    out = base.copy()  # expert by expert
    for e, page in enumerate(pages):
        part = slice(starts[e], starts[e + 1])
        local = np.array([0, starts[e + 1] - starts[e]])
        kernels.run_experts(expert_format, [page], local, tokens[part], weights[part], x, out)
    assert out.tobytes() == wanted.tobytes()

    terms = np.full((len(tokens), fmt.hidden_size), np.nan, np.float32)  # as pages come
    for e in np.random.default_rng(5).permutation(len(pages)):
        part = slice(starts[e], starts[e + 1])
        local = np.array([0, starts[e + 1] - starts[e]])
        kernels.expert_terms(
            expert_format, [pages[e]], local, tokens[part], weights[part], x, terms[part]
        )
    out = base.copy()
    kernels.add_terms(tokens, terms, out)
    assert out.tobytes() == wanted.tobytes()

    out = base.copy()  # token by token
    for t in range(n_tokens):
        picked = np.flatnonzero(tokens == t)
        chosen = np.searchsorted(starts, picked, side="right") - 1
        kernels.run_experts(
            expert_format, [pages[e] for e in chosen], np.arange(len(chosen) + 1),
            np.zeros(len(chosen), np.int64), weights[picked], x[t : t + 1], out[t : t + 1],
        )  # fmt: skip
    assert out.tobytes() == wanted.tobytes()


def test_memory_is_as_foreseen() -> None:
    fmt = PageFormat("int4", 32, 192, 96)
    pages, starts, tokens, weights, x = a_layer(fmt, 6, 40, 3)
    kernels = native.NativeKernels(2)
    assert kernels.nbytes == 0
    kernels.run_experts(
        native.ExpertFormat(fmt), pages, starts, tokens, weights, x, np.zeros_like(x)
    )
    bound = kernels.scratch_bytes(native.ExpertFormat(fmt), 40, len(tokens))
    assert 0 < kernels.nbytes <= bound < 4 << 20


def test_callers_on_several_threads() -> None:
    fmt = PageFormat("int4", 32, 192, 96)
    layer = a_layer(fmt, 6, 40, 3)
    pages, starts, tokens, weights, x = layer
    shared = native.NativeKernels(2)
    results: list[bytes] = []

    def run(kernels: native.NativeKernels) -> None:
        for _ in range(50):
            out = np.zeros_like(x)
            kernels.run_experts(native.ExpertFormat(fmt), pages, starts, tokens, weights, x, out)
            results.append(out.tobytes())

    own = native.NativeKernels(2)
    threads = [threading.Thread(target=run, args=(k,)) for k in (shared, shared, own)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 150
    assert len(set(results)) == 1
    own.close()
    own.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_works_after_a_fork() -> None:
    kernels = native.NativeKernels(3)
    weights = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    x = np.ones((2, 64), np.float32)
    wanted = kernels.product(weights, x, precision="fp32").tobytes()
    child = os.fork()
    if child == 0:
        same = kernels.product(weights, x, precision="fp32").tobytes() == wanted
        kernels.close()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert kernels.product(weights, x, precision="fp32").tobytes() == wanted
