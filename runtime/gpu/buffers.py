"""The buffers that a batch leaves on the GPU between graphs, in memory that is made once."""

from __future__ import annotations

from ...bundle.gpu_graphs import FLOAT, INT64
from ...model.spec import ModelSpec
from .device import Device, Stream


class BatchBuffers:
    """Addresses; rows are tokens of the batch.

    hidden: two of float32 `[batch, H]`, of which a segment reads one and writes the other.
    expert_input, base, zeros, out: `[batch, H]`; base is a layer's shared expert, zeros stands in
    where it has none, out is the sum with the experts, which the next segment reads. weights
    `[batch, k]` float32 and ids int64, in rows of the layer's own k. cos, sin: `[batch, rotated]`.
    logits: `[chunk, V]`; rows: int64 `[chunk]`.
    """

    def __init__(
        self, device: Device, stream: Stream, spec: ModelSpec, chunk: int, batch: int, rotated: int
    ):
        self._device = device
        row = spec.hidden_size * FLOAT
        top_k = most_experts(spec)
        self.row = row
        self.hidden = [self._make(batch * row) for _ in range(2)]
        self.expert_input = self._make(batch * row)
        self.base = self._make(batch * row)
        self.zeros = self._make(batch * row)
        self.out = self._make(batch * row)
        self.weights = self._make(batch * top_k * FLOAT)
        self.ids = self._make(batch * top_k * INT64)
        self.cos = self._make(batch * rotated * FLOAT)
        self.sin = self._make(batch * rotated * FLOAT)
        self.logits = self._make(chunk * spec.vocab_size * FLOAT)
        self.rows = self._make(chunk * INT64)
        for address in (self.zeros, self.out):
            stream.clear(address, batch * row)

    def _make(self, nbytes: int) -> int:
        return self._device.allocate(max(1, nbytes)).address


def most_experts(spec: ModelSpec) -> int:
    """Of a token in any layer, at least 1."""
    routers = [layer.router for layer in spec.layers if layer.router is not None]
    return max((router.top_k for router in routers), default=1)


def buffer_bytes(spec: ModelSpec, chunk: int, batch: int) -> int:
    """Of BatchBuffers and of what experts of a batch work with, about."""
    row = spec.hidden_size * FLOAT
    terms = batch * most_experts(spec) * (row + INT64 + FLOAT)
    return 6 * batch * row + terms + chunk * spec.vocab_size * FLOAT
