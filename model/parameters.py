"""Names and shapes of every parameter of a ModelSpec. Standard library only.

The names are those of `model.module.Decoder`'s own state dict; each family maps them to the names
that its checkpoints use.
"""

from __future__ import annotations

from .spec import ModelSpec

Shape = tuple[int, ...]


def ffn_shapes(prefix: str, hidden_size: int, intermediate_size: int) -> dict[str, Shape]:
    """Gate, up and down projections of one gated FFN, each `[out, in]`."""
    return {
        f"{prefix}.gate.weight": (intermediate_size, hidden_size),
        f"{prefix}.up.weight": (intermediate_size, hidden_size),
        f"{prefix}.down.weight": (hidden_size, intermediate_size),
    }


def expert_prefix(layer: int, expert: int) -> str:
    return f"layers.{layer}.experts.{expert}"


def layer_shapes(spec: ModelSpec, layer: int) -> dict[str, Shape]:
    """Parameters of one layer, routed experts left out."""
    rule, hidden, head_dim = spec.layers[layer], spec.hidden_size, spec.head_dim
    q, kv = spec.num_attention_heads * head_dim, spec.num_key_value_heads * head_dim
    prefix = f"layers.{layer}"
    shapes: dict[str, Shape] = {
        f"{prefix}.attention_norm.weight": (hidden,),
        f"{prefix}.attention.q_proj.weight": (q, hidden),
        f"{prefix}.attention.k_proj.weight": (kv, hidden),
        f"{prefix}.attention.v_proj.weight": (kv, hidden),
        f"{prefix}.attention.o_proj.weight": (hidden, q),
        f"{prefix}.ffn_norm.weight": (hidden,),
    }
    if spec.attention_gate:
        shapes[f"{prefix}.attention.gate_proj.weight"] = (q, hidden)
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes[f"{prefix}.attention.q_norm.weight"] = (q if full else head_dim,)
        shapes[f"{prefix}.attention.k_norm.weight"] = (kv if full else head_dim,)
    if spec.post_norm:
        shapes[f"{prefix}.attention_post_norm.weight"] = (hidden,)
        shapes[f"{prefix}.ffn_post_norm.weight"] = (hidden,)
    if rule.router is None:
        shapes |= ffn_shapes(f"{prefix}.ffn", hidden, rule.intermediate_size)
    else:
        shapes[f"{prefix}.router.weight"] = (rule.router.num_experts, hidden)
    if rule.shared_intermediate_size:
        shapes |= ffn_shapes(f"{prefix}.shared", hidden, rule.shared_intermediate_size)
    return shapes


def expert_shapes(spec: ModelSpec, layer: int, expert: int) -> dict[str, Shape]:
    """Parameters of one routed expert."""
    prefix = expert_prefix(layer, expert)
    return ffn_shapes(prefix, spec.hidden_size, spec.layers[layer].intermediate_size)


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every parameter of the model, in the order of the data's way."""
    shapes: dict[str, Shape] = {"embed.weight": (spec.vocab_size, spec.hidden_size)}
    for layer, rule in enumerate(spec.layers):
        shapes |= layer_shapes(spec, layer)
        if rule.router is not None:
            for expert in range(rule.router.num_experts):
                shapes |= expert_shapes(spec, layer, expert)
    shapes["norm.weight"] = (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        shapes["head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes
