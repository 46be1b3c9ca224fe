"""Llama 2 and 3 (meta-llama), dense: each layer's FFN is one expert that every token goes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names
from .rope_reader import read_rope

MODEL_TYPE = "llama"

TENSORS = {
    **LLAMA_LIKE,
    **ffn_names(
        "layers.{layer}.experts.{expert}", "model.layers.{layer}.mlp",
        "gate_proj", "up_proj", "down_proj",
    ),
}  # fmt: skip

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "num_key_value_heads": 2,
        "eos_token_id": [2, 3],
    },
    "tied": {"tie_word_embeddings": True, "head_dim": 32},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "dynamic": {
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 32,
    },
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 16.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    # pretraining_tp only cuts the same products into parts.
    reader = ConfigReader(config, irrelevant=frozenset({"pretraining_tp"}))
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.head_dim()
    bias = reader.flag("attention_bias", False)
    layer = paged_dense(None, reader.integer("intermediate_size"))
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        qkv_bias=bias,
        o_bias=bias,
        expert_bias=reader.flag("mlp_bias", False),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec


def paged_dense(window: int | None, intermediate_size: int) -> LayerSpec:
    """A layer whose dense FFN is a page."""
    router = RouterSpec(num_experts=1, top_k=1, scoring="always")
    return LayerSpec(window, intermediate_size, router)
