"""Granite 3 MoE (ibm-granite): all experts of a layer in two tensors, multipliers all along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, Place
from .rope_reader import read_rope

MODEL_TYPE = "granitemoe"

_MOE = "model.layers.{layer}.block_sparse_moe"
_INPUT, _OUTPUT = f"{_MOE}.input_linear.weight", f"{_MOE}.output_linear.weight"

TENSORS = {
    **LLAMA_LIKE,
    "layers.{layer}.router.weight": f"{_MOE}.router.layer.weight",
    "layers.{layer}.experts.{expert}.gate.weight": Place(_INPUT, stacked=True, rows="first"),
    "layers.{layer}.experts.{expert}.up.weight": Place(_INPUT, stacked=True, rows="second"),
    "layers.{layer}.experts.{expert}.down.weight": Place(_OUTPUT, stacked=True),
}

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "attention_bias": False,
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 4, "rms_norm_eps": 1e-4},
    "biased": {"attention_bias": True, "embedding_multiplier": 1.0, "residual_multiplier": 1.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}, "attention_multiplier": 0.2},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.split_head_dim()
    bias = reader.flag("attention_bias", False)
    layer = LayerSpec(
        window=None,
        intermediate_size=reader.integer("intermediate_size"),
        # A softmax over the chosen logits is one over all of them, divided by its chosen part.
        router=RouterSpec(
            num_experts=reader.integer("num_local_experts", 8),
            top_k=reader.integer("num_experts_per_tok", 2),
            normalize=True,
        ),
    )
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
        attention_scale=reader.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        o_bias=bias,
        embedding_multiplier=reader.number("embedding_multiplier", 1.0),
        residual_multiplier=reader.number("residual_multiplier", 1.0),
        logits_scaling=reader.number("logits_scaling", 1.0),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec
