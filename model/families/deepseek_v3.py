"""DeepSeek-V3 and R1: MLA, dense first layers, sigmoid router with a correction and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import ModelSpec
from .config import ConfigReader
from .deepseek import (
    MLA_NAMES,
    MOE_NAMES,
    TRAINING_KEYS,
    count_predictors,
    predictors,
    read_corrected_router,
    read_latent,
    read_layers,
)

__all__ = ["MODEL_TYPE", "TENSORS", "TINY", "VARIANTS", "predictors", "read_config"]

MODEL_TYPE = "deepseek_v3"

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
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 8,
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "rope_interleave": True,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "halves": {
        "rope_interleave": False,
        "rope_scaling": None,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    "biases": {
        "attention_bias": True,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
    },
    "tied": {
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config, irrelevant=TRAINING_KEYS)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    mla, rope, scale = read_latent(reader, interleaved=reader.flag("rope_interleave", True))
    router = read_corrected_router(reader, groups=8, top_groups=4, scale=2.5)
    bias = reader.flag("attention_bias", False)
    count_predictors(reader)
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
        layers=read_layers(reader, router, dense_layers=3, shared_experts=1),
        mla=mla,
        attention_scale=scale,
        qkv_bias=bias,
        o_bias=bias,
        eos_token_ids=reader.integers("eos_token_id", 1),
    )
    reader.finish()
    return spec
