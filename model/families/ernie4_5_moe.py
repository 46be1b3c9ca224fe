"""ERNIE 4.5 (Baidu): interleaved rotation, softmax router with a correction, shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .deepseek import MOE_NAMES
from .names import LLAMA_LIKE, Place
from .rope_reader import read_rope

MODEL_TYPE = "ernie4_5_moe"

TENSORS: dict[str, str | Place] = {
    **LLAMA_LIKE,
    **MOE_NAMES,
    "head.bias": "lm_head.bias",
    "layers.{layer}.router_correction": Place(
        "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias", leading=True
    ),
}

# How many tokens an expert takes in training; how many prediction layers there are.
_UNUSED = frozenset({"moe_capacity", "num_nextn_predict_layers"})

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
    "use_bias": False,
    "moe_num_experts": 8,
    "moe_k": 3,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 2,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 500000,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "biases": {
        "use_bias": True,
        "tie_word_embeddings": False,
        "moe_num_shared_experts": 0,
        "moe_norm_min": 0.9,
    },
    "interval": {
        "num_hidden_layers": 4,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 2,
    },
    "yarn": {
        "moe_layer_start_index": 0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    reader = ConfigReader(config, irrelevant=_UNUSED)
    reader.require("hidden_act", "silu")
    reader.require("moe_gate", "topk", "topk_fused")
    reader.require("moe_gate_act", "softmax")
    for name in ("moe_use_aux_free", "use_rmsnorm"):
        reader.require(name, True)
    heads = reader.integer("num_attention_heads")
    head_dim = reader.head_dim()
    bias = reader.flag("use_bias", False)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", 4),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim, theta=500_000.0, interleaved=True),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", True),
        layers=_read_layers(reader),
        qkv_bias=bias,
        o_bias=bias,
        ffn_bias=bias,
        head_bias=bias,
        eos_token_ids=reader.integers("eos_token_id", 2),
    )
    reader.finish()
    return spec


def _read_layers(reader: ConfigReader) -> tuple[LayerSpec, ...]:
    """Of the layers from start to end, every interval-th is routed, counting from 1."""
    count = reader.integer("num_hidden_layers")
    start = reader.integer("moe_layer_start_index", 1)
    end = reader.integer("moe_layer_end_index", -1)
    interval = reader.integer("moe_layer_interval", 1)
    if start < 0:
        raise reader.refusal("moe_layer_start_index", "0 or more")
    if end < -1:
        raise reader.refusal("moe_layer_end_index", "-1 or more")
    if interval < 1:
        raise reader.refusal("moe_layer_interval", "at least 1")
    shared = reader.integer("moe_num_shared_experts", 2)
    if shared < 0:
        raise reader.refusal("moe_num_shared_experts", "0 or more")
    router = RouterSpec(
        num_experts=reader.integer("moe_num_experts"),
        top_k=reader.integer("moe_k", 6),
        normalize=True,
        correction=True,
        least_sum=reader.number("moe_norm_min", 1e-12),
    )
    width = reader.integer("moe_intermediate_size")
    dense = LayerSpec(None, reader.integer("intermediate_size"))
    routed = LayerSpec(None, width, router, shared * width)
    last = count - 1 if end == -1 else end
    return tuple(
        routed if start <= index <= last and (index + 1) % interval == 0 else dense
        for index in range(count)
    )
