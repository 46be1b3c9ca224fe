"""Holds a bundle against the PyTorch module of its checkpoint, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ...bundle.manifest import TOKENIZER, Manifest, hash_file, read_manifest
from ...errors import BundleError
from ...model.attention import KeyValueCache
from ...model.checkpoint.checkpoint import Checkpoint
from ...model.module import Decoder, DecoderLayer
from ...model.spec import ModelSpec
from ...runtime.embedding import Embedding
from ...runtime.opening import open_bundle

_TOKENS = 48
_EMBEDDING_BYTES = 1 << 20  # of the embedding, by which a checkpoint is known


@dataclass(frozen=True)
class Difference:
    """What differs at one place: max|a - b| / max|b| and max|a - b|."""

    where: str
    relative: float
    maximum: float


def load_decoder(checkpoint: Path, spec: ModelSpec | None = None) -> Decoder:
    """The checkpoint's model in float32. spec replaces the checkpoint's own."""
    source = Checkpoint(checkpoint)
    spec = spec or source.spec
    with torch.device("meta"):
        model = Decoder(spec)
    with source.tensors() as tensors:
        state = {name: tensors.read(name).to(torch.float32).clone() for name in source.dtypes}
    if spec.tie_word_embeddings:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval()


@torch.no_grad()
def compare_with_checkpoint(
    bundle: Path, checkpoint: Path, token_ids: Sequence[int] | None = None
) -> list[Difference]:
    """Runs the same tokens through both, the second half of them token by token.

    Compares the input of each paged layer's experts, and the logits. Without token_ids it draws
    them at random, from a fixed seed.

    Raises:
        BundleError: the bundle was compiled from another model.
    """
    manifest = read_manifest(bundle)
    source = check_same_model(bundle, manifest, checkpoint)
    if token_ids is None:
        count = min(_TOKENS, source.max_context)
        token_ids = np.random.default_rng(0).integers(source.vocab_size, size=count).tolist()
    cut = (len(token_ids) + 1) // 2
    chunks = [list(token_ids[:cut]), *([token] for token in token_ids[cut:])]

    expected = run_decoder(load_decoder(checkpoint, manifest.spec), chunks)
    found: dict[str, list[np.ndarray]] = {name: [] for name in expected}
    with open_bundle(bundle) as session:

        def observe(segment: int, outputs: dict[str, np.ndarray]) -> None:
            layer = manifest.segments[segment].router_layer
            if layer is not None:
                found[expert_input(layer)].append(outputs["expert_input"].copy())

        for chunk in chunks:
            found["logits"].append(session.forward(chunk, observe=observe))
    return [
        difference(name, np.concatenate(found[name]), array) for name, array in expected.items()
    ]


def check_same_model(bundle: Path, manifest: Manifest, checkpoint: Path) -> ModelSpec:
    """The checkpoint's specification; BundleError where the bundle was made of another."""
    source = Checkpoint(checkpoint)
    if comparable(manifest.spec) != comparable(source.spec):
        raise BundleError(
            f"{bundle} was not compiled from {checkpoint}: their specifications differ"
        )
    with source.tensors() as reader:
        rows = next(reader.tiles("embed.weight", _EMBEDDING_BYTES)).numpy()
    found = np.empty_like(rows)
    embedding = Embedding(bundle, manifest)
    try:
        embedding.read(np.arange(len(rows)), found)
    finally:
        embedding.close()
    with np.errstate(over="ignore"):  # where another checkpoint's are too large for its type
        same = np.array_equal(rows.astype(manifest.embedding_dtype), found)
    if not same:
        raise BundleError(f"{bundle} was not compiled from {checkpoint}: their embeddings differ")
    return source.spec


def check_same_tokenizer(bundle: Path, manifest: Manifest, checkpoint: Path) -> None:
    """BundleError where the bundle has another tokenizer than the checkpoint."""
    path, own = Checkpoint(checkpoint).tokenizer_path, manifest.files.get(TOKENIZER)
    if own is None or not path.is_file():
        return
    if hash_file(path) != own.sha256:
        raise BundleError(
            f"{bundle} has another {TOKENIZER} than {checkpoint}: the same text would be other "
            "tokens; compile the checkpoint again"
        )


def expert_input(layer: int) -> str:
    return f"layer {layer} expert input"


def comparable(spec: ModelSpec) -> dict[str, Any]:
    """The spec without the number of active experts, which a bundle may lower."""
    data = spec.to_json()
    for layer in data["layers"]:
        if layer["router"] is not None:
            del layer["router"]["top_k"]
    return data


def run_decoder(model: Decoder, chunks: list[list[int]]) -> dict[str, np.ndarray]:
    """Expert inputs and logits of the PyTorch module over all chunks, by name."""
    names = [*(expert_input(index) for index in model.spec.paged_layers), "logits"]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in model.spec.paged_layers:

        def record(_: object, __: object, x: torch.Tensor, name: str = expert_input(index)) -> None:
            seen[name].append(x[0].numpy())

        layer = cast(DecoderLayer, model.layers[index])
        layer.ffn_norm.register_forward_hook(record)
    cache = KeyValueCache()
    for chunk in chunks:
        seen["logits"].append(model(torch.tensor([chunk]), cache)[0].numpy())
    return {name: np.concatenate(arrays) for name, arrays in seen.items()}


def difference(where: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    maximum = float(np.abs(found - expected).max())
    return Difference(where, maximum / float(np.abs(expected).max()), maximum)
