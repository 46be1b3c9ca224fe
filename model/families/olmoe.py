"""OLMoE (allenai): every layer routed, q/k norm over the full width, q, k, v optionally clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names
from .rope_reader import read_rope

MODEL_TYPE = "olmoe"

TENSORS = {
    **LLAMA_LIKE,
    "layers.{layer}.router.weight": "model.layers.{layer}.mlp.gate.weight",
    **ffn_names(
        "layers.{layer}.experts.{expert}",
        "model.layers.{layer}.mlp.experts.{expert}",
        "gate_proj", "up_proj", "down_proj",
    ),
}  # fmt: skip


TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "attention_bias": False,
    "clip_qkv": None,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "clipped": {"clip_qkv": 0.5, "num_key_value_heads": 2},
    "biased": {"attention_bias": True, "norm_topk_prob": True},
    "tied": {
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 32,
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    bias = reader.flag("attention_bias", False)
    heads = reader.integer("num_attention_heads")
    layer = LayerSpec(
        window=None,
        intermediate_size=reader.integer("intermediate_size"),
        router=RouterSpec(
            num_experts=reader.integer("num_experts"),
            top_k=reader.integer("num_experts_per_tok", 8),
            normalize=reader.flag("norm_topk_prob", False),
        ),
    )
    head_dim = reader.split_head_dim()
    clip = reader.optional_number("clip_qkv")
    if clip is not None and clip <= 0:
        raise reader.refusal("clip_qkv", "a number greater than 0")
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        qk_norm="full",
        qkv_bias=bias,
        o_bias=bias,
        clip_qkv=clip,
        eos_token_ids=reader.integers("eos_token_id", 50279),
    )
    reader.finish()
    return spec
