"""Round-to-nearest block quantization: symmetric, fp16 scales, a small clip search for int4.

Calibrated methods (GPTQ, AWQ) are to return the same `QuantizedMatrix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Gives a parameter as float32, in consecutive blocks of rows.
ReadTiles = Callable[[str], Iterator[np.ndarray]]

# Shares of the largest magnitude of a block that its scale may cover.
_CLIPS = {4: (1.0, 0.94, 0.88, 0.82), 8: (1.0,)}
# Below it fp16 has too few bits left: a block so small is as good as zero.
_SMALLEST_SCALE = 1e-5
_FP8_LARGEST = np.float32(448)
# Elements that fit a core's cache: each step below runs over a tile before the next tile is read.
_TILE = 1 << 16


@dataclass(frozen=True)
class QuantizedMatrix:
    """values: int8 `[out, in]`, of `bits` bits; scales: fp16 `[out, in / block]`.

    The matrix is values · scales, each scale repeated over its block.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int

    @property
    def block_size(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def dequantized(self) -> np.ndarray:
        """float32 `[out, in]`."""
        return self.values * np.repeat(self.scales.astype(np.float32), self.block_size, axis=1)

    def packed_int4(self) -> np.ndarray:
        """uint8 `[out, in / 2]`: the even element in the low nibble (ONNX INT4)."""
        pairs = np.ascontiguousarray(self.values).view(np.uint16)
        return ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)

    def unsigned_blocks(self) -> np.ndarray:
        """MatMulNBits: uint8 `[out, in / block, block · bits / 8]`, zero point 2^(bits-1)."""
        rows, columns = self.values.shape
        if self.bits == 8:
            stored = self.values.view(np.uint8) ^ np.uint8(0x80)
        else:
            stored = self.packed_int4() ^ np.uint8(0x88)
        return stored.reshape(rows, columns // self.block_size, -1)


def quantize_matrix(matrix: np.ndarray, bits: int, block_size: int) -> QuantizedMatrix:
    """Quantizes float32 `[out, in]`, in a multiple of block_size; 4 or 8 bits.

    Each block's scale is the one of a few clips with the least squared error.
    """
    rows, columns = matrix.shape
    blocks = np.ascontiguousarray(matrix, np.float32).reshape(-1, block_size)
    values = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float16)
    step = max(1, _TILE // block_size)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        _quantize_tile(blocks[part], bits, values[part], scales[part])
    return QuantizedMatrix(values.reshape(rows, columns), scales.reshape(rows, -1), bits)


def quantize_fp8(matrix: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 `[out, in]` as e4m3 (OCP 8-bit floating point): uint8 `[out, in]`, and the fp16
    scales `[out, in / block]` that put each block's largest magnitude on the largest number."""
    rows, columns = matrix.shape
    blocks = np.ascontiguousarray(matrix, np.float32).reshape(-1, block_size)
    largest = np.abs(blocks).max(axis=1)
    scales = np.maximum(largest / _FP8_LARGEST, _SMALLEST_SCALE).astype(np.float16)
    scaled = blocks / scales.astype(np.float32)[:, None]
    np.clip(scaled, -_FP8_LARGEST, _FP8_LARGEST, out=scaled)
    values = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return values.reshape(rows, columns), scales.reshape(rows, -1)


def _quantize_tile(blocks: np.ndarray, bits: int, values: np.ndarray, scales: np.ndarray) -> None:
    """Fills `values` and `scales` for blocks `[N, block]`."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    rounded, error = np.empty_like(blocks), np.empty_like(blocks)
    least = np.full(len(blocks), np.inf, np.float32)
    best = np.zeros(len(blocks), np.float16)
    for clip in _CLIPS[bits]:
        candidate = np.maximum(largest * (clip / high), _SMALLEST_SCALE).astype(np.float16)
        _round_to(blocks, candidate, low, high, rounded)
        np.multiply(rounded, candidate.astype(np.float32)[:, None], out=error)
        np.subtract(error, blocks, out=error)
        squared = np.einsum("ij,ij->i", error, error)
        better = squared < least
        least[better], best[better] = squared[better], candidate[better]
    _round_to(blocks, best, low, high, rounded)
    values[...] = rounded
    scales[...] = best


def _round_to(blocks: np.ndarray, scales: np.ndarray, low: int, high: int, out: np.ndarray) -> None:
    np.multiply(blocks, (1.0 / scales.astype(np.float32))[:, None], out=out)
    np.rint(out, out=out)
    np.maximum(out, low, out=out)
    np.minimum(out, high, out=out)
