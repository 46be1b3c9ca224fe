"""Attention and rotation against their definitions in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketmoe.model.attention import (
    KeyValueCache,
    LatentAttention,
    causal_attention,
    rope_table,
    rotate,
)
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import LayerSpec, MlaSpec, ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


def numpy_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    window: int | None,
    scale: float,
    sinks: np.ndarray | None,
) -> np.ndarray:
    """Attention as its definition says it, token by token and head by head."""
    queries, heads, _ = q.shape
    keys, kv_heads, _ = k.shape
    out = np.zeros((queries, heads, v.shape[-1]))
    for row in range(queries):
        position = keys - queries + row
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = k[first : position + 1, group] @ q[row, head] * scale
            largest = scores.max() if sinks is None else max(scores.max(), sinks[head])
            weights = np.exp(scores - largest)
            total = weights.sum() + (0 if sinks is None else np.exp(sinks[head] - largest))
            out[row, head] = (weights / total) @ v[first : position + 1, group]
    return out


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 7, 19, 20, 50])
@pytest.mark.parametrize(("queries", "keys"), [(20, 20), (1, 20), (6, 20), (1, 1)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_is_its_definition(
    window: int | None, queries: int, keys: int, heads: int, kv_heads: int, with_sinks: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(queries, heads, 8, generator=generator)
    k = torch.randn(keys, kv_heads, 8, generator=generator)
    v = torch.randn(keys, kv_heads, 8, generator=generator)
    sinks = torch.randn(heads, generator=generator) if with_sinks else None
    numbers = None if sinks is None else sinks.double().numpy()
    expected = numpy_attention(*(x.double().numpy() for x in (q, k, v)), window, 0.3, numbers)
    out = causal_attention(0, window, q, k, v, 0.3, sinks).numpy()
    assert np.abs(out - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [16, 8, 2])
def test_rotation_is_a_complex_product(interleaved: bool, dim: int) -> None:
    rope = RopeSpec(theta=1e4, dim=dim, interleaved=interleaved, attention_factor=1.25)
    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0)).double()
    positions = torch.tensor([0, 1, 7, 100, 511])
    rates = 1e4 ** (-np.arange(dim // 2) / (dim // 2))
    turn = 1.25 * np.exp(1j * positions.numpy()[:, None, None] * rates)
    part = x[..., :dim].numpy()
    first, second = np.split(part, 2, axis=-1)
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    turned = (first + 1j * second) * turn
    expected = np.concatenate([turned.real, turned.imag, x[..., dim:].numpy()], axis=-1)
    out = rotate(x.float(), rope_table(rope, positions, 512), interleaved).numpy()
    assert np.allclose(out, expected, atol=1e-4)


def latent_spec(q_lora_rank: int | None) -> ModelSpec:
    mla = MlaSpec(q_lora_rank, 24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10)
    return ModelSpec(
        family="reference", vocab_size=8, hidden_size=32, num_attention_heads=4,
        num_key_value_heads=4, head_dim=20, max_position_embeddings=64,
        rope=RopeSpec(1e4, 8, interleaved=True), rms_norm_eps=1e-6, tie_word_embeddings=True,
        layers=(LayerSpec(None, 8),), mla=mla, attention_scale=0.4,
    )  # fmt: skip


def expanded_attention(module: LatentAttention, x: torch.Tensor, rope: RopeSpec) -> np.ndarray:
    """Keys and values of every head made of the latent, and plain attention over them."""
    mla, heads = module.mla, 4
    table = rope_table(rope, torch.arange(len(x)), len(x))
    query = module.q_proj(x) if mla.q_lora_rank is None else module.q_b_proj(
        module.q_a_norm(module.q_a_proj(x))
    )  # fmt: skip
    query = query.unflatten(-1, (heads, -1))
    latent, shared = module.kv_a_proj(x).split([24, 8], dim=-1)
    expanded = (module.kv_a_norm(latent) @ module.kv_b_proj.weight.T).unflatten(-1, (heads, -1))
    shared = rotate(shared[:, None], table, interleaved=True).expand(-1, heads, -1)
    key = torch.cat([expanded[..., :12], shared], dim=-1)
    query = torch.cat([query[..., :12], rotate(query[..., 12:], table, interleaved=True)], dim=-1)
    arrays = (part.double().numpy() for part in (query, key, expanded[..., 12:]))
    out = numpy_attention(*arrays, None, 0.4, None)
    return out.reshape(len(x), -1) @ module.o_proj.weight.double().numpy().T


@torch.no_grad()
@pytest.mark.parametrize("q_lora_rank", [None, 16])
def test_attention_over_latents_is_attention_over_what_they_expand_to(
    q_lora_rank: int | None,
) -> None:
    torch.manual_seed(0)
    spec = latent_spec(q_lora_rank)
    module = LatentAttention(spec, 0)
    x = torch.randn(18, 32)
    expected = expanded_attention(module, x, spec.rope)
    cache, parts = KeyValueCache(), []
    for start, stop in ((0, 11), (11, 12), (12, 18)):
        table = rope_table(spec.rope, torch.arange(start, stop), stop)
        parts.append(module(x[start:stop], table, cache))
    out = torch.cat(parts).numpy()
    assert np.abs(out - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert spec.cache_elements == 24 + 8
    assert spec.expanded_elements == 4 * (20 + 10)
    assert replace(spec, mla=None).cache_elements == 2 * 4 * 20
