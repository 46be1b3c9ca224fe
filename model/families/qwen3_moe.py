"""Qwen3-MoE: q/k norm per head; routed layers by `decoder_sparse_step` and `mlp_only_layers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, ffn_names
from .qwen2_moe import routed_layers
from .rope_reader import read_rope

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
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
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
    "dense layers": {
        "mlp_only_layers": [0, 2],
        "norm_topk_prob": False,
        "attention_bias": True,
        "rms_norm_eps": 1e-4,
    },
    "every second": {"decoder_sparse_step": 2, "tie_word_embeddings": True},
    "window": {"use_sliding_window": True, "sliding_window": 8},
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    # Qwen3-Coder has keys of earlier families, which say what this one does anyway.
    reader.require("qkv_bias", False)
    reader.require("use_qk_norm", True)
    reader.require("shared_expert_intermediate_size", 0)
    bias = reader.flag("attention_bias", False)
    heads = reader.integer("num_attention_heads")
    # transformers 5 writes num_local_experts, earlier versions num_experts.
    experts_key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    router = RouterSpec(
        num_experts=reader.integer(experts_key),
        top_k=reader.integer("num_experts_per_tok", 8),
        normalize=reader.flag("norm_topk_prob", False),
    )
    window = reader.optional_integer("sliding_window", 4096)
    if reader.flag("use_sliding_window", False):
        reader.require("max_window_layers", None)
    else:
        reader.take("max_window_layers", None)
        window = None
    dense_width = reader.integer("intermediate_size")
    moe_width = reader.integer("moe_intermediate_size")
    layers = tuple(
        LayerSpec(window, moe_width, router) if routed else LayerSpec(window, dense_width)
        for routed in routed_layers(reader, reader.integer("num_hidden_layers"))
    )
    head_dim = reader.head_dim()
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(4),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=layers,
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec
