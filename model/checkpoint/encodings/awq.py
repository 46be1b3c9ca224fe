"""AWQ (arXiv:2306.00978) in AutoAWQ's "gemm" layout.

`X.qweight` is I32 `[in, out / 8]`, `X.qzeros` I32 `[groups, out / 8]`, `X.scales` `[groups, out]`.
A word holds outputs 0 2 4 6 1 3 5 7 of eight, from its lowest nibble up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...parameters import Shape
from .encoding import (
    PACKER_KEYS,
    SCALE_DTYPES,
    EncodedMatrix,
    EncodedPart,
    Headers,
    check_dynamic,
    module_name,
    read_group_size,
    rescale,
    section_reader,
    unpack,
)

if TYPE_CHECKING:
    import torch

NAME = "awq"
_BITS = 4
_PACKED = 32 // _BITS
_NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Awq:
    """group_size: inputs that share a scale; None for all of them."""

    group_size: int | None

    name = NAME
    extras = frozenset[str]()

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        name = module_name(weight)
        if f"{name}.qweight" not in headers:
            return None
        rows, columns = shape
        size = self.group_size or columns
        groups, words = -(-columns // size), -(-rows // _PACKED)
        return EncodedMatrix(
            {
                "qweight": EncodedPart(f"{name}.qweight", (columns, words), ("I32",)),
                "qzeros": EncodedPart(f"{name}.qzeros", (groups, words), ("I32",)),
                "scales": EncodedPart(f"{name}.scales", (groups, rows), SCALE_DTYPES),
            },
            lambda parts: rescale(
                lambda chunk: _outputs(parts["qweight"], chunk).T,
                shape,
                parts["scales"].T,
                (1, size),
                _outputs(parts["qzeros"], slice(0, rows)).T,
            ),
        )


def _outputs(words: torch.Tensor, outputs: slice) -> torch.Tensor:
    """Some of what int32 `[n, out / 8]` holds, as uint8 `[n, outputs]` in their order. The first
    of them is a multiple of 8."""
    words = words[:, outputs.start // _PACKED : -(-outputs.stop // _PACKED)]
    values = unpack(words, _BITS).unflatten(-1, (-1, _PACKED))
    return values[..., list(_NIBBLE_OF_OUTPUT)].flatten(-2)[:, : outputs.stop - outputs.start]


def read_awq(config: Mapping[str, Any]) -> Awq:
    reader = section_reader(config, f"{PACKER_KEYS} desc_act")
    reader.require("method", NAME)
    reader.require("pack_dtype", "int32")
    reader.require("bits", _BITS)
    reader.require("zero_point", True)
    reader.require("data_type", "int")
    reader.require("packing_format", "auto_awq", "auto_round:auto_awq")
    check_dynamic(reader)
    for key in ("version", "format", "checkpoint_format"):
        if str(reader.take(key, "gemm")).lower() != "gemm":
            raise reader.refusal(key, "'gemm'")
    encoding = Awq(read_group_size(reader))
    reader.finish()
    return encoding
