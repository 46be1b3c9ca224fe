"""pocketmoe's own MoE transformer. Every feature of it is a key of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LayerSpec, ModelSpec, RouterSpec
from .config import ConfigReader
from .names import ffn_names
from .rope_reader import read_rope

MODEL_TYPE = "reference"

_LAYER_TENSORS = (
    "attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "router",
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
    "attention.gate_proj", "attention.q_norm", "attention.k_norm",
)  # fmt: skip
_FFNS = ("layers.{layer}.ffn", "layers.{layer}.shared", "layers.{layer}.experts.{expert}")

# The checkpoint's names are the module's own.
TENSORS = {
    **{name: name for name in ("embed.weight", "norm.weight", "head.weight")},
    **{name: name for name in (f"layers.{{layer}}.{part}.weight" for part in _LAYER_TENSORS)},
    **{
        name: name
        for prefix in _FFNS
        for name in ffn_names(prefix, prefix, "gate", "up", "down")
    },
}  # fmt: skip


TINY: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_hidden_layers": 4,
    "dense_layers": [0],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "qk_norm": True,
    "attention_gate": True,
    "post_norm": True,
    "sliding_window": 8,
    "full_attention_every": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {
        "qk_norm": False,
        "attention_gate": False,
        "post_norm": False,
        "dense_layers": [],
        "shared_intermediate_size": 0,
        "sliding_window": None,
        "norm_topk_prob": False,
    },
    "untied": {"tie_word_embeddings": False, "full_attention_every": 4, "dense_layers": [1, 2]},
}


def read_config(config: Mapping[str, Any]) -> ModelSpec:
    """Keys:

    dense_layers: the layers with a dense FFN (`intermediate_size`); all others are routed.
    shared_intermediate_size: width of the always-on shared expert of routed layers; 0 for none.
    sliding_window: keys that a query sees, itself included; null for full attention everywhere.
    full_attention_every: every n-th layer keeps full attention (n, 2n, ... counting from 1).
    qk_norm, attention_gate, post_norm: see ModelSpec.
    depth_scaled_init: used in training alone.
    """
    reader = ConfigReader(config, irrelevant=frozenset({"depth_scaled_init"}))
    num_layers = reader.integer("num_hidden_layers")
    router = RouterSpec(
        num_experts=reader.integer("num_experts"),
        top_k=reader.integer("num_experts_per_tok"),
        normalize=reader.flag("norm_topk_prob", True),
    )
    window = reader.optional_integer("sliding_window")
    period = reader.integer("full_attention_every", 1)
    if period < 1:
        raise reader.refusal("full_attention_every", "at least 1")
    dense_layers = reader.integers("dense_layers", ())
    if not set(dense_layers) <= set(range(num_layers)):
        raise reader.refusal("dense_layers", f"layers from 0 to {num_layers - 1}")
    dense_width = reader.integer("intermediate_size") if dense_layers else 0
    reader.take("intermediate_size", None)
    moe_width = reader.integer("moe_intermediate_size")
    shared_width = reader.integer("shared_intermediate_size", 0)

    def layer(index: int) -> LayerSpec:
        layer_window = None if (index + 1) % period == 0 else window
        if index in dense_layers:
            return LayerSpec(layer_window, dense_width)
        return LayerSpec(layer_window, moe_width, router, shared_width)

    head_dim = reader.integer("head_dim")
    spec = ModelSpec(
        family=MODEL_TYPE,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("hidden_size"),
        num_attention_heads=reader.integer("num_attention_heads"),
        num_key_value_heads=reader.integer("num_key_value_heads"),
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        rope=read_rope(reader, head_dim=head_dim),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        layers=tuple(layer(index) for index in range(num_layers)),
        qk_norm="head" if reader.flag("qk_norm", True) else "none",
        attention_gate=reader.flag("attention_gate", True),
        post_norm=reader.flag("post_norm", True),
        eos_token_ids=reader.integers("eos_token_id", ()),
    )
    reader.finish()
    return spec
