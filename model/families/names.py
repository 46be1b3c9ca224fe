"""Tensor names that Llama-like checkpoints share."""

from __future__ import annotations

LLAMA_LIKE = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layers.{layer}.attention_norm.weight": "model.layers.{layer}.input_layernorm.weight",
    "layers.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    "layers.{layer}.attention.q_proj.weight": "model.layers.{layer}.self_attn.q_proj.weight",
    "layers.{layer}.attention.k_proj.weight": "model.layers.{layer}.self_attn.k_proj.weight",
    "layers.{layer}.attention.v_proj.weight": "model.layers.{layer}.self_attn.v_proj.weight",
    "layers.{layer}.attention.o_proj.weight": "model.layers.{layer}.self_attn.o_proj.weight",
    "layers.{layer}.attention.q_norm.weight": "model.layers.{layer}.self_attn.q_norm.weight",
    "layers.{layer}.attention.k_norm.weight": "model.layers.{layer}.self_attn.k_norm.weight",
}


def ffn_names(ours: str, theirs: str, gate: str, up: str, down: str) -> dict[str, str]:
    """Names of one gated FFN below the two prefixes."""
    pairs = {"gate": gate, "up": up, "down": down}
    return {f"{ours}.{mine}.weight": f"{theirs}.{other}.weight" for mine, other in pairs.items()}
