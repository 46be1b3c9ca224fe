"""Everything that a ModelSpec expresses, through the compiled graphs and the runtime, against the
PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketmoe.bundle.manifest import Manifest, Precision, write_manifest
from pocketmoe.compiler.compile import hash_files, write_backbone, write_embedding, write_experts
from pocketmoe.compiler.graphs.trace import check_attention
from pocketmoe.compiler.precision import DEFAULT, check_blocks
from pocketmoe.errors import ConfigError
from pocketmoe.model.attention import KeyValueCache
from pocketmoe.model.module import Decoder
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import (
    Activation,
    LayerSpec,
    MlaSpec,
    ModelSpec,
    RouterSpec,
)
from pocketmoe.progress import Silent
from pocketmoe.runtime.opening import open_bundle

pytestmark = pytest.mark.usefixtures("one_thread")

FP32 = Precision("fp32", "fp32", "fp32", 32)
TOKENS = np.random.default_rng(0).integers(96, size=172).tolist()
# The second call is run in two pieces.
CALLS = [TOKENS[:20], TOKENS[20:160], *([token] for token in TOKENS[160:])]

PLAIN = LayerSpec(None, 64, RouterSpec(8, 2))
WINDOW = replace(PLAIN, window=8)
DENSE = LayerSpec(None, 96)
ALWAYS = LayerSpec(None, 96, RouterSpec(1, 1, scoring="always"))
SHARED = replace(PLAIN, shared_intermediate_size=32)
BASE = ModelSpec(
    family="reference",
    vocab_size=96,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rope=RopeSpec(1e4, 16),
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    layers=(PLAIN,),
)
GROUPS = RouterSpec(
    8, 2, normalize=True, scoring="sigmoid", correction=True, num_groups=4, top_groups=2,
    group_score="top2", scale=2.5, least_sum=1e-20,
)  # fmt: skip
GROUPED_MAX = RouterSpec(8, 3, num_groups=4, top_groups=2, scale=4.0)
SPARSEMIXER = RouterSpec(8, 2, scoring="sparsemixer", jitter=0.01)
CLAMPED = Activation("clamped", 1.702, 7.0)
MLA = MlaSpec(48, 32, 32, 16, 24)


def changed(**fields: Any) -> ModelSpec:
    return replace(BASE, **fields)


SPECS = {
    "sinks, windows, biases everywhere, clamped activation, yarn": changed(
        layers=(
            replace(WINDOW, router=RouterSpec(8, 2, normalize=True, bias=True)),
            replace(PLAIN, router=RouterSpec(8, 2, normalize=True, bias=True)),
        ),
        attention_sinks=True, qkv_bias=True, o_bias=True, expert_bias=True, activation=CLAMPED,
        rope=RopeSpec(
            1e4, 16, kind="yarn", factor=4.0, original_length=16, attention_factor=1.14,
            truncate=False,
        ),
    ),
    "MLA, query latent, sigmoid groups, shared expert, interleaved": changed(
        layers=(DENSE, replace(SHARED, router=GROUPS)),
        mla=MLA, num_key_value_heads=4, head_dim=48, rope=RopeSpec(1e4, 16, interleaved=True),
        attention_scale=0.2,
    ),
    "MLA, no query latent, biases, window, one page for all, dynamic": changed(
        layers=(replace(PLAIN, router=GROUPED_MAX), replace(ALWAYS, window=8)),
        mla=replace(MLA, q_lora_rank=None), num_key_value_heads=4, head_dim=48, qkv_bias=True,
        rope=RopeSpec(1e4, 16, kind="dynamic", factor=2.0, original_length=32),
    ),
    "LayerNorm, sparsemixer, head bias, longrope": changed(
        layers=(replace(WINDOW, router=SPARSEMIXER),),
        norm="layer", head_bias=True, o_bias=True,
        rope=RopeSpec(
            1e4, 16, kind="longrope", original_length=155, attention_factor=1.1,
            short_factors=(1.0,) * 8, long_factors=(1, 1, 1.5, 2, 2.5, 3, 4, 5),
            long_attention_factor=1.2,
        ),
    ),
    "LayerNorm after, multipliers, shared gate, partial interleaved rope, dense biases": changed(
        layers=(DENSE, replace(SHARED, router=RouterSpec(8, 2, correction=True, least_sum=1e-12))),
        norm="layer", post_norm=True, shared_gate=True, ffn_bias=True, attention_gate=True,
        embedding_multiplier=3.0, residual_multiplier=0.6, logits_scaling=4.0, attention_scale=0.3,
        rope=RopeSpec(1e4, 8, interleaved=True), qk_norm="head",
    ),
    "dense, paged, tied, llama3": changed(
        layers=(ALWAYS,),
        tie_word_embeddings=True,
        rope=RopeSpec(
            1e4, 16, kind="llama3", factor=8.0, original_length=32, low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    ),
}  # fmt: skip


class SegmentWeights:
    """A module's parameters, read as a checkpoint's are: in blocks of rows."""

    encoding = None

    def __init__(self, model: Decoder):
        self.state = model.state_dict()

    def tensors(self) -> nullcontext[SegmentWeights]:
        return nullcontext(self)

    def tiles(self, parameter: str) -> Iterator[torch.Tensor]:
        tensor = self.state[parameter]
        yield from tensor.split(20) if tensor.ndim > 1 else [tensor]


def make_decoder(spec: ModelSpec) -> Decoder:
    """Weights that make routing uneven and every vector matter."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(spec)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            width = parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=1.5 * width, generator=generator)
        else:
            torch.nn.init.uniform_(parameter, 0.2, 1.2, generator=generator)
    return model.eval()


def write_bundle(root: Path, spec: ModelSpec, source: Any, precision: Precision) -> Manifest:
    segments, loaded = write_backbone(root, source, spec, precision, Silent())
    experts = write_experts(root, source, spec, precision, Silent())
    dtype = write_embedding(root, source, precision)
    files = hash_files(root, Silent())
    manifest = Manifest(spec, "cpu", precision, dtype, segments, experts, loaded, {}, (), files)
    write_manifest(root, manifest)
    return manifest


@torch.no_grad()
def decoder_logits(model: Decoder) -> np.ndarray:
    cache = KeyValueCache()
    return np.concatenate([model(torch.tensor([call]), cache)[0].numpy() for call in CALLS])


@pytest.mark.parametrize("name", SPECS)
def test_a_prompt_and_its_continuation_are_the_modules(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    model = make_decoder(spec)
    write_bundle(tmp_path, spec, SegmentWeights(model), FP32)
    expected = decoder_logits(model)
    with open_bundle(tmp_path) as session:
        found = np.concatenate([session.forward(call) for call in CALLS])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_blocks_of_a_latent_projection_are_checked_both_ways() -> None:
    sizes = replace(MLA, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32, v_head_dim=16)
    spec = changed(mla=sizes, head_dim=48)
    check_blocks(spec, replace(DEFAULT, block_size=32))
    with pytest.raises(ConfigError, match=r"kv_b_proj.* has 32 input features.*--block 32"):
        check_blocks(spec, DEFAULT)


def test_heads_that_attention_does_not_take_are_refused() -> None:
    check_attention(changed(head_dim=40, rope=RopeSpec(1e4, 8)))
    with pytest.raises(ConfigError, match="head_dim is 36"):
        check_attention(changed(head_dim=36))
    with pytest.raises(ConfigError, match=r"qk_rope_head_dim is 44"):
        check_attention(changed(mla=replace(MLA, qk_rope_head_dim=12), head_dim=44))
