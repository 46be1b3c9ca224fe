"""Runs batches of tokens on a device: graphs on one stream, copies of pages on another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from ...bundle.gpu_graphs import FLOAT, INT64, GpuGraphs
from ...bundle.manifest import Manifest
from ...bundle.pages import ExpertKey
from ...errors import EngineError
from ..embedding import Embedding
from ..expert_choice import ExpertChoice
from ..memory.budget import MemoryPlan
from ..paging.pager import Pager
from ..recording.files import Recording
from ..rope_table import RopeTable
from ..routing import route
from ..runner import BatchPart, Cache, DeviceFigures, Engines, Observer, count_usage
from .buffers import BatchBuffers, most_experts
from .caches import DeviceCaches
from .device import Device, Stream
from .executor import Loader
from .experts import DeviceExperts
from .kv import DeviceKv
from .scope import Scope
from .segments import DeviceSegments
from .slots import Tier
from .uploads import Uploads

_LOGIT_ROWS = 8  # that come down at once


class DeviceRunner:
    """See Runner. The tier of pages comes last, with `use`, once all else has its memory.

    A layer ends with its routes on the host, for which the caller waits; so the host is never more
    than a layer ahead of the device.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        graphs: GpuGraphs,
        loader: Loader,
        device: Device,
        stream: Stream,
        context: int,
        chunk: int,
        batch: int,
        choice: ExpertChoice,
        recording: Recording,
    ):
        spec = manifest.spec
        self._device, self._stream, self._loader = device, stream, loader
        self._spec, self._chunk, self._batch, self._context = spec, chunk, batch, context
        self._choice, self._recording = choice, recording
        self._rope = RopeTable(spec.rope, batch)
        rotated = self._rope.cos.shape[1]
        self._routers = [segment.router_layer for segment in manifest.segments]
        self.engines = Engines("", "", 0)
        self.usage = count_usage(spec)
        # One after another: what a graph rounds depends on the tokens that it gets at once.
        self.joins = False
        self._process = os.getpid()
        self._taken = 0
        row = spec.hidden_size * FLOAT
        with ExitStack() as undo:
            undo.callback(loader.close)
            scope = Scope(device)
            undo.callback(scope.close)
            undo.callback(stream.synchronize)  # before anything that it may use is freed
            self._embedding = Embedding(root, manifest)
            undo.callback(self._embedding.close)
            self._buffers = BatchBuffers(scope, stream, spec, chunk, batch, rotated)
            self._caches = DeviceCaches(device, scope, stream, spec, context, chunk, batch)
            undo.callback(self._caches.close_all)
            self._segments = DeviceSegments(
                root, manifest, graphs, loader, scope, stream, self._buffers, chunk, rotated
            )
            undo.callback(self._segments.close)
            self._experts = DeviceExperts(
                root, manifest, graphs, loader, scope, stream, self._buffers, batch
            )
            undo.callback(self._experts.close)
            loader.ready()
            self._start = Uploads(scope, stream, batch * (row + 2 * rotated * FLOAT))
            self._rows = Uploads(scope, stream, chunk * INT64)
            self._routes = scope.allocate_host(batch * most_experts(spec) * (FLOAT + INT64))
            # Also what is observed comes down here.
            self._logits = scope.allocate_host(max(_LOGIT_ROWS * spec.vocab_size * FLOAT, row))
            self._down = scope.event()
            undo.callback(stream.synchronize)
            self._ends = undo.pop_all()
            self._last = ExitStack()

    def use(self, tier: Tier, pager: Pager, engines: Engines, taken: int) -> None:
        """taken: bytes of the device that the session has, pages included."""
        self._tier, self.pager, self.engines, self._taken = tier, pager, engines, taken
        self._ends.callback(pager.close)
        self._ends.callback(tier.close)
        self._ends.callback(self._stream.synchronize)

    @property
    def accuracy(self) -> float | None:
        return None

    @property
    def figures(self) -> DeviceFigures:
        tier = self._tier
        return DeviceFigures(tier.requests, tier.hits, tier.copied, tier.slots, self._taken)

    def open_cache(self, context: int) -> DeviceKv:
        return self._caches.open(context, self._tier)

    def close_cache(self, cache: Cache) -> None:
        self._stream.synchronize()
        self._caches.close(cast(DeviceKv, cache), self._tier)

    def take_caches(self, plan: MemoryPlan, contexts: Sequence[int]) -> MemoryPlan:
        if not self._device.info.unified:
            return plan
        return replace(plan, kv=self._caches.more_bytes(contexts))

    def resident(self) -> frozenset[ExpertKey]:
        return self._tier.resident()

    def follow(self, plan: MemoryPlan) -> None:
        self._tier.settle()
        self.pager.resize(plan.slots)

    def run_batch(self, parts: Sequence[BatchPart], observe: Observer | None = None) -> None:
        for part in parts:
            self._run_part(part, observe)

    def _run_part(self, part: BatchPart, observe: Observer | None) -> None:
        kv, tokens, trace = cast(DeviceKv, part.cache), len(part.ids), self._recording.trace
        logits = part.logits
        self._begin(kv, part.ids, part.length)
        for index, layer in enumerate(self._routers):
            started = time.perf_counter()
            if layer is None:
                self._run_last(kv, index, tokens, logits)
                if trace is not None:
                    trace.span("last layers and head", "backbone", started, tokens=tokens)
                if observe is not None:
                    observe(index, {"logits": logits})
                continue
            weights, experts = self._run_segment(kv, index, layer, tokens)
            if trace is not None:
                trace.span(f"backbone {layer}", "backbone", started, layer=layer, tokens=tokens)
            if observe is not None:
                observe(index, self._observed(index, tokens, weights, experts))
            self._run_experts(index, layer, weights, experts, tokens)
        kv.commit(tokens)

    def _begin(self, kv: DeviceKv, ids: np.ndarray, length: int) -> None:
        """Sends up the embedding rows, the masks and the rotation of a batch."""
        tokens, buffers, stream = len(ids), self._buffers, self._stream
        kv.begin(tokens)
        self._rope.fill(kv.position, tokens, length)
        with self._start.fill() as memory:
            offset = 0
            hidden = memory.view(np.float32, (tokens, self._spec.hidden_size))
            self._embedding.read(ids, hidden)
            stream.upload(buffers.hidden[0], memory.address, hidden.nbytes)
            offset += hidden.nbytes
            for target, table in ((buffers.cos, self._rope.cos), (buffers.sin, self._rope.sin)):
                part = table[:tokens]
                if not part.size:
                    continue
                memory.view(np.float32, part.shape, offset)[:] = part
                stream.upload(target, memory.address + offset, part.nbytes)
                offset += part.nbytes

    def _run_segment(
        self, kv: DeviceKv, index: int, layer: int, tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs a segment for the whole batch; returns the router's weights and ids, valid until the
        next is run."""
        for number, start in enumerate(range(0, tokens, self._chunk)):
            self._segments.run(kv, index, number, start, min(self._chunk, tokens - start))
        router = self._spec.layers[layer].router
        top_k = router.top_k if router is not None else 1
        weights = self._routes.view(np.float32, (tokens, top_k))
        at = self._batch * most_experts(self._spec) * FLOAT
        experts = self._routes.view(np.int64, (tokens, top_k), at)
        stream, buffers = self._stream, self._buffers
        stream.download(self._routes.address, buffers.weights, weights.nbytes)
        stream.download(self._routes.address + at, buffers.ids, experts.nbytes)
        self._wait()
        count = router.num_experts if router is not None else 1
        if experts.min() < 0 or experts.max() >= count:
            raise EngineError(
                f"layer {layer} chose an expert that it does not have: {self.engines.backbone} "
                f"computes wrong numbers on {self.engines.device}; use another --backend"
            )
        return weights, experts

    def _run_experts(
        self, index: int, layer: int, weights: np.ndarray, experts: np.ndarray, tokens: int
    ) -> None:
        tier, trace = self._tier, self._recording.trace
        weights, experts = self._choice.choose(layer, weights, experts, partial(tier.holds, layer))
        if self._recording.routes is not None:
            self._recording.routes.add(layer, weights, experts, tier.holds)
        routing = route(weights, experts)
        self.usage[layer, routing.experts] += np.diff(routing.starts)
        started, has_base = time.perf_counter(), self._segments.has_base(index)
        if tokens == 1:
            self._experts.run_token(layer, routing, tier, has_base=has_base)
        else:
            self._experts.run_batch(layer, routing, tokens, tier, has_base=has_base)
        if trace is not None:
            count = len(routing.experts)
            trace.span(f"experts {layer}", "experts", started, layer=layer, experts=count)

    def _run_last(self, kv: DeviceKv, index: int, tokens: int, logits: np.ndarray) -> None:
        """Fills `logits`, float32 `[R, V]`, for the last R tokens."""
        first = tokens - len(logits)
        for number, start in enumerate(range(0, tokens, self._chunk)):
            stop = min(start + self._chunk, tokens)
            wanted = max(first, start)
            if wanted >= stop and not self._segments.attends(index):
                continue
            from_row = min(wanted, stop - 1)  # at least one row
            rows = stop - from_row
            with self._rows.fill() as memory:
                memory.view(np.int64, (rows,))[:] = np.arange(from_row - start, stop - start)
                self._stream.upload(self._buffers.rows, memory.address, rows * INT64)
            self._segments.run(kv, index, number, start, stop - start, rows)
            if wanted < stop:
                self._fetch(self._buffers.logits, logits[wanted - first : stop - first])

    def _fetch(self, address: int, into: np.ndarray) -> None:
        """Brings rows of float32 down, some at a time."""
        row = into[0].nbytes
        most = max(1, len(self._logits.data) // row)
        for start in range(0, len(into), most):
            part = into[start : start + most]
            self._stream.download(self._logits.address, address + start * row, part.nbytes)
            self._wait()
            part[:] = self._logits.view(np.float32, part.shape)

    def _wait(self) -> None:
        """Until all that the stream was given is done."""
        self._stream.record(self._down)
        self._down.wait()

    def _observed(
        self, index: int, tokens: int, weights: np.ndarray, experts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """A segment's outputs, brought down."""
        buffers = self._buffers
        sources = {
            "hidden_out": buffers.hidden[(index + 1) % 2],
            "moe_base": buffers.base if self._segments.has_base(index) else buffers.zeros,
            "expert_input": buffers.expert_input,
        }
        found = {}
        for name, address in sources.items():
            found[name] = np.empty((tokens, self._spec.hidden_size), np.float32)
            self._fetch(address, found[name])
        return {**found, "expert_weights": weights, "expert_ids": experts}

    def warm_up(self, slot_bytes: int) -> None:
        """Runs every graph at its largest, on zeros, for engines that take memory when they run."""
        if not self._loader.grows:
            return
        page, kv = self._device.allocate(slot_bytes), self._caches.first
        try:
            self._stream.clear(page.address, slot_bytes)
            kv.pretend(self._context - self._chunk)
            self._begin(kv, np.zeros(self._chunk, np.int64), self._context)
            for index, layer in enumerate(self._routers):
                rows = 0
                if layer is None:
                    rows = self._chunk
                    self._stream.clear(self._buffers.rows, rows * INT64)
                self._segments.run(kv, index, 0, 0, self._chunk, rows)
            self._experts.warm_up(page.address, self._batch)
            self._stream.synchronize()
        finally:
            kv.reset()
            self._stream.synchronize()
            page.free()

    def on_close(self, end: Callable[[], None]) -> None:
        """To be called once all is closed."""
        self._last.callback(end)

    def close(self) -> None:
        """May be called twice, and after a failure of the device: each is done, whatever becomes of
        those before it. Nothing is done after a fork, in whose child CUDA does not work."""
        if os.getpid() != self._process:
            return
        with ExitStack() as ends:
            ends.push(self._last.pop_all())
            ends.push(self._ends.pop_all())
