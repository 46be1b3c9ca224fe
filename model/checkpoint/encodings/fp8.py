"""FP8 with a float scale per block, as DeepSeek-V3 is published (arXiv:2412.19437, section 3.3).

`X.weight` is F8_E4M3 `[out, in]`; `X.weight_scale_inv` is what each block is multiplied by, its
name notwithstanding. Without blocks there is one scale for the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ...parameters import Shape
from .encoding import (
    SCALE_DTYPES,
    EncodedMatrix,
    EncodedPart,
    Headers,
    module_name,
    rescale,
    section_reader,
)

NAME = "fp8"
_DTYPE = "F8_E4M3"
_BLOCK = (128, 128)


class Fp8:
    """block: rows and columns of a block; None where the config does not say."""

    name = NAME
    extras = frozenset({"input_scale", "k_scale", "v_scale"})

    def __init__(self, block: Shape | None):
        self._block = block

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        if weight not in headers or headers[weight].dtype != _DTYPE:
            return None
        scale = f"{module_name(weight)}.weight_scale"
        if scale not in headers:
            scale += "_inv"
        stored = headers[scale].shape if scale in headers else None
        block = self._block or _BLOCK
        scales: Shape = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        if self._block is None and stored is not None and prod(stored) == 1:
            block, scales = shape, stored
        return EncodedMatrix(
            {
                "weight": EncodedPart(weight, shape, (_DTYPE,)),
                "scale": EncodedPart(scale, scales, (*SCALE_DTYPES, "F8_E8M0")),
            },
            lambda parts: rescale(
                lambda chunk: parts["weight"][chunk],
                shape,
                parts["scale"].reshape((1, 1, *scales)[-2:]),
                block,
            ),
        )


def read_fp8(config: Mapping[str, Any]) -> Fp8:
    """Reads quantization_config. Others quantize inputs and the cache too, as they come or with a
    scale that is stored; that changes no weight, so activation_scheme and kv_cache_scheme are of no
    account. Neither is scale_fmt: scales are read in the type that they are stored in."""
    reader = section_reader(
        config,
        "activation_scheme dequantize ignored_layers kv_cache_scheme modules_to_convert "
        "modules_to_not_convert scale_fmt",
    )
    reader.require("fmt", "e4m3", "float8_e4m3fn")
    reader.require("expert_dtype", "fp8")
    block = reader.integers("weight_block_size", ())
    if block and (len(block) != 2 or min(block) < 1):
        raise reader.refusal("weight_block_size", "two integers of at least 1")
    reader.finish()
    return Fp8(block or None)
