"""DeepSeek-V2: MLA, dense first layers, softmax router with groups, shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import ModelSpec, RouterSpec
from .config import ConfigReader
from .deepseek import MLA_NAMES, MOE_NAMES, TRAINING_KEYS, read_latent, read_layers

MODEL_TYPE = "deepseek_v2"

TENSORS = {**MLA_NAMES, **MOE_NAMES}

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "groups": {
        "q_lora_rank": 32,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 4.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 8,
            "original_max_position_embeddings": 32,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    },
    "biases": {
        "q_lora_rank": 32,
        "attention_bias": True,
        "mlp_bias": True,
        "first_k_dense_replace": 0,
    },
    "tied": {
        "tie_word_embeddings": True,
        "max_position_embeddings": 32,
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config, irrelevant=TRAINING_KEYS)
    reader.require("hidden_act", "silu")
    # transformers does not normalise; the published code would.
    reader.require("norm_topk_prob", False, None)
    heads = reader.integer("num_attention_heads")
    mla, rope, scale = read_latent(reader, interleaved=True)
    bias = reader.flag("attention_bias", False)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=rope,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=read_layers(reader, _read_router(reader), dense_layers=0, shared_experts=2),
        mla=mla,
        attention_scale=scale,
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=reader.flag("mlp_bias", False),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec


def _read_router(reader: ConfigReader) -> RouterSpec:
    reader.require("scoring_func", "softmax")
    reader.require("topk_method", "greedy", "group_limited_greedy")
    if reader.take("topk_method", "greedy") == "greedy":
        reader.require("n_group", 1, None)
        reader.require("topk_group", 1, None)
    groups, top_groups = (reader.optional_integer(name) for name in ("n_group", "topk_group"))
    return RouterSpec(
        num_experts=reader.integer("n_routed_experts"),
        top_k=reader.integer("num_experts_per_tok"),
        num_groups=1 if groups is None else groups,
        top_groups=1 if top_groups is None else top_groups,
        scale=reader.number("routed_scaling_factor", 1.0),
    )
