"""Plain products of the native kernels against numpy in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pocketmoe.runtime.native import kernels as native
from pocketmoe.runtime.native import library
from pocketmoe.tests.support.native_oracle import assert_close, quantize_activations

pytestmark = pytest.mark.skipif(not library.available(), reason="no native library")
SETS = library.instruction_sets()
TOKENS = (0, 1, 2, 3, 7, 33, 128)


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[native.NativeKernels]:
    made = native.NativeKernels(2, instruction_set=request.param)
    yield made
    made.close()


def test_subnormal_scales(kernels: native.NativeKernels) -> None:
    rng = np.random.default_rng(8)
    weights = rng.integers(-128, 128, (40, 64), np.int8)
    scales = np.full((40, 2), 3e-7, np.float16)
    assert 0 < scales[0, 0] < np.finfo(np.float16).smallest_normal
    x = rng.standard_normal((4, 64), np.float32)
    values, steps = quantize_activations(x, 32)
    rounded = (values * steps[..., None]).reshape(x.shape)
    wanted = rounded.astype(np.float64) @ (weights * scales.astype(np.float64)[0, 0]).T
    assert_close(kernels.product(weights, x, precision="int8", scales=scales), wanted, True)


@pytest.mark.parametrize("wide", [False, True], ids=["fp16-scales", "fp32-scales"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_product(
    kernels: native.NativeKernels, precision: str, block: int, wide: bool
) -> None:
    rng = np.random.default_rng(9)
    for rows in (1, 5, 32, 50, 331):
        columns = 3 * block
        low = -8 if precision == "int4" else -128
        values = rng.integers(low, -low, (rows, columns), np.int8)
        scales = rng.uniform(0.01, 0.02, (rows, 3)).astype(np.float32 if wide else np.float16)
        bias = rng.standard_normal(rows).astype(np.float32)
        stored = values
        if precision == "int4":
            stored = (values[:, ::2] & 15 | (values[:, 1::2] & 15) << 4).astype(np.uint8)
        for n in TOKENS:
            x = rng.standard_normal((n, columns), np.float32)
            q, steps = quantize_activations(x, block) if n else (x[None], x)
            rounded = (q * steps[..., None]).reshape(x.shape) if n else x
            matrix = values * np.repeat(scales.astype(np.float64), block, axis=1)
            y = kernels.product(stored, x, precision=precision, scales=scales, bias=bias)
            assert_close(y, rounded.astype(np.float64) @ matrix.T + bias, False)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_float_product(kernels: native.NativeKernels, precision: str) -> None:
    rng = np.random.default_rng(10)
    for rows, columns in ((1, 1), (5, 16), (33, 130), (64, 1000)):
        weights = rng.standard_normal((rows, columns)).astype(
            np.float16 if precision == "fp16" else np.float32
        )
        for n in TOKENS:
            x = rng.standard_normal((n, columns), np.float32)
            wanted = x.astype(np.float64) @ weights.astype(np.float64).T
            assert_close(kernels.product(weights, x, precision=precision), wanted, False)
