"""gpt-oss (OpenAI): attention sinks, alternating windows, a clamped activation, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import Activation, LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import LLAMA_LIKE, Place, Rows
from .rope_reader import read_rope

MODEL_TYPE = "gpt_oss"

_EXPERTS = "model.layers.{layer}.mlp.experts"
# All experts are in one tensor, weights [in, out]; its outputs alternate between gate and up.
_PROJECTIONS: tuple[tuple[str, str, Rows], ...] = (
    ("gate", "gate_up_proj", "even"),
    ("up", "gate_up_proj", "odd"),
    ("down", "down_proj", "all"),
)

TENSORS: dict[str, str | Place] = {
    **LLAMA_LIKE,
    "layers.{layer}.attention.sinks": "model.layers.{layer}.self_attn.sinks",
    "layers.{layer}.router.weight": "model.layers.{layer}.mlp.router.weight",
    "layers.{layer}.router.bias": "model.layers.{layer}.mlp.router.bias",
    **{
        f"layers.{{layer}}.experts.{{expert}}.{ours}.{part}": Place(
            f"{_EXPERTS}.{theirs}{suffix}", stacked=True, rows=rows, transposed=part == "weight"
        )
        for ours, theirs, rows in _PROJECTIONS
        for part, suffix in (("weight", ""), ("bias", "_bias"))
    },
}

# What transformers takes where the config has neither rope_parameters nor rope_scaling.
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {
        "attention_bias": False,
        "layer_types": ["full_attention"] * 4,
        "swiglu_limit": 0.5,
    },
    "tied": {
        "layer_types": ["sliding_attention"] * 4,
        "tie_word_embeddings": True,
        "swiglu_alpha": 1.0,
    },
    "plain": {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    if config.get("rope_parameters") is None and not config.get("rope_scaling"):
        config = {**config, "rope_parameters": _ROPE}
    reader = ConfigReader(config)
    reader.require("hidden_act", "silu")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.head_dim(64)
    rope = read_rope(reader, head_dim=head_dim, theta=150_000.0)
    # A second name of the length before YaRN.
    reader.require("initial_context_length", rope.original_length)
    bias = reader.flag("attention_bias", True)
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=reader.key_value_heads(8),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=rope,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=_read_layers(reader),
        attention_sinks=True,
        activation=_read_activation(reader),
        qkv_bias=bias,
        o_bias=bias,
        expert_bias=True,
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec


def _read_layers(reader: ConfigReader) -> tuple[LayerSpec, ...]:
    """Every second layer has a window, from the first on, unless layer_types says otherwise."""
    count = reader.integer("num_hidden_layers")
    top_k = reader.integer("num_experts_per_tok", 4)
    reader.require("experts_per_token", top_k)
    router = RouterSpec(
        num_experts=reader.integer("num_local_experts"), top_k=top_k, normalize=True, bias=True
    )
    width = reader.integer("intermediate_size")
    window = reader.optional_integer("sliding_window", 128)
    windowed = reader.layer_types(count)
    if windowed is None:
        windowed = tuple(index % 2 == 0 for index in range(count))
    if window is None and any(windowed):
        raise reader.refusal("sliding_window", "a number, for some layers have a window")
    return tuple(LayerSpec(window if one else None, width, router) for one in windowed)


def _read_activation(reader: ConfigReader) -> Activation:
    alpha = reader.number("swiglu_alpha", 1.702)
    limit = reader.number("swiglu_limit", 7.0)
    if limit <= 0:
        raise reader.refusal("swiglu_limit", "a number greater than 0")
    return Activation("clamped", alpha, limit)
