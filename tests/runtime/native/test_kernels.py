"""The native kernels against numpy in float64, for every instruction set that this machine has.

Quantized products are compared twice: with an oracle that rounds activations as the kernels do, and
with the exact result, within what that rounding may do to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pocketmoe.bundle.pages import PageFormat
from pocketmoe.model.spec import SILU, Activation
from pocketmoe.runtime.native import kernels as native
from pocketmoe.runtime.native import library
from pocketmoe.tests.support.native_oracle import (
    CLAMPED,
    SHAPES,
    aligned,
    assert_close,
    expert,
    make_page,
    rounding_bound,
    run_one,
)

pytestmark = pytest.mark.skipif(not library.available(), reason="no native library")
SETS = library.instruction_sets()
TOKENS = (0, 1, 2, 3, 7, 33, 128)


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.NativeKernels]:
    made = native.NativeKernels(2, instruction_set=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("activation", [SILU, CLAMPED], ids=lambda a: a.kind)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f"{f[0]}-{f[1]}-{f[2]}x{f[3]}")
def test_expert_agrees_with_float64(
    kernels: native.NativeKernels,
    shape: tuple[str, int, int, int],
    bias: bool,
    activation: Activation,
) -> None:
    fmt = PageFormat(*shape, bias, activation)
    rng = np.random.default_rng([fmt.hidden_size, fmt.intermediate_size, fmt.block_size])
    page, tensors = make_page(fmt, rng)
    for n in TOKENS:
        x = rng.standard_normal((n, fmt.hidden_size), np.float32) * 3
        found = run_one(kernels, fmt, page, x)
        assert_close(found, expert(fmt, tensors, x), fmt.quantized)
        if fmt.quantized and n and activation is SILU:
            exact = expert(fmt, tensors, x, exact=True)
            assert (np.abs(found - exact) <= 1.05 * rounding_bound(fmt, tensors, x) + 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_large_odd_shape(kernels: native.NativeKernels, precision: str) -> None:
    fmt = PageFormat(precision, 64 if precision != "fp16" else 0, 2880, 2880, True, CLAMPED)
    rng = np.random.default_rng(1)
    page, tensors = make_page(fmt, rng)
    x = rng.standard_normal((7, 2880), np.float32)
    wanted = expert(fmt, tensors, x)
    assert_close(run_one(kernels, fmt, page, x), wanted, fmt.quantized)
    assert_close(run_one(kernels, fmt, page, x[:1]), wanted[:1], fmt.quantized)


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_bad_numbers_stay_with_their_token(
    kernels: native.NativeKernels, precision: str, n_tokens: int
) -> None:
    fmt = PageFormat(precision, 32 if precision.startswith("int") else 0, 96, 64, False, SILU)
    rng = np.random.default_rng(6)
    page, _ = make_page(fmt, rng)
    x = rng.standard_normal((n_tokens, 96), np.float32)
    clean = run_one(kernels, fmt, page, x)
    assert np.isfinite(clean).all()
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[-1, 37] = bad
        found = run_one(kernels, fmt, page, spoilt)
        assert not np.isfinite(found[-1]).any()
        assert found[:-1].tobytes() == clean[:-1].tobytes()
    largest = np.full_like(x, np.finfo(np.float32).max)
    run_one(kernels, fmt, page, largest)  # whatever comes, no trap


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_small_numbers(kernels: native.NativeKernels, precision: str) -> None:
    fmt = PageFormat(precision, 32 if precision.startswith("int") else 0, 96, 64, True, SILU)
    page, tensors = make_page(fmt, np.random.default_rng(7))
    for size in (0.0, 1e-45, 1e-40, 1e-37, 1e-30):
        x = np.full((3, 96), size, np.float32)
        assert_close(run_one(kernels, fmt, page, x), expert(fmt, tensors, x), fmt.quantized)
    plain = PageFormat(precision, fmt.block_size, 96, 64, False, SILU)
    page, _ = make_page(plain, np.random.default_rng(7))
    assert not run_one(kernels, plain, page, np.zeros((3, 96), np.float32)).any()


def test_nothing_to_do(kernels: native.NativeKernels) -> None:
    fmt = PageFormat("int4", 32, 64, 32)
    expert_format = native.ExpertFormat(fmt)
    page, _ = make_page(fmt, np.random.default_rng(0))
    none, no_weights = np.zeros(0, np.int64), np.zeros(0, np.float32)
    x = np.ones((2, 64), np.float32)
    out = np.zeros_like(x)
    kernels.run_experts(expert_format, [], np.zeros(1, np.int64), none, no_weights, x, out)
    kernels.run_experts(expert_format, [page], np.zeros(2, np.int64), none, no_weights, x, out)
    kernels.add_terms(none, np.zeros((0, 64), np.float32), out)
    assert not out.any()


def test_refuses_what_does_not_fit() -> None:
    kernels = native.NativeKernels(1)
    fmt = PageFormat("int4", 32, 64, 32)
    page, _ = make_page(fmt, np.random.default_rng(0))
    expert_format = native.ExpertFormat(fmt)
    starts, tokens, weights = np.array([0, 1]), np.array([0]), np.ones(1, np.float32)
    x, out = np.ones((1, 64), np.float32), np.zeros((1, 64), np.float32)

    def run(**changed: object) -> None:
        arguments = {
            "pages": [page], "starts": starts, "tokens": tokens, "weights": weights, "x": x,
            "out": out,
        } | changed  # fmt: skip
        kernels.run_experts(expert_format, **arguments)  # type: ignore[arg-type]

    run()
    shifted = aligned(fmt.nbytes + 8)[8:]
    for changed in (
        {"pages": [page[:100]]},
        {"pages": [shifted]},
        {"pages": [page.view(np.int8)]},
        {"starts": np.array([0, 1], np.int32)},
        {"starts": np.array([1, 1])},
        {"starts": np.array([0, 2])},
        {"tokens": np.array([1])},
        {"tokens": np.array([-1])},
        {"weights": np.ones(1)},
        {"x": np.ones((1, 32), np.float32)},
        {"x": np.ones((1, 128), np.float32)[:, ::2]},
        {"out": np.zeros((2, 64), np.float32)},
    ):
        with pytest.raises(ValueError, match=r"must|short|refused"):
            run(**changed)
    with pytest.raises(RuntimeError, match="sse9"):
        native.NativeKernels(1, instruction_set="sse9")
    with pytest.raises(RuntimeError):
        native.NativeKernels(0)
