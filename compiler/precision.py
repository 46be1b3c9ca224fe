"""Which precision each part of the model is stored in."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from ..errors import ConfigError, InputError, TargetError
from ..model.parameters import expert_shapes, layer_shapes
from ..model.spec import ModelSpec
from ..runtime.bundle import Precision
from ..runtime.pages import PRECISIONS
from ..targets.devices import Target

PARTS = ("experts", "backbone", "head")
BLOCK_SIZES = (32, 64, 128)
DEFAULT = Precision(experts="int4", backbone="int8", head="int8", block_size=64)


def parse_precision(texts: Sequence[str], block_size: int, target: Target) -> Precision:
    """Reads `int4`, or `experts=int4,backbone=int8,head=int8`; later texts win over earlier ones.

    Raises:
        InputError: an unknown part, precision or block size.
        TargetError: the target cannot run a precision; the message lists those it can.
    """
    if block_size not in BLOCK_SIZES:
        raise InputError(f"block size {block_size} does not exist: choose from 32, 64, 128")
    precision = replace(DEFAULT, block_size=block_size)
    for item in (item.strip() for text in texts for item in text.split(",")):
        part, equals, name = item.rpartition("=")
        part, name = part.strip(), name.strip().lower()
        if equals and part not in PARTS:
            raise InputError(
                f"there is no part {part!r} to set a precision for: {', '.join(PARTS)}"
            )
        if name not in PRECISIONS:
            near = difflib.get_close_matches(name, PRECISIONS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"there is no precision {name!r}: {hint}choose from {', '.join(PRECISIONS)}"
            )
        if name not in target.precisions:
            raise TargetError(
                f"target {target.name} has no {name}; it has {', '.join(target.precisions)}"
            )
        precision = replace(
            precision,
            experts=name if part in ("", "experts") else precision.experts,
            backbone=name if part in ("", "backbone") else precision.backbone,
            head=name if part in ("", "head") else precision.head,
        )
    return precision


def check_blocks(spec: ModelSpec, precision: Precision) -> None:
    """Every quantized matrix must be made of whole blocks.

    Raises:
        ConfigError: one is not; the message says which blocks would do.
    """
    widths: dict[str, int] = {}
    for layer in range(spec.num_hidden_layers):
        if precision.backbone in ("int4", "int8"):
            shapes = layer_shapes(spec, layer)
            widths |= {n: s[1] for n, s in shapes.items() if len(s) == 2 and "router" not in n}
        if precision.experts in ("int4", "int8") and spec.layers[layer].is_moe:
            widths |= {name: shape[1] for name, shape in expert_shapes(spec, layer, 0).items()}
    if precision.head in ("int4", "int8"):
        widths["head.weight"] = spec.hidden_size
    bad = [name for name, width in widths.items() if width % precision.block_size]
    if bad:
        fits = [str(b) for b in BLOCK_SIZES if not any(w % b for w in widths.values())]
        remedy = f"use --block {' or '.join(fits)}" if fits else "use --precision fp16"
        raise ConfigError(
            f"{bad[0]} has {widths[bad[0]]} input features, not a multiple of the block size "
            f"{precision.block_size}: {remedy}"
        )
