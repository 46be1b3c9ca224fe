"""Mistral 7B and its dense successors (mistralai): Llama, on every layer a window or on none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import ModelSpec
from .config import ConfigReader
from .llama import TENSORS as LLAMA_TENSORS
from .llama import paged_dense
from .rope_reader import read_rope

MODEL_TYPE = "mistral"

TENSORS = LLAMA_TENSORS

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"sliding_window": None, "head_dim": 32, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "sliding_window": 16},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": 4},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.head_dim()
    window = reader.optional_integer("sliding_window", 4096)
    layer = paged_dense(window, reader.integer("intermediate_size"))
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(8),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec
