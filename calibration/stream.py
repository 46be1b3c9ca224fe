"""A model run layer by layer over all calibration tokens: memory holds one layer, not the model.

A layer is run in two steps: `enter`, its attention up to its experts' input and the routes, and
`leave`, with what the experts gave. Between the two, whoever runs it computes the experts one by
one, each over its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.attention import RopeTable, causal_attention, rope_table
from ..model.checkpoint.checkpoint import Checkpoint
from ..model.checkpoint.tensors import TensorReader
from ..model.module import DecoderLayer, GatedFFN
from ..model.parameters import expert_shapes, layer_shapes
from ..model.spec import ModelSpec
from .hidden import ActivationStore

_TOKENS = 2048  # that go through attention together
# Replaces the weights of a layer's backbone before it is run, by parameter name.
Change = Callable[[str, Tensor], Tensor]


def unchanged(name: str, weight: Tensor) -> Tensor:
    return weight


@dataclass(frozen=True)
class LayerInput:
    """What comes to a layer's experts: x float32 `[N, hidden]`; experts int64 and weights float32
    `[N, k]`; probabilities float32 `[N, num_experts]` of the router, None where there is none."""

    layer: int
    x: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    probabilities: np.ndarray | None

    def tokens_of(self, expert: int) -> tuple[np.ndarray, np.ndarray]:
        """Its tokens, ascending, and their weights."""
        rows, slots = np.nonzero(self.experts == expert)
        return rows, self.weights[rows, slots]


class LayerStream:
    """The state between layers: `hidden` `[sequences, seq_len, hidden]`, after `layer` layers."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, ids: np.ndarray, folder: Path):
        """ids: int64 `[sequences, seq_len]`. folder: for activations that are too many."""
        self.spec = spec
        self.ids = ids
        self.layer = 0
        self._checkpoint = checkpoint
        count, length = ids.shape
        shape = (count, length, spec.hidden_size)
        store = ActivationStore(folder, 3 * 4 * count * length * spec.hidden_size)
        self.hidden = store.array("hidden", shape)
        self._x = store.array("x", (count * length, spec.hidden_size))
        self._out = store.array("out", (count * length, spec.hidden_size))
        self._entered: DecoderLayer | None = None

    def embed(self) -> None:
        """Fills `hidden` with the rows of the embedding."""
        with self._checkpoint.tensors() as reader:
            first = 0
            for rows in reader.tiles("embed.weight"):
                table = rows.numpy()
                inside = (self.ids >= first) & (self.ids < first + len(table))
                self.hidden[inside] = table[self.ids[inside] - first]
                first += len(table)
        if self.spec.embedding_multiplier != 1.0:
            self.hidden *= np.float32(self.spec.embedding_multiplier)

    @torch.no_grad()
    def enter(self, change: Change = unchanged) -> LayerInput | None:
        """Runs the next layer's attention; None for a layer without pages, which is run whole.

        Raises:
            CheckpointError: its weights or its activations are not finite.
        """
        spec, index = self.spec, self.layer
        layer = load_layer(self._checkpoint, spec, index, change)
        rope = self._rope()
        paged = spec.layers[index].is_paged
        routes: list[tuple[Tensor, Tensor, Tensor]] = []
        for hidden, x, out in self._batches():
            state = layer.attend(hidden, rope, causal_attention)
            normed = layer.ffn_norm(state)
            always = layer.always_on(normed)
            if not paged:
                hidden.copy_(layer.leave_ffn(state, cast(Tensor, always)))
                continue
            tokens = normed.flatten(0, 1)
            route = layer.route(tokens)
            routes.append((route.probabilities, route.weights, route.experts))
            hidden.copy_(state)
            x.copy_(tokens)
            out.zero_() if always is None else out.copy_(always.flatten(0, 1))
        self._check_finite(index)
        if not paged:
            self.layer += 1
            return None
        self._entered = layer
        probabilities, weights, experts = (torch.cat(parts) for parts in zip(*routes, strict=True))
        has_router = spec.layers[index].is_moe
        return LayerInput(
            index, self._x, experts.numpy(), weights.float().numpy(),
            probabilities.float().numpy() if has_router else None,
        )  # fmt: skip

    def add(self, rows: np.ndarray, weighted: np.ndarray) -> None:
        """Adds an expert's weighted output `[len(rows), hidden]` for its tokens."""
        self._out[rows] += weighted

    @torch.no_grad()
    def leave(self) -> float:
        """Ends the layer that was entered.

        Returns what makes a squared error of its experts' sum, over all tokens, a share of the
        squared size that the residual stream had: what the sum becomes before it is added (a norm,
        a multiplier) counts as much for its errors as for itself.
        """
        layer = self._entered
        if layer is None:
            raise ValueError("no layer was entered")
        before = sums = added = 0.0
        for hidden, _, out in self._batches():
            left = layer.leave_ffn(hidden, out.view_as(hidden))
            before += _squared_size(hidden)
            sums += _squared_size(out)
            added += _squared_size(left - hidden)
            hidden.copy_(left)
        self._check_finite(self.layer)
        self._entered = None
        self.layer += 1
        return added / (sums * before) if sums and before else 0.0

    def load_expert(self, expert: int) -> GatedFFN:
        """An expert of the layer that was entered, in float32."""
        return load_expert(self._checkpoint, self.spec, self.layer, expert)

    def _rope(self) -> RopeTable:
        length = self.ids.shape[1]
        return rope_table(self.spec.rope, torch.arange(length), length)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of hidden, x and out, some sequences at a time."""
        count, length = self.ids.shape
        step = max(1, _TOKENS // length)
        for first in range(0, count, step):
            part = slice(first, first + step)
            rows = slice(first * length, min(first + step, count) * length)
            yield (
                torch.from_numpy(self.hidden[part]), torch.from_numpy(self._x[rows]),
                torch.from_numpy(self._out[rows]),
            )  # fmt: skip

    def _check_finite(self, layer: int) -> None:
        # A sum over all elements: NaN and infinity do not leave it.
        if not np.isfinite(np.add.reduce(self.hidden, axis=None, dtype=np.float64)):
            raise CheckpointError(
                f"layer {layer} computes numbers that are not finite; is the checkpoint damaged?"
            )


def load_layer(
    checkpoint: Checkpoint, spec: ModelSpec, index: int, change: Change = unchanged
) -> DecoderLayer:
    """A layer without its routed experts, in float32."""
    with torch.device("meta"):
        layer = DecoderLayer(spec, index)
    if spec.layers[index].is_paged:
        del layer.experts
    prefix = f"layers.{index}."
    with checkpoint.tensors() as reader:
        state = {
            name.removeprefix(prefix): change(name, _read(reader, name))
            for name in layer_shapes(spec, index)
        }
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def load_expert(checkpoint: Checkpoint, spec: ModelSpec, layer: int, expert: int) -> GatedFFN:
    """A routed expert in float32."""
    with torch.device("meta"):
        width = spec.layers[layer].intermediate_size
        module = GatedFFN(spec.hidden_size, width, spec.expert_bias, spec.activation)
    shapes = expert_shapes(spec, layer, expert)
    with checkpoint.tensors() as reader:
        state = {".".join(name.rsplit(".", 2)[1:]): _read(reader, name) for name in shapes}
    module.load_state_dict(state, assign=True)
    return module.eval()


def _squared_size(values: Tensor) -> float:
    return float(values.flatten().dot(values.flatten()))


def _read(reader: TensorReader, name: str) -> Tensor:
    """float32; raises CheckpointError where it is not finite."""
    tiles = list(reader.tiles(name))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)
