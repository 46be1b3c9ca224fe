"""Random weights without a checkpoint: parameters of the backbone, and finished expert pages.

All numbers are cut from one block of normal ones, at another place for each tensor: quick, and as
hard to quantize as independent ones. Weights have a standard deviation of 0.02 and norms are 1, but
for what would make all tokens alike, so that they go to the same experts: embedding rows enter the
model with a standard deviation of 1, and what attention adds, which neighbouring tokens have in
common, is smaller by the square root of twice the number of layers, as where training begins.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod, sqrt

import numpy as np
import torch

from pocketmoe.bundle.manifest import Precision
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.compiler.quantize import quantize_fp8, quantize_matrix
from pocketmoe.model.checkpoint.tensors import TILE_BYTES
from pocketmoe.model.parameters import end_shapes, layer_shapes
from pocketmoe.model.spec import ModelSpec

STD = 0.02
NUMBERS = 16_000_057  # of the block; prime, so that no row length divides it


class RandomSource:
    """Stands where the compiler reads a checkpoint. A parameter is the same at every reading."""

    def __init__(self, spec: ModelSpec, seed: int, numbers: int = NUMBERS):
        self._spec, self._seed = spec, seed
        self._normal = np.random.default_rng(seed).standard_normal(numbers, np.float32)
        self._shapes = {"embed.weight": (spec.vocab_size, spec.hidden_size), **end_shapes(spec)}
        for layer in range(spec.num_hidden_layers):
            self._shapes |= layer_shapes(spec, layer)

    def tensors(self) -> AbstractContextManager[RandomSource]:
        return nullcontext(self)

    def tiles(self, parameter: str) -> Iterator[torch.Tensor]:
        """A parameter of the backbone in float32, as blocks of rows."""
        shape = self._shapes[parameter]
        random = np.random.default_rng([self._seed, zlib.crc32(parameter.encode())])
        start = int(random.integers(len(self._normal)))
        row = prod(shape[1:])
        step = max(1, TILE_BYTES // (4 * row))
        for first in range(0, shape[0], step):
            block = np.empty((min(step, shape[0] - first), *shape[1:]), np.float32)
            if "norm" in parameter:
                block[:] = parameter.endswith("weight")
            else:
                copy_round(block.view(np.uint8).reshape(-1), self._normal, start + first * row)
                block *= self._std(parameter)
            yield torch.from_numpy(block)

    def _std(self, parameter: str) -> np.float32:
        if parameter == "embed.weight":
            return np.float32(1 / self._spec.embedding_multiplier)
        joins_residual = parameter.endswith("attention.o_proj.weight")
        return np.float32(STD / sqrt(2 * self._spec.num_hidden_layers) if joins_residual else STD)

    def pages(self, precision: Precision) -> RandomPages:
        return RandomPages(precision, STD * self._normal, self._seed)


class RandomPages:
    """Pages at the precision of a bundle's experts. The block of numbers is quantized once; each
    projection is a stretch of what comes out, with its scales."""

    def __init__(self, precision: Precision, numbers: np.ndarray, seed: int):
        self._seed, self._biases = seed, numbers
        self._scales = np.empty(0, np.float16)
        if precision.experts == "fp8":
            size = precision.block_size
            blocks = numbers[: len(numbers) // size * size].reshape(-1, size)
            self._values, self._scales = quantize_fp8(blocks, size)
        elif precision.experts in ("int4", "int8"):
            size, bits = precision.block_size, 4 if precision.experts == "int4" else 8
            blocks = numbers[: len(numbers) // size * size].reshape(-1, size)
            quantized = quantize_matrix(blocks, bits, size)
            self._values = quantized.packed_int4() if bits == 4 else quantized.values
            self._scales = quantized.scales
        else:
            self._values = numbers.astype(np.float16 if precision.experts == "fp16" else np.float32)

    def layer(self, layer: int, num_experts: int, page_format: PageFormat) -> Iterator[bytearray]:
        """The pages of a layer's experts, in their order."""
        for expert in range(num_experts):
            page = bytearray(page_format.nbytes)
            random = np.random.default_rng([self._seed, layer, expert])
            start = 0
            for place in page_format.tensors():
                target = np.frombuffer(page, np.uint8, place.nbytes, place.offset)
                if place.kind == "scales":  # of the values just before
                    copy_round(target, self._scales, start)
                    continue
                source = self._biases if place.kind == "bias" else self._values
                start = int(random.integers(len(source)))
                copy_round(target, source, start)
            yield page


def copy_round(target: np.ndarray, source: np.ndarray, start: int) -> None:
    """Fills `target`, uint8, from the bytes of `source` from its item `start` on; after its last
    item comes its first."""
    data = source.reshape(len(source), -1).view(np.uint8)
    start = start % len(data) * data.shape[1]
    data = data.reshape(-1)
    filled = 0
    while filled < len(target):
        part = data[start : start + len(target) - filled]
        target[filled : filled + len(part)] = part
        filled += len(part)
        start = 0
