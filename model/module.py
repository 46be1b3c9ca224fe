"""The PyTorch reference module: one decoder, built from any ModelSpec.

It is the independent truth that bundles are checked against, what the demo model is trained with,
and what the compiler traces. A layer is written as four steps (attend, enter the FFN, route,
leave the FFN) so that the compiler can cut between `route` and the experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import LayerSpec, ModelSpec, RouterSpec

RopeTable = tuple[Tensor, Tensor]


class AttentionCore(Protocol):
    """Softmax attention of one layer over its keys, present and past."""

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q `[..., T, heads, head_dim]`, k and v `[..., T, kv_heads, head_dim]` → like q."""
        ...


@dataclass(frozen=True)
class Route:
    """What a router decided for N tokens.

    probabilities: `[N, num_experts]` softmax of the logits; weights and experts: `[N, top_k]`.
    """

    probabilities: Tensor
    weights: Tensor
    experts: Tensor


class KeyValueCache:
    """Attention over all keys seen so far, in order; one batch, any number of chunks."""

    def __init__(self) -> None:
        self._past: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Tokens seen before the present chunk."""
        return self._past[0][0].shape[-3] if self._past else 0

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self._past:
            past_k, past_v = self._past[layer]
            k, v = torch.cat([past_k, k], dim=-3), torch.cat([past_v, v], dim=-3)
        self._past[layer] = (k, v)
        return causal_attention(layer, window, q, k, v)


def causal_attention(layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention where the last query lines up with the last key."""
    queries, keys = q.shape[-3], k.shape[-3]
    mask = None
    if queries != keys or window is not None:
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
        mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[-3] != k.shape[-3]
    )
    return out.transpose(-3, -2)


def rope_table(spec: ModelSpec, positions: Tensor) -> RopeTable:
    """cos and sin, each `[T, head_dim / 2]` float32 (RoFormer, arXiv:2104.09864)."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    angles = positions.float()[:, None] / (spec.rope_theta**exponents)[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: RopeTable) -> Tensor:
    """Rotates `[..., T, heads, head_dim]`, pairing element i with element i + head_dim / 2."""
    cos, sin = (table.unsqueeze(-2) for table in rope)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class GatedFFN(nn.Module):
    """down(silu(gate(x)) · up(x)): a dense FFN, a shared expert or a routed expert."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x)) * self.up(x)))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the core is passed in."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        hidden, self.head_dim = spec.hidden_size, spec.head_dim
        q, kv = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.layer, self.window = layer, spec.layers[layer].window
        self.clip, self.qk_norm = spec.clip_qkv, spec.qk_norm
        self.q_proj = nn.Linear(hidden, q, bias=False)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.o_proj = nn.Linear(q, hidden, bias=False)
        self.gate_proj = nn.Linear(hidden, q, bias=False) if spec.attention_gate else None
        if spec.qk_norm != "none":
            full = spec.qk_norm == "full"
            self.q_norm = RMSNorm(q if full else spec.head_dim, spec.rms_norm_eps)
            self.k_norm = RMSNorm(kv if full else spec.head_dim, spec.rms_norm_eps)

    def forward(self, x: Tensor, rope: RopeTable, core: AttentionCore) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k, v = (y.clamp(-self.clip, self.clip) for y in (q, k, v))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        out = core(self.layer, self.window, rotate(q, rope), rotate(k, rope), v).flatten(-2)
        if self.gate_proj is not None:
            out = out * torch.sigmoid(self.gate_proj(x))
        return cast(Tensor, self.o_proj(out))


class DecoderLayer(nn.Module):
    """Attention, then a dense FFN or routed experts; residuals around both."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        self.rule: LayerSpec = spec.layers[layer]
        hidden, eps = spec.hidden_size, spec.rms_norm_eps
        self.attention_norm = RMSNorm(hidden, eps)
        self.attention = Attention(spec, layer)
        self.ffn_norm = RMSNorm(hidden, eps)
        self.attention_post_norm = RMSNorm(hidden, eps) if spec.post_norm else None
        self.ffn_post_norm = RMSNorm(hidden, eps) if spec.post_norm else None
        if self.rule.router is None:
            self.ffn = GatedFFN(hidden, self.rule.intermediate_size)
        else:
            self.router = nn.Linear(hidden, self.rule.router.num_experts, bias=False)
            self.experts = nn.ModuleList(
                GatedFFN(hidden, self.rule.intermediate_size)
                for _ in range(self.rule.router.num_experts)
            )
        width = self.rule.shared_intermediate_size
        self.shared = GatedFFN(hidden, width) if width else None

    def attend(self, hidden: Tensor, rope: RopeTable, core: AttentionCore) -> Tensor:
        out = self.attention(self.attention_norm(hidden), rope, core)
        if self.attention_post_norm is not None:
            out = self.attention_post_norm(out)
        return hidden + out

    def route(self, x: Tensor) -> Route:
        return softmax_route(self.router(x), cast(RouterSpec, self.rule.router))

    def always_on(self, x: Tensor) -> Tensor | None:
        """What every token gets: the dense FFN and the shared expert, where there are any."""
        dense = self.ffn(x) if self.rule.router is None else None
        if self.shared is None:
            return dense
        shared = self.shared(x)
        return cast(Tensor, shared if dense is None else dense + shared)

    def leave_ffn(self, hidden: Tensor, out: Tensor) -> Tensor:
        if self.ffn_post_norm is not None:
            out = self.ffn_post_norm(out)
        return hidden + out

    def forward(
        self, hidden: Tensor, rope: RopeTable, core: AttentionCore, routes: list[Route] | None
    ) -> Tensor:
        hidden = self.attend(hidden, rope, core)
        x = self.ffn_norm(hidden)
        out = self.always_on(x)
        if self.rule.router is not None:
            tokens = x.flatten(0, -2)
            route = self.route(tokens)
            if routes is not None:
                routes.append(route)
            routed = run_experts(self.experts, tokens, route).view_as(x)
            out = routed if out is None else out + routed
        return self.leave_ffn(hidden, cast(Tensor, out))


def softmax_route(logits: Tensor, router: RouterSpec) -> Route:
    """Softmax in float32 over all experts, the top k of it, renormalised where the rule says so."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    weights, experts = torch.topk(probabilities, router.top_k, dim=-1)
    if router.normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Route(probabilities, weights, experts)


def run_experts(experts: nn.ModuleList, tokens: Tensor, route: Route) -> Tensor:
    """Weighted sum of each token's experts; tokens `[N, hidden]`, grouped by expert."""
    top_k = route.experts.shape[-1]
    order = torch.argsort(route.experts.flatten(), stable=True)
    counts = torch.bincount(route.experts.flatten(), minlength=len(experts)).tolist()
    rows = order // top_k
    parts = tokens[rows].split(counts)
    outs = [expert(part) for expert, part in zip(experts, parts, strict=True) if len(part)]
    weighted = torch.cat(outs) * route.weights.flatten()[order, None]
    return torch.zeros_like(tokens).index_add(0, rows, weighted.to(tokens.dtype))


class Decoder(nn.Module):
    """Token ids to logits. Parameter names are those of `model.parameters`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_word_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self,
        token_ids: Tensor,
        cache: KeyValueCache | None = None,
        routes: list[Route] | None = None,
    ) -> Tensor:
        """token_ids `[B, T]` int64 → logits `[B, T, vocab_size]`.

        With a cache, the tokens follow those that it has seen. Each MoE layer appends its Route
        to `routes`.
        """
        start = cache.length if cache is not None else 0
        rope = rope_table(self.spec, torch.arange(start, start + token_ids.shape[-1]))
        core: AttentionCore = causal_attention if cache is None else cache
        hidden = self.embed(token_ids)
        for layer in self.layers:
            hidden = layer(hidden, rope, core, routes)
        return cast(Tensor, self.head(self.norm(hidden)))


def load_balancing_loss(routes: list[Route]) -> Tensor:
    """Mean over layers of E · Σ_e f_e · P_e: share of slots times mean probability.

    It is 1 where the load is even (Switch Transformer, arXiv:2101.03961, eq. 4–6, for top k).
    """
    losses = []
    for route in routes:
        num_experts = route.probabilities.shape[-1]
        share = torch.bincount(route.experts.flatten(), minlength=num_experts).float()
        share = share / route.experts.numel()
        losses.append(num_experts * (share * route.probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()
