"""The checkpoint's own answers to a text, for a bundle to be compared with.

The model runs layer by layer over all windows. What stays are the routes, the experts' inputs of a
sample of tokens, and the last hidden states: logits are made of those one window at a time, by the
head's weights as they are read, so that neither is ever whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...calibration.hidden import IN_MEMORY, ActivationStore
from ...calibration.stream import LayerInput, LayerStream
from ...model.checkpoint.checkpoint import Checkpoint
from ...model.checkpoint.tensors import TILE_BYTES
from ...model.module import make_norm
from ...model.parameters import end_shapes
from ...model.spec import ModelSpec
from ...progress import Progress, Silent
from .deviation import LayerReference
from .windows import Windows

_ROWS = 4096  # tokens that go through an expert at once
_SAMPLE_BYTES = 256 << 20  # of experts' inputs, all layers together
_SILENT = Silent()


class Reference:
    """layers: those with pages. `hidden`: float32 `[windows, length, hidden]` before the norm."""

    def __init__(
        self,
        source: Checkpoint,
        windows: Windows,
        hidden: np.ndarray,
        layers: tuple[LayerReference, ...],
    ):
        spec = source.spec
        self.layers = layers
        self._source, self._windows, self._hidden = source, windows, hidden
        self._logits = np.empty((windows.length, spec.vocab_size), np.float32)
        self._norm = make_norm(spec)
        with source.tensors() as reader:
            state = {
                name: torch.cat(list(reader.tiles(name)))
                for name in end_shapes(spec)
                if name != "head.weight"
            }
        self._bias = state.pop("head.bias", None)
        self._norm.load_state_dict({n.removeprefix("norm."): t for n, t in state.items()})

    @torch.no_grad()
    def logits(self, window: int) -> np.ndarray:
        """float32 `[T, V]`, valid until the next are asked for."""
        spec, length = self._source.spec, int(self._windows.lengths[window])
        x = self._norm(torch.from_numpy(np.array(self._hidden[window, :length])))
        logits, first = self._logits[:length], 0
        with self._source.tensors() as reader:
            name = "embed.weight" if spec.tie_word_embeddings else "head.weight"
            for rows in reader.tiles(name):
                words = slice(first, first + len(rows))
                bias = self._bias[words] if self._bias is not None else None
                logits[:, words] = F.linear(x, rows, bias).numpy()
                first = words.stop
        if spec.logits_scaling != 1.0:
            logits /= np.float32(spec.logits_scaling)
        return logits


def run_reference(
    source: Checkpoint, windows: Windows, folder: Path, progress: Progress = _SILENT, seed: int = 0
) -> Reference:
    """Runs the checkpoint in float32. folder: for what does not fit into memory; it is used as long
    as the reference is. progress is told tokens. seed: of the sample.

    Raises:
        CheckpointError: weights or activations are not finite, or cannot be read.
        InputError: `folder` has no room.
    """
    spec = source.spec
    stream = LayerStream(source, spec, windows.ids, folder)
    rows = windows.ids.size
    sample = _sample(windows, spec, seed)
    choices = [_choices(spec, layer) for layer in range(spec.num_hidden_layers)]
    store = ActivationStore(folder, rows * (3 * 4 * spec.hidden_size + 2 * sum(choices)))
    progress.stage("running the checkpoint", windows.tokens)
    share = _Share(progress, windows.tokens, spec.num_hidden_layers)
    layers = []
    stream.embed()
    for layer in range(spec.num_hidden_layers):
        entered = stream.enter()
        if entered is not None:
            experts = None
            if choices[layer]:
                experts = store.array(f"experts_{layer}", entered.experts.shape, np.uint16)
                experts[:] = entered.experts
            layers.append(LayerReference(layer, experts, sample, entered.x[sample]))
            _run_experts(stream, entered, share)
            stream.leave()
        share.reach(layer + 1)
    return Reference(source, windows, stream.hidden, tuple(layers))


def reference_bytes(spec: ModelSpec, windows: Windows) -> int:
    """About what a reference, and torch with it, take while a bundle is compared with it."""
    hidden = 3 * 4 * windows.ids.size * spec.hidden_size
    sample = 4 * windows.ids.size * spec.hidden_size * len(spec.paged_layers)
    logits = 4 * windows.length * spec.vocab_size
    held = min(hidden, IN_MEMORY) + min(sample, _SAMPLE_BYTES) + logits
    return held + 2 * TILE_BYTES + _TORCH_BYTES


_TORCH_BYTES = 400 << 20


def _choices(spec: ModelSpec, layer: int) -> int:
    """Experts that a token goes to by choice."""
    rule = spec.layers[layer]
    return rule.router.top_k if rule.is_moe and rule.router is not None else 0


def _sample(windows: Windows, spec: ModelSpec, seed: int) -> np.ndarray:
    """Rows whose experts' inputs are kept: as many as there is room for."""
    tokens = np.flatnonzero(windows.is_token)
    row = 4 * spec.hidden_size * max(1, len(spec.paged_layers))
    count = min(len(tokens), max(1, _SAMPLE_BYTES // row))
    return np.sort(np.random.default_rng(seed).choice(tokens, count, replace=False))


@torch.no_grad()
def _run_experts(stream: LayerStream, entered: LayerInput, share: _Share) -> None:
    used = np.unique(entered.experts)
    for done, expert in enumerate(used.tolist(), start=1):
        rows, weights = entered.tokens_of(expert)
        module = stream.load_expert(expert)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            y = module(torch.from_numpy(entered.x[rows[part]])).numpy()
            stream.add(rows[part], y * weights[part][:, None])
        share.reach(entered.layer + done / len(used))


class _Share:
    """Tells how many tokens' worth of work is done, of a number of layers."""

    def __init__(self, progress: Progress, tokens: int, layers: int):
        self._progress, self._tokens, self._layers, self._told = progress, tokens, layers, 0

    def reach(self, layers: float) -> None:
        done = int(self._tokens * layers / self._layers)
        self._progress.advance(done - self._told)
        self._told = done
