"""Names and shapes of every parameter of a ModelSpec. Standard library only.

The names are those of `model.module.Decoder`'s own state dict; each family maps them to the names
that its checkpoints use.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .spec import MlaSpec, ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters. `head` is 0 where it is tied to the embedding.

    experts: what lies in pages. active_experts: the part of it that one token uses.
    """

    embedding: int
    backbone: int
    head: int
    experts: int
    active_experts: int

    @property
    def total(self) -> int:
        return self.embedding + self.backbone + self.head + self.experts

    @property
    def active(self) -> int:
        """Parameters that take part in one token, an untied embedding table left out."""
        head = self.head or self.embedding
        return self.backbone + head + self.active_experts


def linear_shapes(name: str, out_size: int, in_size: int, bias: bool) -> dict[str, Shape]:
    """Weight `[out, in]` and, where there is one, bias `[out]` of a projection."""
    shapes: dict[str, Shape] = {f"{name}.weight": (out_size, in_size)}
    if bias:
        shapes[f"{name}.bias"] = (out_size,)
    return shapes


def ffn_shapes(
    prefix: str, hidden_size: int, intermediate_size: int, bias: bool
) -> dict[str, Shape]:
    """Gate, up and down projections of one gated FFN."""
    return {
        **linear_shapes(f"{prefix}.gate", intermediate_size, hidden_size, bias),
        **linear_shapes(f"{prefix}.up", intermediate_size, hidden_size, bias),
        **linear_shapes(f"{prefix}.down", hidden_size, intermediate_size, bias),
    }


def norm_shapes(spec: ModelSpec, name: str) -> dict[str, Shape]:
    """A norm of the residual stream."""
    shapes: dict[str, Shape] = {f"{name}.weight": (spec.hidden_size,)}
    if spec.norm == "layer":
        shapes[f"{name}.bias"] = (spec.hidden_size,)
    return shapes


def expert_prefix(layer: int, expert: int) -> str:
    return f"layers.{layer}.experts.{expert}"


def layer_shapes(spec: ModelSpec, layer: int) -> dict[str, Shape]:
    """Parameters of one layer, those in pages left out."""
    rule, hidden = spec.layers[layer], spec.hidden_size
    prefix = f"layers.{layer}"
    shapes = {
        **norm_shapes(spec, f"{prefix}.attention_norm"),
        **_attention_shapes(spec, f"{prefix}.attention"),
        **norm_shapes(spec, f"{prefix}.ffn_norm"),
    }
    if spec.post_norm:
        shapes |= norm_shapes(spec, f"{prefix}.attention_post_norm")
        shapes |= norm_shapes(spec, f"{prefix}.ffn_post_norm")
    router = rule.router
    if router is None:
        shapes |= ffn_shapes(f"{prefix}.ffn", hidden, rule.intermediate_size, spec.ffn_bias)
    elif router.scoring != "always":
        shapes |= linear_shapes(f"{prefix}.router", router.num_experts, hidden, router.bias)
        if router.correction:
            shapes[f"{prefix}.router_correction"] = (router.num_experts,)
    if rule.shared_intermediate_size:
        width = rule.shared_intermediate_size
        shapes |= ffn_shapes(f"{prefix}.shared", hidden, width, spec.ffn_bias)
        if spec.shared_gate:
            shapes |= linear_shapes(f"{prefix}.shared_gate", 1, hidden, bias=False)
    return shapes


def _attention_shapes(spec: ModelSpec, prefix: str) -> dict[str, Shape]:
    hidden, heads, head_dim = spec.hidden_size, spec.num_attention_heads, spec.head_dim
    q, kv = heads * head_dim, spec.num_key_value_heads * head_dim
    if spec.mla is not None:
        shapes = _latent_shapes(spec, spec.mla, prefix)
        value_size = heads * spec.mla.v_head_dim
    else:
        shapes = {
            **linear_shapes(f"{prefix}.q_proj", q, hidden, spec.qkv_bias),
            **linear_shapes(f"{prefix}.k_proj", kv, hidden, spec.qkv_bias),
            **linear_shapes(f"{prefix}.v_proj", kv, hidden, spec.qkv_bias),
        }
        value_size = q
    shapes |= linear_shapes(f"{prefix}.o_proj", hidden, value_size, spec.o_bias)
    if spec.attention_gate:
        shapes |= linear_shapes(f"{prefix}.gate_proj", value_size, hidden, bias=False)
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes[f"{prefix}.q_norm.weight"] = (q if full else head_dim,)
        shapes[f"{prefix}.k_norm.weight"] = (kv if full else head_dim,)
    if spec.attention_sinks:
        shapes[f"{prefix}.sinks"] = (heads,)
    return shapes


def _latent_shapes(spec: ModelSpec, mla: MlaSpec, prefix: str) -> dict[str, Shape]:
    hidden, heads = spec.hidden_size, spec.num_attention_heads
    q, rank = heads * spec.head_dim, mla.q_lora_rank
    if rank is None:
        shapes = linear_shapes(f"{prefix}.q_proj", q, hidden, bias=False)
    else:
        shapes = {
            **linear_shapes(f"{prefix}.q_a_proj", rank, hidden, spec.qkv_bias),
            f"{prefix}.q_a_norm.weight": (rank,),
            **linear_shapes(f"{prefix}.q_b_proj", q, rank, bias=False),
        }
    expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    return {
        **shapes,
        **linear_shapes(f"{prefix}.kv_a_proj", mla.latent_dim, hidden, spec.qkv_bias),
        f"{prefix}.kv_a_norm.weight": (mla.kv_lora_rank,),
        f"{prefix}.kv_b_proj.weight": (expanded, mla.kv_lora_rank),
    }


def expert_shapes(spec: ModelSpec, layer: int, expert: int) -> dict[str, Shape]:
    """Parameters of one expert, which are one page."""
    prefix = expert_prefix(layer, expert)
    width = spec.layers[layer].intermediate_size
    return ffn_shapes(prefix, spec.hidden_size, width, spec.expert_bias)


def end_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The last norm and the head; a tied head has no weight of its own."""
    shapes = norm_shapes(spec, "norm")
    if not spec.tie_word_embeddings:
        shapes["head.weight"] = (spec.vocab_size, spec.hidden_size)
    if spec.head_bias:
        shapes["head.bias"] = (spec.vocab_size,)
    return shapes


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every parameter of the model, in the order of the data's way."""
    shapes: dict[str, Shape] = {"embed.weight": (spec.vocab_size, spec.hidden_size)}
    for layer, rule in enumerate(spec.layers):
        shapes |= layer_shapes(spec, layer)
        if rule.router is not None:
            for expert in range(rule.router.num_experts):
                shapes |= expert_shapes(spec, layer, expert)
    return shapes | end_shapes(spec)


def count_parameters(spec: ModelSpec) -> ParameterCount:
    """Parameters by where they live and by whether a token uses them."""
    backbone = experts = active_experts = 0
    for layer, rule in enumerate(spec.layers):
        backbone += _elements(layer_shapes(spec, layer))
        if rule.router is not None:
            expert = _elements(expert_shapes(spec, layer, 0))
            experts += expert * rule.router.num_experts
            active_experts += expert * rule.router.top_k
    embedding = spec.vocab_size * spec.hidden_size
    head = 0 if spec.tie_word_embeddings else embedding
    backbone += _elements(end_shapes(spec)) - head
    return ParameterCount(embedding, backbone, head, experts, active_experts)


def _elements(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values())
