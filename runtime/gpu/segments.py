"""The backbone on a device: its segments, chunk by chunk, over the batch's buffers and caches."""

from __future__ import annotations

from pathlib import Path

from ...bundle.gpu_graphs import FLOAT, INT64, GpuGraphs
from ...bundle.manifest import Manifest, Segment
from ..cache_shape import kind_of
from .buffers import BatchBuffers
from .device import Buffer, Device, Stream
from .executor import DECODE, PROMPT, Executor, Loader, check_names
from .kv import DeviceKv, Past

_OPTIONAL = {"moe_base", "moe_out", "cos", "sin"}


class DeviceSegments:
    """Loaded from `graphs`; bound anew only where something has moved."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        graphs: GpuGraphs,
        loader: Loader,
        device: Device,
        stream: Stream,
        buffers: BatchBuffers,
        chunk: int,
        rotated: int,
    ):
        self._stream, self._buffers = stream, buffers
        self._spec = manifest.spec
        shapes = self._spec.cache_shapes
        self._planes = len(shapes)
        self._rotated = rotated
        self._segments = manifest.segments
        self._executors: list[Executor] = []
        self._staging: list[list[Buffer]] = []
        most = max((len(segment.layers) for segment in manifest.segments), default=0)
        for _ in range(most):
            self._staging.append(
                [device.allocate(chunk * heads * size * 2) for heads, size in shapes]
            )
        for segment, graph in zip(manifest.segments, graphs.segments, strict=True):
            executor = loader.load(graph)
            inputs, outputs = self._names(segment)
            check_names(executor, root / graph, inputs, outputs, _OPTIONAL)
            self._executors.append(executor)
        self._bound: list[object] = [None] * len(self._executors)

    def _names(self, segment: Segment) -> tuple[set[str], set[str]]:
        parts = ("key", "value")[: self._planes]
        inputs = {"hidden"} | {f"past_{part}.{i}" for part in parts for i in segment.layers}
        inputs |= {f"mask.{kind}" for kind in self._kinds(segment)}
        outputs = {f"new_{part}.{i}" for part in parts for i in segment.layers}
        if segment.router_layer is None:
            return inputs | {"rows"}, outputs | {"logits"}
        return inputs, outputs | {"hidden_out", "expert_input", "expert_weights", "expert_ids"}

    def _kinds(self, segment: Segment) -> list[str]:
        return list(dict.fromkeys(kind_of(self._spec.layers[i].window) for i in segment.layers))

    def has_base(self, index: int) -> bool:
        """Whether the segment makes `moe_base`."""
        return "moe_base" in self._executors[index].outputs

    def attends(self, index: int) -> bool:
        return bool(self._segments[index].layers)

    def run(
        self, kv: DeviceKv, index: int, chunk: int, start: int, tokens: int, rows: int = 0
    ) -> None:
        """Gives the stream a segment for tokens [start, start + tokens) of the batch, its chunk'th
        chunk, over a sequence's cache. rows: of the last segment, those in `buffers.rows`."""
        segment, executor = self._segments[index], self._executors[index]
        pasts = {kind: kv.past_of(kind, chunk) for kind in self._kinds(segment)}
        places = ((p.first, p.bound, p.mask) for p in pasts.values())
        state = (kv.number, start, tokens, rows, *places)
        if self._bound[index] != state:
            self._bound[index] = None
            self._bind(kv, index, start, tokens, rows, pasts)
            self._bound[index] = state
        executor.run(self._stream, DECODE if tokens == 1 else PROMPT)
        for place, layer in enumerate(segment.layers):
            at = kv.past(layer, chunk).at
            bases = zip(kv.bases(layer), self._staging[place], strict=True)
            for (address, row), staged in bases:
                self._stream.copy(address + at * row, staged.address, tokens * row)

    def _bind(
        self, kv: DeviceKv, index: int, start: int, tokens: int, rows: int, pasts: dict[str, Past]
    ) -> None:
        segment, executor, buffers = self._segments[index], self._executors[index], self._buffers
        hidden = (tokens, self._spec.hidden_size)
        rotated = (tokens, self._rotated)
        at, turn = start * buffers.row, start * self._rotated * FLOAT
        places = {
            "hidden": (buffers.hidden[index % 2] + at, hidden),
            "moe_out": (buffers.out + at, hidden),
            "cos": (buffers.cos + turn, rotated),
            "sin": (buffers.sin + turn, rotated),
            "rows": (buffers.rows, (rows,)),
            "hidden_out": (buffers.hidden[(index + 1) % 2] + at, hidden),
            "expert_input": (buffers.expert_input + at, hidden),
            "moe_base": (buffers.base + at, hidden),
            "logits": (buffers.logits, (rows, self._spec.vocab_size)),
        }
        router = segment.router_layer
        rule = None if router is None else self._spec.layers[router].router
        if rule is not None:
            routes = (tokens, rule.top_k)
            skipped = start * rule.top_k
            places["expert_weights"] = (buffers.weights + skipped * FLOAT, routes)
            places["expert_ids"] = (buffers.ids + skipped * INT64, routes)
        for kind, past in pasts.items():
            places[f"mask.{kind}"] = (past.mask, (tokens, past.bound + tokens))
        parts = ("key", "value")
        for place, layer in enumerate(segment.layers):
            past = pasts[kind_of(self._spec.layers[layer].window)]
            pieces = zip(parts, kv.bases(layer), kv.shapes, self._staging[place], strict=False)
            for part, (address, row), shape, staged in pieces:
                seen = (address + past.first * row, (past.bound, *shape))
                places[f"past_{part}.{layer}"] = seen
                places[f"new_{part}.{layer}"] = (staged.address, (tokens, *shape))
        for names in (executor.inputs, executor.outputs):
            for name in names:
                executor.bind(name, *places[name])

    def close(self) -> None:
        for executor in self._executors:
            executor.close()
