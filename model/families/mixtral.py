"""Mixtral (mistralai): every layer routed, top-k weights always renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names
from .rope_reader import read_rope

MODEL_TYPE = "mixtral"

TENSORS = {
    **LLAMA_LIKE,
    "layers.{layer}.router.weight": "model.layers.{layer}.block_sparse_moe.gate.weight",
    **ffn_names(
        "layers.{layer}.experts.{expert}",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}",
        "w1", "w3", "w2",
    ),
}  # fmt: skip


TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 8, "head_dim": 32, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-3, "rope_theta": 500.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_key_value_heads": 4},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config, irrelevant=frozenset({"router_jitter_noise"}))
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    layer = LayerSpec(
        window=reader.optional_integer("sliding_window"),
        intermediate_size=reader.integer("intermediate_size"),
        router=RouterSpec(
            num_experts=reader.integer("num_local_experts"),
            top_k=reader.integer("num_experts_per_tok", 2),
            normalize=True,
        ),
    )
    head_dim = reader.head_dim()
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(8),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim, theta=1_000_000.0),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec
