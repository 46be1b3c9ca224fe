"""GPTQ (arXiv:2210.17323), as AutoGPTQ and GPTQModel pack it.

`X.qweight` is I32 `[in · bits / 32, out]`, `X.qzeros` I32 `[groups, out · bits / 32]`, `X.scales`
`[groups, out]`, `X.g_idx` I32 `[in]` the group of each input. Of the zero points, the format "gptq"
stores one less than they are and "gptq_v2" what they are.
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

NAME = "gptq"
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class Gptq:
    """group_size: inputs that share a scale; None for all of them. zero_offset: what is added to
    stored zero points. ordered: groups are consecutive inputs, unless a g_idx says otherwise."""

    bits: int
    group_size: int | None
    zero_offset: int
    ordered: bool

    name = NAME
    extras = frozenset[str]()

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        name = module_name(weight)
        if f"{name}.qweight" not in headers:
            return None
        rows, columns = shape
        groups, packed = -(-columns // (self.group_size or columns)), 32 // self.bits
        parts = {
            "qweight": EncodedPart(f"{name}.qweight", (-(-columns // packed), rows), ("I32",)),
            "qzeros": EncodedPart(f"{name}.qzeros", (groups, -(-rows // packed)), ("I32",)),
            "scales": EncodedPart(f"{name}.scales", (groups, rows), SCALE_DTYPES),
        }
        if f"{name}.g_idx" in headers or not self.ordered:
            parts["g_idx"] = EncodedPart(f"{name}.g_idx", (columns,), ("I32",))
        return EncodedMatrix(parts, lambda tensors: self._decode(tensors, shape))

    def _decode(self, parts: Mapping[str, torch.Tensor], shape: Shape) -> torch.Tensor:
        rows, columns = shape

        def values(chunk: slice) -> torch.Tensor:
            return unpack(parts["qweight"][:, chunk].T, self.bits)[:, :columns]

        # The offset wraps: packers that stored 0 less one kept its lowest bits.
        zeros = (unpack(parts["qzeros"], self.bits) + self.zero_offset) & ((1 << self.bits) - 1)
        block, groups = (1, self.group_size or columns), parts.get("g_idx")
        return rescale(values, shape, parts["scales"].T, block, zeros[:, :rows].T, groups)


def read_gptq(config: Mapping[str, Any]) -> Gptq:
    reader = section_reader(config, PACKER_KEYS)
    reader.require("method", NAME)
    reader.require("bits", 4, 8)
    reader.require("pack_dtype", "int32")
    reader.require("is_marlin_format", False)
    reader.require("format", *_ZERO_OFFSETS)
    reader.require("checkpoint_format", *_ZERO_OFFSETS)
    stored = reader.take("checkpoint_format", None) or reader.take("format", "gptq")
    reader.require("data_type", "int")
    reader.require("packing_format", "auto_gptq", "auto_round:auto_gptq")
    check_dynamic(reader)
    encoding = Gptq(
        bits=reader.integer("bits"),
        group_size=read_group_size(reader),
        zero_offset=_ZERO_OFFSETS[stored],
        ordered=not reader.flag("desc_act", False),
    )
    reader.finish()
    return encoding
