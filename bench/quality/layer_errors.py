"""Error that each layer's quantized experts add by themselves, on held-out text.

Every layer gets the inputs and the routes that it has in the float32 checkpoint, so that no error
of an earlier layer is in its figure: |sum of a token's weighted experts as stored − as they are| /
|as they are|, over all tokens. `Evaluation.layers` has what accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pocketmoe.analysis.evaluation.windows import Windows
from pocketmoe.bundle.manifest import Manifest, read_manifest
from pocketmoe.bundle.pages import ExpertPage
from pocketmoe.calibration.stream import LayerInput, LayerStream
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.module import GatedFFN


def read_expert(bundle: Path, page: ExpertPage) -> dict[str, torch.Tensor]:
    """The parameters of an int4, int8, fp16 or fp32 page in float32, by the module's names."""
    with (bundle / page.file).open("rb") as file:
        file.seek(page.offset)
        data = file.read(page.nbytes)
    arrays = {}
    for place in page.format.tensors():
        raw = data[place.offset : place.offset + place.nbytes]
        if place.kind == "int4":
            pairs = np.frombuffer(raw, np.uint8)
            values = np.stack([pairs & 15, pairs >> 4], axis=-1).astype(np.int8)
            values = np.where(values > 7, values - 16, values)
        else:
            dtypes = {"int8": np.int8, "fp32": np.float32, "bias": np.float32}
            values = np.frombuffer(raw, dtypes.get(place.kind, np.float16))
        arrays[place.name] = values.reshape(place.shape).astype(np.float32)
    found = {}
    for name in ("gate", "up", "down"):
        weight = arrays[name]
        if page.format.quantized:
            weight = weight * np.repeat(arrays[f"{name}_scales"], page.format.block_size, axis=1)
        found[f"{name}.weight"] = torch.from_numpy(weight)
        if page.format.bias:
            found[f"{name}.bias"] = torch.from_numpy(arrays[f"{name}_bias"])
    return found


@torch.no_grad()
def layer_errors(
    source: Checkpoint, windows: Windows, bundles: Mapping[str, Path], folder: Path
) -> dict[int, dict[str, float]]:
    """By layer and the bundle's name. folder: for activations that are too many."""
    manifests = {name: read_manifest(path) for name, path in bundles.items()}
    stream = LayerStream(source, source.spec, windows.ids, folder)
    stream.embed()
    found = {}
    while stream.layer < source.spec.num_hidden_layers:
        entered = stream.enter()
        if entered is not None:
            found[entered.layer] = _errors(stream, entered, bundles, manifests, windows)
            stream.leave()
    return found


def _errors(
    stream: LayerStream, entered: LayerInput, bundles: Mapping[str, Path],
    manifests: Mapping[str, Manifest], windows: Windows,
) -> dict[str, float]:  # fmt: skip
    exact = np.zeros_like(entered.x)
    off = {name: np.zeros_like(entered.x) for name in bundles}
    pages = {
        name: next(item for item in manifest.experts if item.layer == entered.layer)
        for name, manifest in manifests.items()
    }
    for expert in np.unique(entered.experts).tolist():
        rows, weights = entered.tokens_of(expert)
        x, module = torch.from_numpy(entered.x[rows]), stream.load_expert(expert)
        out = _weighted(module, x, weights)
        stream.add(rows, out)
        exact[rows] += out
        for name, bundle in bundles.items():
            module.load_state_dict(read_expert(bundle, pages[name].page(expert)))
            off[name][rows] += _weighted(module, x, weights) - out
    tokens = windows.is_token.ravel()
    whole = np.square(exact[tokens], dtype=np.float64).sum()
    return {
        name: float(np.sqrt(np.square(error[tokens], dtype=np.float64).sum() / whole))
        for name, error in off.items()
    }


def _weighted(module: GatedFFN, x: torch.Tensor, weights: np.ndarray) -> np.ndarray:
    return module(x).numpy() * weights[:, None]
