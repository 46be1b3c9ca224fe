"""Bundles with GPU graphs, and what sessions over them are to give."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketmoe.bundle.manifest import Manifest, Precision, write_manifest
from pocketmoe.compiler.compile import (
    hash_files,
    tile_reader,
    toolchain,
    write_backbone,
    write_embedding,
    write_experts,
)
from pocketmoe.compiler.gpu.graphs import write_gpu_graphs
from pocketmoe.model.module import Decoder
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import ModelSpec, RouterSpec
from pocketmoe.progress import Silent
from pocketmoe.runtime.gpu.loading import TierSizes
from pocketmoe.runtime.session import Session
from pocketmoe.tests.compiler.test_segments import (
    BASE,
    DENSE,
    MLA,
    PLAIN,
    SHARED,
    WINDOW,
    SegmentWeights,
)
from pocketmoe.tests.support.gpu.device_session import open_on_device
from pocketmoe.tests.support.gpu.host_device import Delay, HostDevice

HALF = Precision("fp16", "fp16", "fp16", 32)
INT4 = Precision("int4", "int4", "int8", 32)
TOP_K = 3
_ROUTER = RouterSpec(12, TOP_K, normalize=True)
# Windows, all positions, a shared expert, and a dense layer with a cache of its own.
MIXED = replace(
    BASE,
    max_position_embeddings=2048,
    layers=(
        replace(WINDOW, router=_ROUTER),
        replace(SHARED, router=_ROUTER),
        DENSE,
        replace(WINDOW, window=70, router=_ROUTER),
        replace(PLAIN, router=_ROUTER),
    ),
)
LATENT = replace(
    BASE,
    max_position_embeddings=2048,
    layers=(DENSE, replace(SHARED, router=_ROUTER), replace(PLAIN, router=_ROUTER)),
    mla=MLA,
    num_key_value_heads=4,
    head_dim=48,
    rope=RopeSpec(1e4, 16, interleaved=True),
    attention_scale=0.2,
)
TOKENS = np.random.default_rng(1).integers(96, size=720).tolist()
# A prompt of more than a batch, one of more than a chunk, and tokens.
CALLS = (TOKENS[:530], TOKENS[530:700], *([token] for token in TOKENS[700:712]))


def write_bundle(
    root: Path,
    spec: ModelSpec,
    model: Decoder,
    precision: Precision,
    context: int = 1024,
    *,
    devices: bool = True,
) -> Path:
    """A bundle without a tokenizer, with graphs for the host and, if wanted, for devices."""
    root.mkdir(parents=True, exist_ok=True)
    source: Any = SegmentWeights(model)
    experts = write_experts(root, source, spec, precision, Silent())
    segments, backbone_bytes = write_backbone(root, source, spec, precision, Silent())
    dtype = write_embedding(root, source, precision)
    graphs = None
    if devices:
        with source.tensors() as reader:
            read = tile_reader(reader, spec, lambda _: None)
            graphs = write_gpu_graphs(root, spec, precision, read, context=context)
    manifest = Manifest(
        spec=spec, target="cpu", precision=precision, embedding_dtype=dtype, segments=segments,
        experts=experts, backbone_bytes=backbone_bytes, toolchain=toolchain(), graphs=graphs,
    )  # fmt: skip
    write_manifest(root, replace(manifest, files=hash_files(root, Silent())))
    return root


def open_here(
    root: Path,
    *,
    delay: Delay | None = None,
    unified: bool = False,
    slots: int | None = None,
    host_slots: int | None = None,
    **options: Any,
) -> Session:
    device = HostDevice(delay=delay, unified=unified)
    sizes = TierSizes(slots=slots, host_slots=host_slots)
    return open_on_device(root, device, sizes=sizes, **options)


def run(session: Session, calls: Sequence[Sequence[int]] = CALLS) -> np.ndarray:
    return np.concatenate([session.forward(call) for call in calls])


def ragged(seed: int, share: float = 0.05, seconds: float = 0.001) -> Delay:
    """A device that is late now and then."""
    generator = random.Random(seed)
    return lambda kind, nbytes: seconds if generator.random() < share else 0.0
