"""The PyTorch reference module: one decoder, built from any ModelSpec.

It is the independent truth that bundles are checked against, what the demo model is trained with,
and what the compiler traces. A layer is written as steps (attend, enter the FFN, route, leave the
FFN) so that the compiler can cut between `route` and the experts.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import (
    Attention,
    AttentionCore,
    KeyValueCache,
    LatentAttention,
    RMSNorm,
    RopeTable,
    causal_attention,
    rope_table,
)
from .routing import Route, choose_experts, everyone, run_experts
from .spec import SILU, Activation, LayerSpec, ModelSpec


def make_norm(spec: ModelSpec) -> nn.Module:
    """A norm of the residual stream."""
    if spec.norm == "layer":
        return nn.LayerNorm(spec.hidden_size, eps=spec.rms_norm_eps)
    return RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class GatedFFN(nn.Module):
    """down(activation(gate(x), up(x))): a dense FFN, a shared expert or a routed expert."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        activation: Activation = SILU,
    ):
        super().__init__()
        self.activation = activation
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(activate(self.activation, self.gate(x), self.up(x))))


def activate(rule: Activation, gate: Tensor, up: Tensor) -> Tensor:
    if rule.kind == "silu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=rule.limit), up.clamp(-rule.limit, rule.limit)
    return gate * torch.sigmoid(rule.alpha * gate) * (up + 1)


class DecoderLayer(nn.Module):
    """Attention, then a dense FFN or routed experts; residuals around both."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        self.rule: LayerSpec = spec.layers[layer]
        self.multiplier = spec.residual_multiplier
        hidden, width = spec.hidden_size, self.rule.intermediate_size
        self.attention_norm = make_norm(spec)
        self.attention = (Attention if spec.mla is None else LatentAttention)(spec, layer)
        self.ffn_norm = make_norm(spec)
        self.attention_post_norm = make_norm(spec) if spec.post_norm else None
        self.ffn_post_norm = make_norm(spec) if spec.post_norm else None
        router = self.rule.router
        self.router_correction = None
        if router is None:
            self.ffn = GatedFFN(hidden, width, spec.ffn_bias, spec.activation)
        else:
            if router.scoring != "always":
                self.router = nn.Linear(hidden, router.num_experts, bias=router.bias)
            if router.correction:
                self.router_correction = nn.Parameter(torch.zeros(router.num_experts))
            self.experts = nn.ModuleList(
                GatedFFN(hidden, width, spec.expert_bias, spec.activation)
                for _ in range(router.num_experts)
            )
        shared = self.rule.shared_intermediate_size
        self.shared = self.shared_gate = None
        if shared:
            self.shared = GatedFFN(hidden, shared, spec.ffn_bias, spec.activation)
            self.shared_gate = nn.Linear(hidden, 1, bias=False) if spec.shared_gate else None

    def attend(self, hidden: Tensor, rope: RopeTable, core: AttentionCore) -> Tensor:
        out = self.attention(self.attention_norm(hidden), rope, core)
        if self.attention_post_norm is not None:
            out = self.attention_post_norm(out)
        return self._add(hidden, out)

    def route(self, x: Tensor) -> Route:
        """x `[N, hidden]`, normed."""
        router = self.rule.router
        if router is None or router.scoring == "always":
            return everyone(x)
        return choose_experts(self.router(x), router, self.router_correction)

    def always_on(self, x: Tensor) -> Tensor | None:
        """What every token gets beside pages: the dense FFN or the shared expert, if any."""
        if self.rule.router is None:
            return cast(Tensor, self.ffn(x))
        if self.shared is None:
            return None
        out = self.shared(x)
        if self.shared_gate is not None:
            out = out * torch.sigmoid(self.shared_gate(x))
        return cast(Tensor, out)

    def leave_ffn(self, hidden: Tensor, out: Tensor) -> Tensor:
        if self.ffn_post_norm is not None:
            out = self.ffn_post_norm(out)
        return self._add(hidden, out)

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

    def _add(self, hidden: Tensor, out: Tensor) -> Tensor:
        return hidden + (out if self.multiplier == 1.0 else out * self.multiplier)


class Decoder(nn.Module):
    """Token ids to logits. Parameter names are those of `model.parameters`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.num_hidden_layers))
        self.norm = make_norm(spec)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.head_bias)
        if spec.tie_word_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self,
        token_ids: Tensor,
        cache: KeyValueCache | None = None,
        routes: list[Route] | None = None,
    ) -> Tensor:
        """token_ids `[B, T]` int64 → logits `[B, T, vocab_size]`.

        With a cache, the tokens follow those that it has seen. Each layer with a router appends
        its Route to `routes`.
        """
        start = cache.length if cache is not None else 0
        length = start + token_ids.shape[-1]
        rope = rope_table(self.spec.rope, torch.arange(start, length), length)
        core: AttentionCore = causal_attention if cache is None else cache
        hidden = self.embed(token_ids)
        if self.spec.embedding_multiplier != 1.0:
            hidden = hidden * self.spec.embedding_multiplier
        for layer in self.layers:
            hidden = layer(hidden, rope, core, routes)
        logits = self.head(self.norm(hidden))
        return cast(Tensor, logits / self.spec.logits_scaling)
