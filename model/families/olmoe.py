"""OLMoE (allenai): every layer routed, q/k norm over the full width, q, k, v optionally clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names

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


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    reader.require("attention_bias", False)
    heads, hidden = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    layer = LayerSpec(
        window=None,
        intermediate_size=reader.integer("intermediate_size"),
        router=RouterSpec(
            num_experts=reader.integer("num_experts"),
            top_k=reader.integer("num_experts_per_tok", 8),
            normalize=reader.flag("norm_topk_prob", False),
        ),
    )
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", heads),
        head_dim=hidden // max(heads, 1),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope_theta=reader.rope_theta(10_000.0),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=(layer,) * reader.integer("num_hidden_layers"),
        qk_norm="full",
        clip_qkv=reader.optional_number("clip_qkv"),
        bos_token_id=reader.optional_integer("bos_token_id"),
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec
