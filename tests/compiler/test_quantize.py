"""Block quantization against a plain float64 implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pocketmoe.compiler.quantize import quantize_matrix
from pocketmoe.tests.support.examples import examples

FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@settings(max_examples=examples(60), deadline=None)
@given(arrays(np.float32, (3, 128), elements=FINITE), st.sampled_from([32, 64, 128]))
def test_int8_is_within_half_a_step(matrix: np.ndarray, block_size: int) -> None:
    quantized = quantize_matrix(matrix, 8, block_size)
    steps = np.repeat(quantized.scales.astype(np.float64), block_size, axis=1)
    # fp16 rounds a scale by up to 2^-11 (2^-25 if subnormal): the largest element misses by that.
    rounding = np.maximum(steps / 2048, 2.0**-25)
    assert (np.abs(quantized.dequantized() - matrix) <= 0.501 * steps + 128 * rounding).all()


@settings(max_examples=examples(60), deadline=None)
@given(arrays(np.float32, (2, 64), elements=FINITE), st.sampled_from([32, 64]))
def test_int4_is_never_worse_than_no_clipping(matrix: np.ndarray, block_size: int) -> None:
    quantized = quantize_matrix(matrix, 4, block_size)
    assert quantized.values.min() >= -8
    assert quantized.values.max() <= 7
    blocks = matrix.astype(np.float64).reshape(-1, block_size)
    scales = np.maximum(np.abs(blocks).max(axis=1) / 7, 1e-5).astype(np.float16)
    scales = scales.astype(np.float64)[:, None]
    plain = np.clip(np.rint(blocks / scales), -8, 7) * scales
    found = quantized.dequantized().astype(np.float64).reshape(-1, block_size)
    before = ((plain - blocks) ** 2).sum(axis=1)
    after = ((found - blocks) ** 2).sum(axis=1)
    assert (after <= before * (1 + 1e-3) + 1e-9).all()


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.115), (8, 0.008)])
def test_error_on_normal_weights(bits: int, limit: float) -> None:
    matrix = np.random.default_rng(0).normal(0, 0.02, (256, 512)).astype(np.float32)
    found = quantize_matrix(matrix, bits, 32).dequantized()
    relative = np.linalg.norm(found - matrix) / np.linalg.norm(matrix)
    assert 0 < relative < limit


def test_small_weights_keep_their_digits() -> None:
    matrix = np.random.default_rng(2).normal(0, 1e-3, (64, 128)).astype(np.float32)
    found = quantize_matrix(matrix, 8, 32).dequantized()
    assert np.linalg.norm(found - matrix) / np.linalg.norm(matrix) < 0.01


def test_zeros_stay_zero() -> None:
    quantized = quantize_matrix(np.zeros((4, 64), np.float32), 4, 32)
    assert not quantized.dequantized().any()
    assert np.isfinite(quantized.scales).all()


def test_unsigned_blocks_are_the_values_around_the_zero_point() -> None:
    matrix = np.random.default_rng(1).normal(size=(6, 64)).astype(np.float32)
    eight = quantize_matrix(matrix, 8, 32)
    assert np.array_equal(
        eight.unsigned_blocks().reshape(6, 64).astype(int) - 128, eight.values.astype(int)
    )
    four = quantize_matrix(matrix, 4, 32)
    stored = four.unsigned_blocks().reshape(6, 32)
    assert np.array_equal((stored & 15).astype(int) - 8, four.values[:, 0::2].astype(int))
    assert np.array_equal((stored >> 4).astype(int) - 8, four.values[:, 1::2].astype(int))
