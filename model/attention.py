"""Attention in PyTorch: projections, rotation, the cache; grouped queries and MLA."""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import RopeSpec, frequencies
from .spec import MlaSpec, ModelSpec

RopeTable = tuple[Tensor, Tensor]


class AttentionCore(Protocol):
    """Softmax attention of one layer over its keys, present and past."""

    def __call__(
        self,
        layer: int,
        window: int | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """q `[..., T, heads, head_dim]`, k and v `[..., T, kv_heads, head_dim]` → like q.

        sinks `[heads]`: a logit more in each softmax. With MLA v is k: the same tensor.
        """
        ...


class KeyValueCache:
    """Attention over all keys seen so far, in order; one batch, any number of chunks."""

    def __init__(self) -> None:
        self._past: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Tokens seen before the present chunk."""
        return self._past[0][0].shape[-3] if self._past else 0

    def __call__(
        self,
        layer: int,
        window: int | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        sinks: Tensor | None,
    ) -> Tensor:
        if layer in self._past:
            past_k, past_v = self._past[layer]
            shared = v is k
            k = torch.cat([past_k, k], dim=-3)
            v = k if shared else torch.cat([past_v, v], dim=-3)
        self._past[layer] = (k, v)
        return causal_attention(layer, window, q, k, v, scale, sinks)


def causal_attention(
    layer: int,
    window: int | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention where the last query lines up with the last key."""
    queries, keys = q.shape[-3], k.shape[-3]
    mask = None
    if queries != keys or window is not None or sinks is not None:
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
        mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    if sinks is not None:
        out = _attention_with_sinks(q, k, v, cast(Tensor, mask), scale, sinks)
    else:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale,
            enable_gqa=q.shape[-3] != k.shape[-3],
        )  # fmt: skip
    return out.transpose(-3, -2)


def _attention_with_sinks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, sinks: Tensor
) -> Tensor:
    """q `[..., heads, T, head_dim]`; the sink takes its share of each softmax and gives nothing."""
    group = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(group, dim=-3) for x in (k, v))
    scores = torch.where(mask, q @ k.transpose(-2, -1) * scale, float("-inf"))
    sink = sinks[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1] @ v


def rope_table(rope: RopeSpec, positions: Tensor, length: int) -> RopeTable:
    """cos and sin, each `[T, dim / 2]` float32; length: tokens of the sequence so far."""
    values, scale = frequencies(rope, length)
    angles = positions.float()[:, None] * torch.tensor(values, dtype=torch.float32)[None, :]
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, table: RopeTable, interleaved: bool = False) -> Tensor:
    """Rotates the first elements of `[..., T, heads, head_dim]`, as many as the table has pairs
    for; interleaved pairs come out as (first of each, second of each)."""
    cos, sin = (part.unsqueeze(-2) for part in table)
    dim = 2 * cos.shape[-1]
    rotated, rest = (x, None) if dim == x.shape[-1] else x.split([dim, x.shape[-1] - dim], dim=-1)
    if interleaved:
        pairs = rotated.unflatten(-1, (-1, 2))
        low, high = pairs[..., 0], pairs[..., 1]
    else:
        low, high = rotated.chunk(2, dim=-1)
    parts = [low * cos - high * sin, high * cos + low * sin]
    return torch.cat(parts if rest is None else [*parts, rest], dim=-1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the core is passed in."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        hidden, self.head_dim = spec.hidden_size, spec.head_dim
        q, kv = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.layer, self.window = layer, spec.layers[layer].window
        self.clip, self.qk_norm, self.scale = spec.clip_qkv, spec.qk_norm, spec.softmax_scale
        self.interleaved = spec.rope.interleaved
        self.q_proj = nn.Linear(hidden, q, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(q, hidden, bias=spec.o_bias)
        self.gate_proj = nn.Linear(hidden, q, bias=False) if spec.attention_gate else None
        if spec.qk_norm != "none":
            full = spec.qk_norm == "full"
            self.q_norm = RMSNorm(q if full else spec.head_dim, spec.rms_norm_eps)
            self.k_norm = RMSNorm(kv if full else spec.head_dim, spec.rms_norm_eps)
        heads = spec.num_attention_heads
        self.sinks = nn.Parameter(torch.zeros(heads)) if spec.attention_sinks else None

    def forward(self, x: Tensor, rope: RopeTable, core: AttentionCore) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k, v = (y.clamp(-self.clip, self.clip) for y in (q, k, v))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rope, self.interleaved), rotate(k, rope, self.interleaved)
        out = core(self.layer, self.window, q, k, v, self.scale, self.sinks).flatten(-2)
        if self.gate_proj is not None:
            out = out * torch.sigmoid(self.gate_proj(x))
        return cast(Tensor, self.o_proj(out))


class LatentProjection(nn.Module):
    """What makes keys and values of a latent, used the other way round: queries go into the space
    of the latent, and what attention finds there comes out as values.

    weight: `[heads · (nope + v), kv_lora_rank]`, the nope rows of each head first.
    """

    def __init__(self, heads: int, mla: MlaSpec):
        super().__init__()
        self.heads, self.nope, self.value = heads, mla.qk_nope_head_dim, mla.v_head_dim
        self.rank = mla.kv_lora_rank
        self.weight = nn.Parameter(torch.empty(heads * (self.nope + self.value), self.rank))
        nn.init.normal_(self.weight, std=self.rank**-0.5)

    def into_latent(self, q: Tensor) -> Tensor:
        """`[..., heads, nope]` → `[..., heads, kv_lora_rank]`."""
        return torch.einsum("...hn,hnr->...hr", q, self._by_head()[:, : self.nope])

    def out_of_latent(self, x: Tensor) -> Tensor:
        """`[..., heads, kv_lora_rank]` → `[..., heads, v_head_dim]`."""
        return torch.einsum("...hr,hvr->...hv", x, self._by_head()[:, self.nope :])

    def _by_head(self) -> Tensor:
        return self.weight.view(self.heads, self.nope + self.value, self.rank)


class LatentAttention(nn.Module):
    """MLA over the compressed latent: all heads share one key, [latent, rotated part], which is
    the value too (DeepSeek-V2, arXiv:2405.04434, section 2.1.2 and appendix C)."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        mla = cast(MlaSpec, spec.mla)
        hidden, heads = spec.hidden_size, spec.num_attention_heads
        self.mla, self.layer, self.window = mla, layer, spec.layers[layer].window
        self.scale, self.interleaved = spec.softmax_scale, spec.rope.interleaved
        self.head_dim = spec.head_dim
        q = heads * spec.head_dim
        if mla.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, q, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, mla.q_lora_rank, bias=spec.qkv_bias)
            self.q_a_norm = RMSNorm(mla.q_lora_rank, mla.norm_eps)
            self.q_b_proj = nn.Linear(mla.q_lora_rank, q, bias=False)
        self.kv_a_proj = nn.Linear(hidden, mla.latent_dim, bias=spec.qkv_bias)
        self.kv_a_norm = RMSNorm(mla.kv_lora_rank, mla.norm_eps)
        self.kv_b_proj = LatentProjection(heads, mla)
        self.o_proj = nn.Linear(heads * mla.v_head_dim, hidden, bias=spec.o_bias)

    def forward(self, x: Tensor, rope: RopeTable, core: AttentionCore) -> Tensor:
        mla = self.mla
        if mla.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        q = q.unflatten(-1, (-1, self.head_dim))
        q_nope, q_rope = q.split([mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=-1)
        compressed = self.kv_a_proj(x)
        latent, k_rope = compressed.split([mla.kv_lora_rank, mla.qk_rope_head_dim], dim=-1)
        latent = self.kv_a_norm(latent).unsqueeze(-2)
        k_rope = rotate(k_rope.unsqueeze(-2), rope, self.interleaved)
        q_rope = rotate(q_rope, rope, self.interleaved)
        query = torch.cat([self.kv_b_proj.into_latent(q_nope), q_rope], dim=-1)
        key = torch.cat([latent, k_rope], dim=-1)
        out = core(self.layer, self.window, query, key, key, self.scale, None)
        values = self.kv_b_proj.out_of_latent(out[..., : mla.kv_lora_rank])
        return cast(Tensor, self.o_proj(values.flatten(-2)))
