"""Qwen3-MoE: q/k norm per head; routed layers by `decoder_sparse_step` and `mlp_only_layers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names

MODEL_TYPE = "qwen3_moe"

TENSORS = {
    **LLAMA_LIKE,
    "layers.{layer}.router.weight": "model.layers.{layer}.mlp.gate.weight",
    **ffn_names(
        "layers.{layer}.ffn", "model.layers.{layer}.mlp",
        "gate_proj", "up_proj", "down_proj",
    ),
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
    # transformers 5 writes num_local_experts, earlier versions num_experts.
    experts_key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    router = RouterSpec(
        num_experts=reader.integer(experts_key),
        top_k=reader.integer("num_experts_per_tok", 8),
        normalize=reader.flag("norm_topk_prob", False),
    )
    window = reader.optional_integer("sliding_window")
    if reader.flag("use_sliding_window", False):
        reader.require("max_window_layers", None)
        if "sliding_window" not in config:
            raise reader.refusal("sliding_window", "a value, for use_sliding_window is true")
    else:
        reader.take("max_window_layers", None)
        window = None
    dense_width = reader.integer("intermediate_size")
    moe_width = reader.integer("moe_intermediate_size")
    dense_layers = reader.integers("mlp_only_layers", ())
    step = reader.integer("decoder_sparse_step", 1)
    if step < 1:
        raise reader.refusal("decoder_sparse_step", "at least 1")
    layers = tuple(
        LayerSpec(window, dense_width)
        if index in dense_layers or (index + 1) % step
        else LayerSpec(window, moe_width, router)
        for index in range(reader.integer("num_hidden_layers"))
    )
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", hidden // max(heads, 1)),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope_theta=reader.rope_theta(10_000.0),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=layers,
        qk_norm="head",
        bos_token_id=reader.optional_integer("bos_token_id"),
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec
