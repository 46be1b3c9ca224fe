"""Distance of a bundle's layers from a reference's: the experts that they choose, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...bundle.manifest import Manifest
from ...errors import BundleError
from .windows import Windows


@dataclass(frozen=True)
class LayerReference:
    """What a paged layer of the reference did. Rows are those of all windows, one after the other.

    experts: uint16 `[rows, k]`, None where nothing is chosen. inputs: float32 `[sample, hidden]`,
    the input of the experts in some rows, those in `sample` (int64, ascending).
    """

    layer: int
    experts: np.ndarray | None
    sample: np.ndarray
    inputs: np.ndarray


@dataclass(frozen=True)
class LayerDeviation:
    """input_error: |bundle − reference| / |reference| of the input of a layer's experts, over the
    tokens of the sample. changed_experts: share of the reference's choices that the bundle's router
    does not make; None where there is no choice."""

    layer: int
    input_error: float
    changed_experts: float | None


class Deviations:
    """Watches a session that runs the reference's windows in their order."""

    def __init__(self, manifest: Manifest, layers: Sequence[LayerReference], windows: Windows):
        self._layers = [segment.router_layer for segment in manifest.segments]
        self._references = {item.layer: item for item in layers}
        self._length = windows.length
        self._row = 0
        self._seen = dict.fromkeys(self._references, 0)
        # Of each window: choices that differ, and all of them.
        self.changed = {item.layer: np.zeros(len(windows), np.int64) for item in layers}
        self.choices = {item.layer: np.zeros(len(windows), np.int64) for item in layers}
        self._squares = {item.layer: np.zeros(2) for item in layers}  # of the error, and of all

    def begin(self, window: int) -> None:
        self._window = window
        self._seen = dict.fromkeys(self._references, 0)

    def observe(self, segment: int, outputs: dict[str, np.ndarray]) -> None:
        """Fits Session.forward.

        Raises:
            BundleError: the input of the layer's experts is not finite.
        """
        layer = self._layers[segment]
        if layer is None:
            return
        x, chosen = outputs["expert_input"], outputs["expert_ids"]
        if not np.isfinite(np.add.reduce(x, axis=None, dtype=np.float64)):
            raise BundleError(
                f"layer {layer} of the bundle computes numbers that are not finite; compile it "
                "with a backbone of fp32, or see what 'pocketmoe verify' finds"
            )
        reference = self._references[layer]
        first = self._window * self._length + self._seen[layer]
        rows = slice(first, first + len(x))
        self._seen[layer] += len(x)
        if reference.experts is not None:
            wanted = reference.experts[rows]
            kept = (wanted[:, :, None] == chosen[:, None, :]).any(axis=2)
            self.changed[layer][self._window] += kept.size - np.count_nonzero(kept)
            self.choices[layer][self._window] += kept.size
        low, high = np.searchsorted(reference.sample, (rows.start, rows.stop))
        expected = reference.inputs[low:high].astype(np.float64)
        error = x[reference.sample[low:high] - first] - expected
        self._squares[layer] += (error**2).sum(), (expected**2).sum()

    def layers(self) -> tuple[LayerDeviation, ...]:
        found = []
        for layer, (error, whole) in self._squares.items():
            choices = self.choices[layer].sum()
            changed = float(self.changed[layer].sum() / choices) if choices else None
            relative = float(np.sqrt(error / whole)) if whole else 0.0
            found.append(LayerDeviation(layer, relative, changed))
        return tuple(found)
