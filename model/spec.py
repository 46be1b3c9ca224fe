"""ModelSpec: what a Mixture-of-Experts decoder is made of. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import ConfigError

QkNorm = Literal["none", "head", "full"]


@dataclass(frozen=True)
class RouterSpec:
    """A softmax gate that picks `top_k` of `num_experts`.

    weights = softmax(logits)[top_k], divided by their sum where `normalize` is set.
    """

    num_experts: int
    top_k: int
    normalize: bool


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer.

    window: number of positions a query sees, itself included; None for full attention.
    intermediate_size: width of the dense FFN, or of each expert in a MoE layer.
    shared_intermediate_size: width of the always-on shared expert; 0 where there is none.
    """

    window: int | None
    intermediate_size: int
    router: RouterSpec | None = None
    shared_intermediate_size: int = 0

    @property
    def is_moe(self) -> bool:
        return self.router is not None


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and rules of a decoder: everything that its computation depends on but the weights.

    qk_norm: RMSNorm of queries and keys, over each head or over the full projection.
    attention_gate: the attention output is multiplied by sigmoid(gate_proj(x)) before o_proj.
    post_norm: a second RMSNorm after each sublayer, before the residual add.
    clip_qkv: projections are clamped to [-clip_qkv, clip_qkv].
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    layers: tuple[LayerSpec, ...]
    qk_norm: QkNorm = "none"
    attention_gate: bool = False
    post_norm: bool = False
    clip_qkv: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positive = (
            "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads",
            "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if not self.layers:
            raise ConfigError("num_hidden_layers must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        for index, layer in enumerate(self.layers):
            if layer.intermediate_size < 1:
                raise ConfigError(f"layer {index}: intermediate size must be at least 1")
            if layer.window is not None and layer.window < 1:
                raise ConfigError(f"layer {index}: sliding window must be at least 1")
            router = layer.router
            if router is not None and not 1 <= router.top_k <= router.num_experts:
                raise ConfigError(
                    f"layer {index}: experts per token ({router.top_k}) must be between 1 "
                    f"and the number of experts ({router.num_experts})"
                )

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if layer.is_moe)

    def expert_parameters(self, layer: int) -> int:
        """Parameters of one routed expert of a MoE layer: gate, up and down projections."""
        return 3 * self.hidden_size * self.layers[layer].intermediate_size

    def count_parameters(self) -> ParameterCount:
        """Parameters by where they live and by whether a token uses them."""
        hidden, head_dim = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim
        attention = hidden * (2 * q + 2 * kv) + (hidden * q if self.attention_gate else 0)
        qk_norm = {"none": 0, "head": 2 * head_dim, "full": q + kv}[self.qk_norm]
        norms = hidden * (4 if self.post_norm else 2) + qk_norm
        backbone = hidden
        experts = active_experts = 0
        for index, layer in enumerate(self.layers):
            backbone += attention + norms + 3 * hidden * layer.shared_intermediate_size
            if layer.router is None:
                backbone += 3 * hidden * layer.intermediate_size
            else:
                backbone += hidden * layer.router.num_experts
                experts += self.expert_parameters(index) * layer.router.num_experts
                active_experts += self.expert_parameters(index) * layer.router.top_k
        embedding = self.vocab_size * hidden
        head = 0 if self.tie_word_embeddings else embedding
        return ParameterCount(embedding, backbone, head, experts, active_experts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `spec_from_json` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters. `head` is 0 where it is tied to the embedding."""

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


def spec_from_json(data: dict[str, Any]) -> ModelSpec:
    """Inverse of `ModelSpec.to_json`.

    Raises:
        ConfigError: a field is missing, unknown or out of range.
    """
    try:
        layers = tuple(
            LayerSpec(
                **{**layer, "router": RouterSpec(**layer["router"]) if layer["router"] else None}
            )
            for layer in data["layers"]
        )
        fields = {**data, "layers": layers, "eos_token_ids": tuple(data["eos_token_ids"])}
        return ModelSpec(**fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a model specification: {error}") from error
