"""Placeholders for projections and attention in a trace.

Each linear projection becomes a placeholder node, `pocketmoe::Linear` or `pocketmoe::HeadLinear`,
that carries its parameters' names; stamping replaces it with the operators and weights of the
precision that was asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...model.attention import LatentProjection
from ..segments import window_kind

LINEAR_DOMAIN, LINEAR, HEAD_LINEAR = "pocketmoe", "Linear", "HeadLinear"
INTO_LATENT, OUT_OF_LATENT = "into_latent", "out_of_latent"


class TracedLinear(nn.Module):
    """Stands for a projection in a trace; holds no weight."""

    def __init__(self, name: str, out_features: int, bias: bool):
        super().__init__()
        self.out_features = out_features
        self.attributes: dict[str, Any] = {"parameter": f"{name}.weight"}
        if bias:
            self.attributes["bias"] = f"{name}.bias"

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{LINEAR_DOMAIN}::{LINEAR}",
            (x,),
            attrs=self.attributes,
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )


class TracedLatentProjection(nn.Module):
    """Stands for a LatentProjection: a matrix of its own for each head, in either direction."""

    def __init__(self, name: str, traced: LatentProjection):
        super().__init__()
        self.name, self.heads = f"{name}.weight", traced.heads
        self.nope, self.value, self.rank = traced.nope, traced.value, traced.rank

    def into_latent(self, q: Tensor) -> Tensor:
        return self._project(q, INTO_LATENT, self.rank)

    def out_of_latent(self, x: Tensor) -> Tensor:
        return self._project(x, OUT_OF_LATENT, self.value)

    def _project(self, x: Tensor, direction: str, out_features: int) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{LINEAR_DOMAIN}::{HEAD_LINEAR}",
            (x,),
            attrs={
                "parameter": self.name,
                "direction": direction,
                "heads": self.heads,
                "nope": self.nope,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], out_features),
            version=1,
        )


class TracedAttention:
    """com.microsoft::GroupQueryAttention over caches that are read and written in place."""

    def __init__(self, caches: dict[str, Tensor]):
        self.caches = caches
        self.presents: dict[str, Tensor] = {}

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
        kind = window_kind(window)
        past_key = self.caches[f"past_key_{layer}"]
        past_value = self.caches[f"past_value_{layer}"]
        attributes: dict[str, Any] = {
            "num_heads": q.shape[-2],
            "kv_num_heads": k.shape[-2],
            "do_rotary": 0,
            "scale": scale,
        }
        if window is not None:
            attributes["local_window_size"] = window
        flat = [x.flatten(-2).unsqueeze(0) for x in (q, k, v)]
        inputs: list[Tensor | None] = [
            *flat, past_key, past_value, self.caches[f"seqlens_k_{kind}"],
            self.caches[f"total_length_{kind}"],
        ]  # fmt: skip
        if sinks is not None:  # behind cos_cache, sin_cache, position_ids and attention_bias
            inputs += [None, None, None, None, sinks]
        out, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            attrs=attributes,
            dtypes=(q.dtype, k.dtype, v.dtype),
            shapes=(flat[0].shape, past_key.shape, past_value.shape),
            version=1,
        )
        self.presents[f"present_key_{layer}"] = key
        self.presents[f"present_value_{layer}"] = value
        return out.squeeze(0).unflatten(-1, q.shape[-2:])


def replace_linears(module: nn.Module, prefix: str = "") -> None:
    """Puts placeholders where `module` has projections; they are named by their paths."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, nn.Linear):
            traced = TracedLinear(path, child.out_features, child.bias is not None)
            setattr(module, name, traced)
        elif isinstance(child, LatentProjection):
            setattr(module, name, TracedLatentProjection(path, child))
        else:
            replace_linears(child, f"{path}.")
