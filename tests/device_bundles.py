"""Bundles with device graphs, and sessions over them on a device without hardware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pocketmoe.compiler.compile import (
    hash_files,
    tile_reader,
    toolchain,
    write_backbone,
    write_embedding,
    write_experts,
)
from pocketmoe.compiler.device_graphs import write_device_graphs
from pocketmoe.model.module import Decoder
from pocketmoe.model.spec import ModelSpec
from pocketmoe.progress import Silent
from pocketmoe.runtime.bundle import Manifest, Precision, write_manifest
from pocketmoe.tests.test_segments import Weights


def write_bundle(
    root: Path, spec: ModelSpec, model: Decoder, precision: Precision, context: int = 1024
) -> Path:
    """A bundle without a tokenizer, with graphs for both the host and devices."""
    root.mkdir(parents=True, exist_ok=True)
    source = Weights(model)
    experts = write_experts(root, source, spec, precision, Silent())
    segments, backbone_bytes = write_backbone(root, source, spec, precision, Silent())
    dtype = write_embedding(root, source, precision)
    with source.tensors() as reader:
        read = tile_reader(reader, spec, lambda _: None)
        graphs = write_device_graphs(root, spec, precision, read, context=context)
    manifest = Manifest(
        spec=spec, target="cpu", precision=precision, embedding_dtype=dtype, segments=segments,
        experts=experts, backbone_bytes=backbone_bytes, toolchain=toolchain(), graphs=graphs,
    )  # fmt: skip
    write_manifest(root, replace(manifest, files=hash_files(root, Silent())))
    return root
