"""ModelSpec: what a decoder is made of. Standard library only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import ConfigError
from .rope import RopeSpec

QkNorm = Literal["none", "head", "full"]
Norm = Literal["rms", "layer"]
Scoring = Literal["softmax", "sigmoid", "sparsemixer", "always"]
GroupScore = Literal["max", "top2"]

# Of all layers together; far beyond any model, and their parameters are still listed in seconds.
MOST_EXPERTS = 2**17
LARGEST_WIDTH = 2**31 - 1


@dataclass(frozen=True)
class RouterSpec:
    """A gate that picks `top_k` of `num_experts`. With float32 scores s of the logits:

    softmax, sigmoid: the top k of s + correction; weights are s without the correction, divided by
        max(sum, least_sum) where `normalize` is set, times `scale`.
    sparsemixer: twice the largest logit, each weighted by a softmax over the logits within
        2 · jitter of it; the second time without the first (arXiv:2409.12136). k is 2.
    always: one expert that every token goes to, with weight 1. It has no gate.

    bias: the gate has one. correction: a learned bias on s that counts in choosing alone.
    num_groups: experts are chosen from the `top_groups` best groups of equal size; a group's score
    is its best expert's ("max") or the sum of its best two ("top2").
    """

    num_experts: int
    top_k: int
    normalize: bool = False
    scoring: Scoring = "softmax"
    bias: bool = False
    correction: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    scale: float = 1.0
    least_sum: float = 0.0
    jitter: float = 0.0

    def problem(self) -> str | None:
        """What is wrong with the numbers, in words."""
        experts, k = self.num_experts, self.top_k
        if not 1 <= k <= experts:
            return (
                f"experts per token ({k}) must be between 1 and the number of experts ({experts})"
            )
        if self.jitter < 0:
            return f"router_jitter_noise must not be negative, but is {self.jitter}"
        if self.least_sum < 0:
            return f"the least sum of weights must not be negative, but is {self.least_sum}"
        if self.scoring == "sparsemixer" and k != 2:
            return f"experts per token must be 2 for this router, not {k}"
        if self.scoring == "always" and experts != 1:
            return f"a layer without a router has one expert, not {experts}"
        if not 1 <= self.top_groups <= self.num_groups or experts % self.num_groups:
            return (
                f"{experts} experts in {self.num_groups} groups, {self.top_groups} of them chosen, "
                "does not work out"
            )
        size = experts // self.num_groups
        if k > size * self.top_groups:
            return f"experts per token ({k}) are more than {self.top_groups} groups of {size} hold"
        if self.num_groups > 1 and self.group_score == "top2" and size < 2:
            return f"groups must hold at least 2 experts, not {size}"
        return None


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer.

    window: number of positions a query sees, itself included; None for full attention.
    intermediate_size: width of the dense FFN, or of each expert where there is a router.
    shared_intermediate_size: width of the always-on shared expert; 0 where there is none.
    """

    window: int | None
    intermediate_size: int
    router: RouterSpec | None = None
    shared_intermediate_size: int = 0

    @property
    def is_paged(self) -> bool:
        """Whether its FFN lies in pages: routed experts, or one expert for all."""
        return self.router is not None

    @property
    def is_moe(self) -> bool:
        return self.router is not None and self.router.scoring != "always"


@dataclass(frozen=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

    Keys and values of all heads are made of one latent of kv_lora_rank, and one rotated key of
    qk_rope_head_dim is shared by all heads. q_lora_rank: None where queries are projected directly.
    norm_eps: of the norms of both latents.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    norm_eps: float = 1e-6

    @property
    def latent_dim(self) -> int:
        """Elements that the cache holds of each token."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True)
class Activation:
    """What a gated FFN makes of its gate g and up u.

    silu: silu(g) · u. clamped: g' · sigmoid(alpha · g') · (u' + 1), with g' = min(g, limit) and u'
    = u clamped to ± limit (gpt-oss).
    """

    kind: Literal["silu", "clamped"] = "silu"
    alpha: float = 0.0
    limit: float = 0.0


SILU = Activation()


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and rules of a decoder: everything that its computation depends on but the weights.

    num_key_value_heads, head_dim: with MLA, head_dim is that of queries, nope and rope together.
    attention_scale: attention logits are multiplied by it; None for head_dim^-0.5.
    attention_sinks: each head has a logit more in its softmax, learned, with no value.
    attention_gate: the attention output is multiplied by sigmoid(gate_proj(x)) before o_proj.
    qk_norm: RMSNorm of queries and keys, over each head or over the full projection.
    clip_qkv: projections are clamped to [-clip_qkv, clip_qkv].
    norm: RMSNorm, or LayerNorm with bias. post_norm: a second one after each sublayer, before the
    residual add.
    activation: of every FFN.
    qkv_bias, o_bias, ffn_bias, expert_bias, head_bias: which projections have one; ffn_bias is that
    of dense FFNs and shared experts. With MLA qkv_bias is that of both projections to latents.
    shared_gate: the shared expert's output is multiplied by sigmoid(shared_gate(x)).
    embedding_multiplier; residual_multiplier: of what is added to the residual stream;
    logits_scaling: logits are divided by it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeSpec
    rms_norm_eps: float
    tie_word_embeddings: bool
    layers: tuple[LayerSpec, ...]
    mla: MlaSpec | None = None
    attention_scale: float | None = None
    attention_sinks: bool = False
    attention_gate: bool = False
    qk_norm: QkNorm = "none"
    clip_qkv: float | None = None
    norm: Norm = "rms"
    post_norm: bool = False
    activation: Activation = SILU
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    expert_bias: bool = False
    head_bias: bool = False
    shared_gate: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positive = (
            "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads",
            "head_dim", "max_position_embeddings", "rms_norm_eps", "logits_scaling",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.rms_norm_eps > 1:
            raise ConfigError(f"rms_norm_eps must be at most 1, not {self.rms_norm_eps}")
        if not self.softmax_scale > 0:
            raise ConfigError(f"attention logits are multiplied by {self.attention_scale}, not > 0")
        if any(token < 0 for token in self.eos_token_ids):
            raise ConfigError(f"eos_token_id must not be negative: {list(self.eos_token_ids)}")
        if not self.rope.theta > 0:
            raise ConfigError(f"rope_theta must be greater than 0, not {self.rope.theta}")
        if not self.layers:
            raise ConfigError("num_hidden_layers must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.rope.dim % 2 or not 2 <= self.rope.dim <= self.head_dim:
            raise ConfigError(
                f"rotary embeddings need an even number of up to head_dim ({self.head_dim}) "
                f"elements, not {self.rope.dim}"
            )
        if self.mla is not None and min(asdict(self.mla, dict_factory=_sizes).values()) < 1:
            raise ConfigError("the ranks and head sizes of latent attention must be at least 1")
        for index, layer in enumerate(self.layers):
            if layer.intermediate_size < 1:
                raise ConfigError(f"layer {index}: intermediate size must be at least 1")
            if layer.shared_intermediate_size > LARGEST_WIDTH:
                raise ConfigError(f"layer {index}: shared experts are wider than {LARGEST_WIDTH}")
            if layer.window is not None and layer.window < 1:
                raise ConfigError(f"layer {index}: sliding window must be at least 1")
            problem = layer.router.problem() if layer.router is not None else None
            if problem:
                raise ConfigError(f"layer {index}: {problem}")
        experts = sum(layer.router.num_experts for layer in self.layers if layer.router)
        if experts > MOST_EXPERTS:
            raise ConfigError(f"all layers together have {experts} experts, above {MOST_EXPERTS}")

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def paged_layers(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if layer.is_paged)

    @property
    def softmax_scale(self) -> float:
        """What attention logits are multiplied by."""
        if self.attention_scale is not None:
            return self.attention_scale
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def max_context(self) -> int:
        """The longest sequence that the model is made for, scaled positions included."""
        rope, longest = self.rope, self.max_position_embeddings
        if rope.kind in ("dynamic", "yarn"):
            return max(longest, int(rope.factor * rope.original_length))
        return longest

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """Heads and elements of what a layer caches of each token: keys and values, or with MLA
        one latent that is both."""
        if self.mla is not None:
            return ((1, self.mla.latent_dim),)
        return ((self.num_key_value_heads, self.head_dim),) * 2

    @property
    def cache_elements(self) -> int:
        """Elements that a layer caches of each token."""
        return sum(heads * size for heads, size in self.cache_shapes)

    @property
    def expanded_elements(self) -> int:
        """What it would cache if it held the keys and values of every head of MLA."""
        if self.mla is None:
            return self.cache_elements
        return self.num_attention_heads * (self.head_dim + self.mla.v_head_dim)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `spec_from_json` reads them back."""
        return asdict(self)


def _sizes(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if isinstance(value, int)}


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
        rope = {
            **data["rope"],
            "short_factors": tuple(data["rope"]["short_factors"]),
            "long_factors": tuple(data["rope"]["long_factors"]),
        }
        fields = {
            **data,
            "layers": layers,
            "rope": RopeSpec(**rope),
            "mla": MlaSpec(**data["mla"]) if data["mla"] else None,
            "activation": Activation(**data["activation"]),
            "eos_token_ids": tuple(data["eos_token_ids"]),
        }
        return ModelSpec(**fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a model specification: {error}") from error
