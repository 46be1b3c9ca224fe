"""GLM-4.5 (zai-org): half of each head rotated, DeepSeek-V3's router, optional q/k norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import ModelSpec
from .config import ConfigReader
from .deepseek import (
    MOE_NAMES,
    count_predictors,
    predictors,
    read_corrected_router,
    read_layers,
)
from .names import LLAMA_LIKE
from .rope_reader import read_rope

__all__ = ["MODEL_TYPE", "TENSORS", "TINY", "VARIANTS", "predictors", "read_config"]

MODEL_TYPE = "glm4_moe"

TENSORS = {**LLAMA_LIKE, **MOE_NAMES}

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "use_qk_norm": False,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 1000000,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": [2, 3],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "groups": {
        "attention_bias": False,
        "use_qk_norm": True,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 2,
    },
    "tied": {
        "tie_word_embeddings": True,
        "partial_rotary_factor": 1.0,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
    },
    "yarn": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.head_dim()
    router = read_corrected_router(reader, groups=1, top_groups=1, scale=1.0)
    count_predictors(reader)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", 8),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim, partial=0.5),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=read_layers(reader, router, dense_layers=1, shared_experts=1),
        qk_norm="head" if reader.flag("use_qk_norm", False) else "none",
        qkv_bias=reader.flag("attention_bias", False),
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec
