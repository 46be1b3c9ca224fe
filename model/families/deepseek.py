"""Shared parts of DeepSeek's families, some of others: MLA, layers, routers, prediction layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rope import RopeSpec
from ..spec import LayerSpec, MlaSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, Place, ffn_names
from .rope_reader import read_rope, yarn_scale

_ATTENTION = "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"

# Dense first layers, then routed ones with shared experts.
MOE_NAMES: dict[str, str | Place] = {
    "layers.{layer}.router.weight": f"{_MLP}.gate.weight",
    "layers.{layer}.router_correction": f"{_MLP}.gate.e_score_correction_bias",
    **ffn_names("layers.{layer}.ffn", _MLP, "gate_proj", "up_proj", "down_proj"),
    **ffn_names(
        "layers.{layer}.shared", f"{_MLP}.shared_experts", "gate_proj", "up_proj", "down_proj"
    ),
    **ffn_names(
        "layers.{layer}.experts.{expert}", f"{_MLP}.experts.{{expert}}",
        "gate_proj", "up_proj", "down_proj",
    ),
}  # fmt: skip

MLA_NAMES: dict[str, str | Place] = {
    **LLAMA_LIKE,
    **{
        f"layers.{{layer}}.attention.{ours}.{part}": f"{_ATTENTION}.{theirs}.{part}"
        for ours, theirs in (
            ("q_a_proj", "q_a_proj"),
            ("q_a_norm", "q_a_layernorm"),
            ("q_b_proj", "q_b_proj"),
            ("kv_a_proj", "kv_a_proj_with_mqa"),
            ("kv_a_norm", "kv_a_layernorm"),
            ("kv_b_proj", "kv_b_proj"),
        )
        for part in ("weight", "bias")
    },
}

# Keys of published configs that matter in training alone.
TRAINING_KEYS = frozenset({"aux_loss_alpha", "ep_size", "pretraining_tp", "seq_aux"})


def read_latent(reader: ConfigReader, interleaved: bool) -> tuple[MlaSpec, RopeSpec, float | None]:
    """MLA, its rotary embeddings, and the scale of attention where YaRN changes it.

    With YaRN's mscale_all_dim the scale is that of the head times yarn_scale² (DeepSeek-V2's
    published code).
    """
    mla = MlaSpec(
        q_lora_rank=reader.optional_integer("q_lora_rank", 1536),
        kv_lora_rank=reader.integer("kv_lora_rank", 512),
        qk_nope_head_dim=reader.integer("qk_nope_head_dim", 128),
        qk_rope_head_dim=reader.integer("qk_rope_head_dim", 64),
        v_head_dim=reader.integer("v_head_dim", 128),
    )
    head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    # What transformers writes beside them.
    reader.require("head_dim", mla.qk_rope_head_dim, None)
    reader.require("qk_head_dim", head_dim, None)
    reader.require("num_key_value_heads", reader.integer("num_attention_heads"), None)
    rope = read_rope(reader, head_dim=mla.qk_rope_head_dim, interleaved=interleaved)
    mscale = reader.rope_section().number("mscale_all_dim", 0.0)
    if not mscale:
        return mla, rope, None
    return mla, rope, max(head_dim, 1) ** -0.5 * yarn_scale(rope.factor, mscale) ** 2


def read_layers(
    reader: ConfigReader, router: RouterSpec, dense_layers: int, shared_experts: int
) -> tuple[LayerSpec, ...]:
    """first_k_dense_replace dense layers, then routed ones; the defaults are the family's."""
    reader.require("moe_layer_freq", 1)
    first_routed = reader.integer("first_k_dense_replace", dense_layers)
    if first_routed < 0:
        raise reader.refusal("first_k_dense_replace", "0 or more")
    shared = reader.optional_integer("n_shared_experts", shared_experts) or 0
    if shared < 0:
        raise reader.refusal("n_shared_experts", "0 or more")
    width = reader.integer("moe_intermediate_size")
    dense = LayerSpec(None, reader.integer("intermediate_size"))
    routed = LayerSpec(None, width, router, shared * width)
    return tuple(
        dense if index < first_routed else routed
        for index in range(reader.integer("num_hidden_layers"))
    )


def read_corrected_router(
    reader: ConfigReader, groups: int, top_groups: int, scale: float
) -> RouterSpec:
    """DeepSeek-V3's: sigmoid scores, experts chosen by score + correction in the best groups."""
    reader.require("scoring_func", "sigmoid")
    reader.require("topk_method", "noaux_tc")
    return RouterSpec(
        num_experts=reader.integer("n_routed_experts"),
        top_k=reader.integer("num_experts_per_tok", 8),
        normalize=reader.flag("norm_topk_prob", True),
        scoring="sigmoid",
        correction=True,
        num_groups=reader.integer("n_group", groups),
        top_groups=reader.integer("topk_group", top_groups),
        group_score="top2",
        scale=reader.number("routed_scaling_factor", scale),
        least_sum=1e-20,
    )


def count_predictors(reader: ConfigReader) -> int:
    """Layers for multi-token prediction, by the config key of either generation; 1 by default."""
    counts = [
        (name, reader.integer(name))
        for name in ("num_nextn_predict_layers", "num_mtp_layers")
        if reader.has(name)
    ]
    for name, count in counts:
        if count < 0 or count != counts[0][1]:
            raise reader.refusal(name, "0 or more, the same under both names")
    return counts[0][1] if counts else 1


def predictors(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Prediction layers are stored as if they came after the last layer."""
    reader = ConfigReader(config)
    after = reader.integer("num_hidden_layers")
    return tuple(f"model.layers.{after + index}." for index in range(count_predictors(reader)))
