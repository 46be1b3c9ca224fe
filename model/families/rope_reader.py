"""RopeSpec of a config: the keys of each kind of scaling, and defaults that depend on others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from ...errors import ConfigError
from ...powers import logarithm
from ..rope import RopeKind, RopeSpec
from .config import ConfigReader

ALL_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


def read_rope(
    reader: ConfigReader,
    *,
    head_dim: int,
    theta: float = 10_000.0,
    interleaved: bool = False,
    kinds: tuple[RopeKind, ...] = ALL_KINDS,
    partial: float | None = None,
    extra: tuple[str, ...] = (),
) -> RopeSpec:
    """Rotary embeddings, from either generation of config keys; defaults are those of
    transformers' modeling_rope_utils.

    theta: where the config names no base. kinds: those that the family has. partial: default of
    partial_rotary_factor; None for families that rotate whole heads. extra: further keys of
    rope_scaling, which the family takes from `ConfigReader.rope_section`.

    Raises:
        ConfigError: a key is unknown, missing, of another type or out of range.
    """
    section = reader.rope_section()
    kind_key = "type" if section.take("rope_type", None) is None else "rope_type"
    kind = section.take(kind_key, "default")
    if kind not in kinds:
        raise section.refusal(kind_key, " or ".join(repr(known) for known in kinds))
    section.require("type", kind)
    base = _holder(reader, section, "rope_theta").positive("rope_theta", theta)
    holder = _holder(reader, section, "partial_rotary_factor")
    share = holder.positive("partial_rotary_factor", partial or 1.0)
    if share > 1.0 or (partial is None and share != 1.0):
        raise holder.refusal("partial_rotary_factor", "at most 1" if partial else "1.0")
    rope = RopeSpec(base, int(head_dim * share), interleaved, kind)
    if kind != "default":
        rope = _READERS[kind](rope, reader, section)
    for name in extra:
        section.take(name, None)
    section.finish()
    return rope


def _linear(rope: RopeSpec, reader: ConfigReader, section: ConfigReader) -> RopeSpec:
    return replace(rope, factor=section.positive("factor"))


def _dynamic(rope: RopeSpec, reader: ConfigReader, section: ConfigReader) -> RopeSpec:
    if rope.dim < 4:
        raise ConfigError(
            f"config.json: dynamic scaling needs at least 4 rotated elements, not {rope.dim}"
        )
    length = reader.integer("max_position_embeddings")
    return replace(rope, factor=section.positive("factor"), original_length=length)


def _yarn(rope: RopeSpec, reader: ConfigReader, section: ConfigReader) -> RopeSpec:
    if rope.theta <= 1:
        raise _holder(reader, section, "rope_theta").refusal("rope_theta", "more than 1")
    factor = section.positive("factor")
    mscale, mscale_all_dim = _mscale(section, "mscale"), _mscale(section, "mscale_all_dim")
    if mscale and mscale_all_dim:
        attention = yarn_scale(factor, mscale) / yarn_scale(factor, mscale_all_dim)
    else:
        attention = yarn_scale(factor)
    return replace(
        rope,
        factor=factor,
        original_length=_original_length(reader, section),
        attention_factor=_attention_factor(section, attention),
        beta_fast=section.positive("beta_fast", 32.0),
        beta_slow=section.positive("beta_slow", 1.0),
        truncate=section.flag("truncate", True),
    )


def _llama3(rope: RopeSpec, reader: ConfigReader, section: ConfigReader) -> RopeSpec:
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    if high <= low:
        raise section.refusal("high_freq_factor", f"more than low_freq_factor ({low})")
    return replace(
        rope,
        factor=section.positive("factor"),
        original_length=_original_length(reader, section),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _longrope(rope: RopeSpec, reader: ConfigReader, section: ConfigReader) -> RopeSpec:
    original = _original_length(reader, section)
    factor = reader.integer("max_position_embeddings") / original
    if section.take("factor", None) is not None:
        factor = section.positive("factor")
    attention = math.sqrt(1 + logarithm(factor) / logarithm(original)) if factor > 1 else 1.0
    attention = _attention_factor(section, attention)
    return replace(
        rope,
        factor=factor,
        original_length=original,
        attention_factor=attention,
        long_attention_factor=attention,
        short_factors=section.positives("short_factor", rope.dim // 2),
        long_factors=section.positives("long_factor", rope.dim // 2),
    )


_READERS: dict[RopeKind, Callable[[RopeSpec, ConfigReader, ConfigReader], RopeSpec]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """How much larger YaRN makes attention's logits at a factor (arXiv:2309.00071, eq. 22)."""
    return 0.1 * mscale * logarithm(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(section: ConfigReader, derived: float) -> float:
    given = section.take("attention_factor", None) is not None
    return section.positive("attention_factor") if given else derived


def _mscale(section: ConfigReader, name: str) -> float:
    """0 counts as absent."""
    return section.positive(name) if section.number(name, 0.0) else 0.0


def _original_length(reader: ConfigReader, section: ConfigReader) -> int:
    name = "original_max_position_embeddings"
    holder = _holder(reader, section, name)
    length = holder.integer(name, reader.integer("max_position_embeddings"))
    if length < 2:
        raise holder.refusal(name, "at least 2")
    return length


def _holder(reader: ConfigReader, section: ConfigReader, name: str) -> ConfigReader:
    """Which of the two has a key that may stand in both; the values must agree."""
    inner, outer = section.take(name, None), reader.take(name, None)
    if inner is not None and outer is not None and inner != outer:
        raise section.refusal(name, f"{outer!r}, which stands outside too")
    if section.has(name) and (inner is None or outer is None):
        return section
    return reader if reader.has(name) else section
