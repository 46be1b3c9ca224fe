"""The precision of each part of the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from ..bundle.manifest import Precision
from ..bundle.pages import PRECISIONS, QUANTIZED
from ..errors import ConfigError, InputError, TargetError
from ..model.parameters import expert_shapes, layer_shapes
from ..model.spec import ModelSpec
from ..targets import Target

PARTS = ("experts", "backbone", "head")
BLOCK_SIZES = (32, 64, 128)
DEFAULT = Precision(experts="int4", backbone="int8", head="int8", block_size=64)


def parse_precision(texts: Sequence[str], block_size: int, target: Target) -> Precision:
    """Reads `int4`, or `experts=int4,backbone=int8,head=int8`; later texts win over earlier ones.

    Raises:
        InputError: an unknown part, precision or block size, or one text that names a part twice.
        TargetError: the target cannot run a precision, or the one that a part has by default; the
            message lists those it can.
    """
    if block_size not in BLOCK_SIZES:
        raise InputError(f"block size {block_size} does not exist: choose from 32, 64, 128")
    precision = replace(DEFAULT, block_size=block_size)
    for item, text in ((item.strip(), one) for one in texts for item in one.split(",")):
        part, equals, name = item.rpartition("=")
        part, name = part.strip(), name.strip().lower()
        if equals and part not in PARTS:
            raise InputError(
                f"there is no part {part!r} to set a precision for: {', '.join(PARTS)}"
            )
        if [i.rpartition("=")[0].strip() for i in text.split(",")].count(part) > 1:
            raise InputError(
                f"--precision {text} names {part or 'all parts'} twice: choose one precision"
            )
        if name not in PRECISIONS:
            near = difflib.get_close_matches(name, PRECISIONS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"there is no precision {name!r}: {hint}choose from {', '.join(PRECISIONS)}"
            )
        if name == "fp8" and part != "experts":
            raise InputError("fp8 is for experts alone: use --precision experts=fp8")
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
    lacking = lacking_precision(precision, target)
    if lacking is not None:
        part, name = lacking
        raise TargetError(
            f"target {target.name} has no {name}, in which {part} are stored by default: choose "
            f"with --precision {part}={target.precisions[0]}; it has {', '.join(target.precisions)}"
        )
    return precision


def lacking_precision(precision: Precision, target: Target) -> tuple[str, str] | None:
    """The first part whose precision the target does not have, and that precision.

    The rest is fp32 or fp16 (routers, norms, the embedding), which every target has.
    """
    for part in PARTS:
        name: str = getattr(precision, part)
        if name not in target.precisions:
            return part, name
    return None


def precision_of(parameter: str, precision: Precision) -> str:
    """What a matrix of the backbone is stored in. Routers and gates of a single row stay in fp32:
    a wrong expert costs more than their few bytes."""
    if ".router." in parameter or ".shared_gate." in parameter:
        return "fp32"
    return precision.head if parameter == "head.weight" else precision.backbone


def check_blocks(spec: ModelSpec, precision: Precision) -> None:
    """Every quantized matrix must be made of whole blocks.

    Raises:
        ConfigError: one is not; the message says which blocks would do.
    """
    widths: dict[str, int] = {}
    for layer in range(spec.num_hidden_layers):
        shapes = layer_shapes(spec, layer)
        stored = {name: precision_of(name, precision) for name in shapes}
        if spec.layers[layer].is_paged:
            experts = expert_shapes(spec, layer, 0)
            shapes |= experts
            stored |= dict.fromkeys(experts, precision.experts)
        widths |= {
            name: shape[1]
            for name, shape in shapes.items()
            if len(shape) == 2 and stored[name] in QUANTIZED
        }
    if spec.mla is not None and precision.backbone in QUANTIZED:
        # Its nope rows are used the other way round.
        widths["layers.0.attention.kv_b_proj.weight, transposed,"] = spec.mla.qk_nope_head_dim
    if precision.head in QUANTIZED:
        widths["head.weight"] = spec.hidden_size
    bad = [name for name, width in widths.items() if width % precision.block_size]
    if bad:
        fits = [str(b) for b in BLOCK_SIZES if not any(w % b for w in widths.values())]
        remedy = f"use --block {' or '.join(fits)}" if fits else "use --precision fp16"
        raise ConfigError(
            f"{bad[0]} has {widths[bad[0]]} input features, not a multiple of the block size "
            f"{precision.block_size}: {remedy}"
        )
