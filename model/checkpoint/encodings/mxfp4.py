"""MXFP4, as gpt-oss is published: 4-bit floats (E2M1) in blocks of 32 with a power of two each
(OCP Microscaling Formats 1.0).

`X_blocks` is U8 `[out, in / 32, 16]`, the even element of a pair in the low nibble; `X_scales` is
U8 `[out, in / 32]`, the exponent plus 127. Rows are outputs, though transformers holds the same
parameter in bf16 as `[in, out]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...parameters import Shape
from .encoding import EncodedMatrix, EncodedPart, Headers, chunks, module_name, section_reader

if TYPE_CHECKING:
    import torch

NAME = "mxfp4"
_BLOCK = 32
_BIAS = 127
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Mxfp4:
    name = NAME
    extras: frozenset[str] = frozenset()

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        blocks, scales = (f"{module_name(weight)}_{part}" for part in ("blocks", "scales"))
        if blocks not in headers:
            return None
        rows, columns = shape[0], -(-shape[1] // _BLOCK)
        return EncodedMatrix(
            {
                "blocks": EncodedPart(blocks, (rows, columns, _BLOCK // 2), ("U8",)),
                "scales": EncodedPart(scales, (rows, columns), ("U8",)),
            },
            lambda parts: _decode(parts["blocks"], parts["scales"])[:, : shape[1]],
            by_row=True,
        )


def _decode(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    values = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], dtype=np.float32)
    byte = np.arange(256)
    # The two floats of a byte, fetched as one item of 8 bytes.
    pairs = np.stack((values[byte & 15], values[byte >> 4]), axis=-1).view(np.uint64)[:, 0]
    result = np.empty((*scales.shape, _BLOCK), dtype=np.float32)
    for chunk in chunks(len(result), result[0].size):
        exponents = scales[chunk].numpy().astype(np.int32) - _BIAS
        floats = pairs[blocks[chunk].numpy()].view(np.float32)
        np.multiply(floats, np.ldexp(np.float32(1), exponents)[..., None], out=result[chunk])
    return torch.from_numpy(result.reshape(len(result), -1))


def read_mxfp4(config: Mapping[str, Any]) -> Mxfp4:
    section_reader(config, "dequantize modules_to_not_convert").finish()
    return Mxfp4()
