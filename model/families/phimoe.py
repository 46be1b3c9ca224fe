"""Phi-3.5-MoE (microsoft): sparsemixer routing, LayerNorm with bias, a bias nearly everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..rope import RopeSpec
from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .mixtral import TENSORS as MIXTRAL_TENSORS
from .rope_reader import read_rope

MODEL_TYPE = "phimoe"

TENSORS = {
    **MIXTRAL_TENSORS,
    "norm.bias": "model.norm.bias",
    "head.bias": "lm_head.bias",
    "layers.{layer}.attention_norm.bias": "model.layers.{layer}.input_layernorm.bias",
    "layers.{layer}.ffn_norm.bias": "model.layers.{layer}.post_attention_layernorm.bias",
}

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "lm_head_bias": True,
    "router_jitter_noise": 0.4,
    "input_jitter_noise": 0.01,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "longrope": {
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 2.5],
            "long_factor": [1.0, 1.3, 2.0, 4.0, 8.0, 16.0, 32.0, 40.0],
            "short_mscale": 1.1,
            "long_mscale": 1.25,
            "original_max_position_embeddings": 128,
        },
    },
    "window": {"sliding_window": 8, "lm_head_bias": False, "num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True, "attention_bias": False, "router_jitter_noise": 0.01},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config, irrelevant=frozenset({"input_jitter_noise"}))
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.split_head_dim()
    bias = reader.flag("attention_bias", False)
    layer = LayerSpec(
        window=reader.optional_integer("sliding_window"),
        intermediate_size=reader.integer("intermediate_size"),
        router=RouterSpec(
            num_experts=reader.integer("num_local_experts", 16),
            top_k=reader.integer("num_experts_per_tok", 2),
            scoring="sparsemixer",
            jitter=reader.number("router_jitter_noise", 0.01),
        ),
    )
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(8),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=_rope(reader, head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        norm="layer",
        qkv_bias=bias,
        o_bias=bias,
        head_bias=reader.flag("lm_head_bias", False),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec


def _rope(reader: ConfigReader, head_dim: int) -> RopeSpec:
    """LongRoPE with attention factors of its own. As in the model's published code, the long
    factors count beyond the original length; transformers keeps to the short ones."""
    rope = read_rope(
        reader,
        head_dim=head_dim,
        theta=1_000_000.0,
        kinds=("default", "longrope"),
        extra=("short_mscale", "long_mscale"),
    )
    if rope.kind == "default":
        return rope
    section = reader.rope_section()
    section.require("attention_factor", None)
    return replace(
        rope,
        attention_factor=section.positive("short_mscale"),
        long_attention_factor=section.positive("long_mscale"),
    )
