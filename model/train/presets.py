"""Configs of the reference family, by name."""

from __future__ import annotations

import difflib
from typing import Any

from ...errors import InputError

_COMMON: dict[str, Any] = {
    "model_type": "reference",
    "norm_topk_prob": True,
    "qk_norm": True,
    "attention_gate": True,
    "post_norm": True,
    "depth_scaled_init": True,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
}

PRESETS: dict[str, dict[str, Any]] = {
    # For tests: seconds to compile, every feature on.
    "tiny": {
        **_COMMON,
        "vocab_size": 384,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "dense_layers": [0],
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "shared_intermediate_size": 64,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "full_attention_every": 2,
        "router_aux_loss_coef": 0.01,
        "eos_token_id": 0,
    },
    # 15.5 M parameters, 7.2 M of them active: trained by training.py, shipped in model/demo.
    "demo": {
        **_COMMON,
        "vocab_size": 4096,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "dense_layers": [0],
        "intermediate_size": 768,
        "moe_intermediate_size": 128,
        "shared_intermediate_size": 128,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "full_attention_every": 4,
        "router_aux_loss_coef": 0.01,
        "eos_token_id": 0,
    },
    # About 80 B parameters, 10 B active, 16 K context: for inspection and planning.
    "80b-a10b": {
        **_COMMON,
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 16_384,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "dense_layers": [0, 1],
        "intermediate_size": 12_288,
        "moe_intermediate_size": 1280,
        "shared_intermediate_size": 1280,
        "num_experts": 128,
        "num_experts_per_tok": 10,
        "sliding_window": 2048,
        "full_attention_every": 4,
        "router_aux_loss_coef": 0.001,
        "eos_token_id": 0,
    },
}


def find_preset(name: str) -> dict[str, Any]:
    """A copy of the config.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(PRESETS)}"
        raise InputError(f"there is no preset {name!r}: {hint}")
    return dict(PRESETS[name])
