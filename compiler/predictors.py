"""Writes what the runtime guesses the next layer's experts with: its router, early.

The router of a layer, applied to the residual stream as it is a layer before, mostly names the
same experts, since a layer changes the stream little. See runtime/paging/predict.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bundle.footprint import predicted_layers
from ..bundle.manifest import PREDICTORS
from ..model.parameters import layer_shapes
from ..model.spec import ModelSpec
from .graphs.lower import read_whole
from .quantize import ReadTiles


def write_predictors(root: Path, spec: ModelSpec, read: ReadTiles) -> None:
    """For each layer that can be predicted, float32 `[num_experts, hidden_size + 2]`: the router's
    weights with those of the norm before it, the logits' bias, and the correction of the scores.
    """
    layers = predicted_layers(spec)
    if not layers:
        return
    with (root / PREDICTORS).open("wb") as file:
        for layer in layers:
            file.write(early_router(spec, layer, read).tobytes())


def early_router(spec: ModelSpec, layer: int, read: ReadTiles) -> np.ndarray:
    prefix, shapes = f"layers.{layer}", layer_shapes(spec, layer)

    def vector(name: str, size: int) -> np.ndarray:
        if f"{prefix}.{name}" not in shapes:
            return np.zeros(size, np.float32)
        return read_whole(read, f"{prefix}.{name}")

    router = read_whole(read, f"{prefix}.router.weight")
    experts, hidden = router.shape
    bias = vector("router.bias", experts) + router @ vector("ffn_norm.bias", hidden)
    weights = router * read_whole(read, f"{prefix}.ffn_norm.weight")
    if spec.norm == "layer":  # the norm takes the mean off
        weights = weights - weights.mean(axis=1, keepdims=True)
    columns = (weights, bias[:, None], vector("router_correction", experts)[:, None])
    return np.ascontiguousarray(np.concatenate(columns, axis=1), np.float32)
