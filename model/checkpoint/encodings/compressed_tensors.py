"""compressed-tensors (vllm-project/compressed-tensors): integers of 4 or 8 bits, and FP8.

"pack-quantized": `X.weight_packed` is I32 `[out, in · bits / 32]`, values plus 2^(bits − 1), lowest
bits first; `X.weight_scale` `[out, groups]`; asymmetric ones have `X.weight_zero_point`, I32
`[out · bits / 32, groups]` packed along the outputs, or I8 `[out, groups]` from older releases;
`X.weight_g_idx` I32 `[in]` is the group of each input where they are not in order.
"int-quantized", "float-quantized", "naive-quantized": `X.weight` itself is I8 or F8_E4M3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ....errors import ConfigError
from ...families.config import ConfigReader
from ...parameters import Shape
from .encoding import (
    SCALE_DTYPES,
    SECTION,
    EncodedMatrix,
    EncodedPart,
    Headers,
    module_name,
    rescale,
    section_reader,
    unpack,
)

if TYPE_CHECKING:
    import torch

NAME = "compressed-tensors"
_PACKED = "pack-quantized"
_FORMATS = (_PACKED, "int-quantized", "float-quantized", "naive-quantized")
_DTYPES = {"int": "I8", "float": "F8_E4M3"}


@dataclass(frozen=True)
class Scheme:
    """How matrices of one group of modules are stored.

    dtype: of values that are not packed. block: rows and columns that share a scale; None for all
    there are.
    """

    packed: bool
    bits: int
    dtype: str
    block: tuple[int | None, int | None]
    symmetric: bool

    def matrix(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        """The matrix, if it is stored packed or plainly as the scheme has it."""
        name, stored = module_name(weight), weight
        values, dtypes = shape, (self.dtype,)
        if self.packed:
            stored, dtypes = f"{name}.weight_packed", ("I32",)
            values = (shape[0], -(-shape[1] * self.bits // 32))
        if stored not in headers or headers[stored].dtype not in dtypes:
            return None
        block = (self.block[0] or shape[0], self.block[1] or shape[1])
        scales: Shape = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        scale, zero, groups = (f"{name}.weight_{part}" for part in ("scale", "zero_point", "g_idx"))
        if block == shape and scale in headers and prod(headers[scale].shape) == 1:
            scales = headers[scale].shape  # one number, with or without axes
        parts = {
            "weight": EncodedPart(stored, values, dtypes),
            "scale": EncodedPart(scale, scales, SCALE_DTYPES),
        }
        if not self.symmetric:
            parts["zero"] = EncodedPart(zero, scales, ("I8",))
            if self.packed and zero in headers and headers[zero].dtype == "I32":
                parts["zero"] = EncodedPart(
                    zero, (-(-scales[0] * self.bits // 32), scales[1]), ("I32",)
                )
        if self.packed and groups in headers:
            parts["groups"] = EncodedPart(groups, (shape[1],), ("I32",))
        return EncodedMatrix(parts, lambda tensors: self._decode(tensors, shape, block))

    def _decode(
        self, parts: Mapping[str, torch.Tensor], shape: Shape, block: Shape
    ) -> torch.Tensor:
        import torch

        def values(chunk: slice) -> torch.Tensor:
            stored = parts["weight"][chunk]
            return unpack(stored, self.bits)[:, : shape[1]] if self.packed else stored

        scale, zero, groups = parts["scale"], parts.get("zero"), parts.get("groups")
        offset = 1 << (self.bits - 1) if self.packed else 0
        if groups is not None and bool((groups < 0).any()):
            groups = None  # the file holds it unused
        scale = scale.reshape(1, 1) if scale.dim() < 2 else scale
        if zero is None:
            return rescale(values, shape, scale, block, offset, groups)
        if zero.dtype == torch.int32:
            zero = unpack(zero.T, self.bits).T[: len(scale)]
        else:
            zero = zero.reshape(scale.shape).to(torch.int32) + offset
        return rescale(values, shape, scale, block, zero, groups)


@dataclass(frozen=True)
class CompressedTensors:
    """schemes: one for each group of the config. Which one a matrix has shows in its tensors."""

    schemes: tuple[Scheme, ...]

    name = NAME
    # What inputs, outputs and cached keys and values are quantized with changes no weight; the
    # shape of a packed matrix follows from the model's config.
    extras = frozenset(
        "input_scale input_zero_point k_scale k_zero_point output_scale output_zero_point q_scale "
        "q_zero_point v_scale v_zero_point weight_shape".split()
    )

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
        found = [scheme.matrix(weight, shape, headers) for scheme in self.schemes]
        matrices = [matrix for matrix in found if matrix is not None]
        fitting = (
            matrix
            for matrix in matrices
            if all(
                part.tensor in headers
                and headers[part.tensor].shape[-len(part.shape) or 1 :] == part.shape
                for part in matrix.parts.values()
            )
        )
        return next(fitting, matrices[0] if matrices else None)


def read_compressed_tensors(config: Mapping[str, Any]) -> CompressedTensors:
    """Reads quantization_config. Activations and the cache may be quantized too; that is left out,
    as it changes no weight.

    Raises:
        ConfigError: a format, strategy, type or number of bits is not supported.
    """
    reader = section_reader(
        config,
        "dequantize global_compression_ratio ignore kv_cache_scheme quantization_status "
        "run_compressed use_optimized_inference version",
    )
    sparsity = reader.take("sparsity_config", {})
    if sparsity != {} and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
        raise reader.refusal("sparsity_config", "none, or format 'dense'")
    reader.require("transform_config", {})
    reader.require("format", *_FORMATS, "mixed-precision")
    groups = reader.take("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise reader.refusal("config_groups", "an object")
    schemes = tuple(
        _read_scheme(f"{SECTION}.config_groups.{name}", group, reader.take("format", _PACKED))
        for name, group in groups.items()
    )
    reader.finish()
    return CompressedTensors(schemes)


def _read_scheme(section: str, group: Any, default_format: str) -> Scheme:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise ConfigError(
            f"config.json: {section} = {group!r} is not supported for {NAME}: expected an object "
            "with weights"
        )
    outer = ConfigReader(
        {"format": default_format, **{key: value for key, value in group.items() if value}},
        frozenset({"input_activations", "output_activations", "targets", "weights"}),
        section=section,
        family=NAME,
    )
    outer.require("format", *_FORMATS)
    packed = outer.take("format") == _PACKED
    outer.finish()
    reader = ConfigReader(
        group["weights"],
        # How the weights came about; where actorder has moved columns, there is a g_idx.
        frozenset("actorder observer observer_kwargs scale_dtype zp_dtype".split()),
        section=f"{section}.weights",
        family=NAME,
    )
    kind = reader.take("type", "int")
    reader.require("type", "int", *(() if packed else ("float",)))
    bits = reader.integer("num_bits", 8)
    reader.require("num_bits", 8, *((4,) if packed else ()))
    reader.require("dynamic", False)
    symmetric = reader.flag("symmetric", True)
    size = reader.optional_integer("group_size")
    strategy = reader.take("strategy", {None: "tensor", -1: "channel"}.get(size, "group"))
    structure = reader.integers("block_structure", ())
    blocks: dict[str, tuple[int | None, int | None]] = {
        "tensor": (None, None),
        "channel": (1, None),
        "group": (1, size),
    }
    if len(structure) == 2 and min(structure) > 0:
        blocks["block"] = (structure[0], structure[1])
    if (
        not isinstance(strategy, str)
        or strategy not in blocks
        or (strategy == "group" and (size is None or size < 1))
    ):
        raise reader.refusal("strategy", "tensor, channel, group with group_size, or block")
    reader.finish()
    return Scheme(packed, bits, _DTYPES[kind], blocks[strategy], symmetric)
