"""Qwen2-MoE (Qwen1.5-MoE too): a gated shared expert, biases of q, k and v; which layers are routed
and which slide stands in several keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names
from .rope_reader import read_rope

MODEL_TYPE = "qwen2_moe"

TENSORS = {
    **LLAMA_LIKE,
    "layers.{layer}.router.weight": "model.layers.{layer}.mlp.gate.weight",
    "layers.{layer}.shared_gate.weight": "model.layers.{layer}.mlp.shared_expert_gate.weight",
    **ffn_names(
        "layers.{layer}.shared", "model.layers.{layer}.mlp.shared_expert",
        "gate_proj", "up_proj", "down_proj",
    ),
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

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "qkv_bias": True,
    "use_sliding_window": False,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "window": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
        "mlp_only_layers": [1],
    },
    "layer types": {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "use_sliding_window": True,
        "sliding_window": 8,
        "num_key_value_heads": 2,
    },
    "tied": {
        "tie_word_embeddings": True,
        "qkv_bias": False,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.split_head_dim()
    router = RouterSpec(
        num_experts=reader.integer("num_experts"),
        top_k=reader.integer("num_experts_per_tok", 4),
        normalize=reader.flag("norm_topk_prob", False),
    )
    num_layers = reader.integer("num_hidden_layers")
    dense_width = reader.integer("intermediate_size")
    moe_width = reader.integer("moe_intermediate_size")
    shared_width = reader.integer("shared_expert_intermediate_size")
    layers = tuple(
        LayerSpec(window, moe_width, router, shared_width)
        if routed
        else LayerSpec(window, dense_width)
        for window, routed in zip(
            _windows(reader, num_layers), routed_layers(reader, num_layers), strict=True
        )
    )
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(16),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=layers,
        qkv_bias=reader.flag("qkv_bias", True),
        shared_gate=True,
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec


def routed_layers(reader: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """Of each layer whether it has experts: every n-th by `decoder_sparse_step`, and none of
    `mlp_only_layers`."""
    dense = reader.integers("mlp_only_layers", ())
    step = reader.integer("decoder_sparse_step", 1)
    if step < 1:
        raise reader.refusal("decoder_sparse_step", "at least 1")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(num_layers))


def _windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """By `layer_types`; without it every second layer below `max_window_layers` slides."""
    window = reader.optional_integer("sliding_window", 4096)
    highest = reader.integer("max_window_layers", 28)
    types = reader.layer_types(num_layers)
    if not reader.flag("use_sliding_window", False):
        if types is not None and any(types):
            raise reader.refusal("layer_types", "no sliding ones, as use_sliding_window is false")
        return (None,) * num_layers
    if types is None:
        types = tuple(index % 2 == 0 and index < highest for index in range(num_layers))
    if window is None and any(types):
        raise reader.refusal("sliding_window", "a number, as use_sliding_window is true")
    return tuple(window if slides else None for slides in types)
