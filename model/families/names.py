"""Places of parameters in checkpoints: tensor names, and experts stacked in one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..parameters import Shape

Rows = Literal["all", "first", "second", "even", "odd"]


@dataclass(frozen=True)
class Place:
    """The tensor that holds a parameter, and which part of it.

    stacked: it holds all experts of a layer, one behind the other along its first axis.
    rows: of the rows `[out]` of what is left, all, one half, or every other one belong to the
    parameter. transposed: a matrix is stored `[in, out]`. leading: an axis of length 1 comes first.
    """

    name: str
    stacked: bool = False
    rows: Rows = "all"
    transposed: bool = False
    leading: bool = False

    def stored_shape(self, shape: Shape, num_experts: int) -> Shape:
        """Shape of the tensor, for a parameter of `shape` in a layer of `num_experts`."""
        if self.rows != "all":
            shape = (2 * shape[0], *shape[1:])
        if self.transposed and len(shape) == 2:
            shape = (shape[1], shape[0])
        if self.stacked:
            shape = (num_experts, *shape)
        return (1, *shape) if self.leading else shape


@dataclass(frozen=True)
class Location:
    """A Place with its numbers filled in. expert: index within a stacked tensor, else None."""

    place: Place
    name: str
    expert: int | None


LLAMA_LIKE: dict[str, str | Place] = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layers.{layer}.attention_norm.weight": "model.layers.{layer}.input_layernorm.weight",
    "layers.{layer}.ffn_norm.weight": "model.layers.{layer}.post_attention_layernorm.weight",
    **{
        f"layers.{{layer}}.attention.{part}": f"model.layers.{{layer}}.self_attn.{part}"
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj")
        for part in (f"{projection}.weight", f"{projection}.bias")
    },
    "layers.{layer}.attention.q_norm.weight": "model.layers.{layer}.self_attn.q_norm.weight",
    "layers.{layer}.attention.k_norm.weight": "model.layers.{layer}.self_attn.k_norm.weight",
}


def ffn_names(ours: str, theirs: str, gate: str, up: str, down: str) -> dict[str, str | Place]:
    """Names of one gated FFN below the two prefixes, weights and biases."""
    pairs = {"gate": gate, "up": up, "down": down}
    return {
        f"{ours}.{mine}.{part}": f"{theirs}.{other}.{part}"
        for mine, other in pairs.items()
        for part in ("weight", "bias")
    }
