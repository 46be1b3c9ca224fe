"""Runs batches of tokens on the host: the backbone's segments, and experts on the pager's pages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from ...bundle.manifest import PREDICTORS, Manifest, check_file
from ...bundle.pages import ExpertKey
from ...bundle.weight_index import index_file, weights_file
from ..embedding import Embedding
from ..expert_choice import ExpertChoice
from ..memory.budget import MemoryPlan
from ..native.kernels import NativeKernels
from ..paging.pager import Loaded, Pager
from ..paging.predict import EARLY_PAGES, EARLY_PROMPT_PAGES, WORTHWHILE, Predictor
from ..recording.files import Recording
from ..routing import route
from ..runner import BatchPart, Cache, DeviceFigures, Engines, Observer, count_usage
from .backbone import Backbone
from .budget import host_caches
from .experts import load_engines
from .kv_cache import KvCache
from .native_backbone import NativeBackbone

_log = logging.getLogger(__name__)


class HostRunner:
    """See Runner."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        plan: MemoryPlan,
        verify_pages: bool,
        kernels: NativeKernels | None,
        segments: NativeBackbone,
        choice: ExpertChoice,
        prefetch: str,
        recording: Recording,
        reason: str = "",
    ):
        self._root = root
        self._manifest = manifest
        self._choice = choice
        self._recording = recording
        self._plan = plan
        self._kernels, self._native = kernels, segments
        self.usage = count_usage(manifest.spec)
        # ONNX Runtime rounds an expert's products by how many tokens it gets.
        self.joins = kernels is not None
        if verify_pages:
            check_host_files(root, manifest, predictor=plan.predictor > 0)
        self._backbone = Backbone(root, manifest, plan.chunk, plan.batch, segments)
        self._engines = load_engines(root, manifest, plan.batch, kernels)
        self.engines = Engines(
            experts="onnxruntime" if kernels is None else f"native, {kernels.instruction_set}",
            backbone=segments.engine,
            backbone_bytes=plan.backbone,
            reason=reason,
        )
        self._embedding = Embedding(root, manifest)
        self.pager = Pager(
            root, manifest, plan.slots, verify=verify_pages, trace=recording.trace, unit=plan.page
        )
        self.predictor: Predictor | None = None
        self._least_accuracy = 0.0 if prefetch == "on" else WORTHWHILE
        self._top_k = {layer.layer: layer.top_k for layer in manifest.footprint.experts}
        self._routers = [segment.router_layer for segment in manifest.segments]
        if prefetch == "on" and not plan.predicts:
            _log.warning(
                "prefetch on has no effect: %s",
                "the budget has no room for it" if plan.slots < manifest.num_pages
                else "all pages fit into memory",
            )  # fmt: skip
        if not self.pager.direct:
            _log.info("%s: pages are read through the page cache (no O_DIRECT here)", root)

    @property
    def accuracy(self) -> float | None:
        return self.predictor.accuracy if self.predictor is not None else None

    @property
    def figures(self) -> DeviceFigures:
        return DeviceFigures()

    def open_cache(self, context: int) -> KvCache:
        cache = KvCache(self._manifest.spec, context, self._plan.batch)
        self._backbone.prepare(cache)
        return cache

    def close_cache(self, cache: Cache) -> None:
        """Nothing here holds it."""

    def take_caches(self, plan: MemoryPlan, contexts: Sequence[int]) -> MemoryPlan:
        return host_caches(plan, self._manifest.footprint, contexts, self._kernels, self._native)

    def resident(self) -> frozenset[ExpertKey]:
        return self.pager.resident()

    def follow(self, plan: MemoryPlan) -> None:
        if not plan.predicts:
            self.predictor = None
        self.pager.resize(plan.slots)
        if plan.predicts and self.predictor is None:
            self.predictor = Predictor(self._root, self._manifest.spec)

    def run_batch(self, parts: Sequence[BatchPart], observe: Observer | None = None) -> None:
        backbone, pager = self._backbone, self.pager
        routes, trace = self._recording.routes, self._recording.trace
        ids = parts[0].ids if len(parts) == 1 else np.concatenate([part.ids for part in parts])
        tokens, decodes = len(ids), len(ids) == len(parts)
        self._embedding.read(ids, backbone.begin(parts))
        for index, layer in enumerate(self._routers):
            started = time.perf_counter()
            if layer is None:
                backbone.run_last()
                if trace is not None:
                    trace.span("last layers and head", "backbone", started, tokens=tokens)
                if observe is not None:
                    observe(index, {"logits": parts[0].logits})
                continue
            out = backbone.run(index, tokens)
            if trace is not None:
                trace.span(f"backbone {layer}", "backbone", started, layer=layer, tokens=tokens)
            if observe is not None:
                observe(index, out)
            if self.predictor is not None and decodes:
                self.predictor.learn(layer, out["expert_ids"].ravel().tolist())
            weights, experts = self._choice.choose(
                layer,
                out["expert_weights"],
                out["expert_ids"],
                partial(pager.holds, layer),
            )
            if routes is not None:
                routes.add(layer, weights, experts, pager.holds)
            routing = route(weights, experts)
            self.usage[layer, routing.experts] += np.diff(routing.starts)
            self._engines[layer].add(
                out["moe_base"],
                out["expert_input"],
                routing,
                partial(self._visit, layer, routing.experts, out["hidden_out"], decodes),
            )
        for part in parts:
            cast(KvCache, part.cache).commit(len(part.ids))

    def _visit(
        self, layer: int, experts: list[int], hidden: np.ndarray, decodes: bool, in_order: bool
    ) -> Iterator[list[Loaded]]:
        """Has a layer's pages read, and behind them those that the next layer may want."""
        pages = self.pager.visit(layer, experts, in_order=in_order)
        if self.predictor is not None:
            guess = self.predictor.guess(layer, hidden, self._top_k[layer])
            if guess is not None:
                if decodes:
                    self.predictor.remember(*guess)
                if self.predictor.accuracy >= self._least_accuracy:
                    most = EARLY_PAGES if decodes else EARLY_PROMPT_PAGES
                    self.pager.read_early(*guess, most=most)
        return pages

    def close(self) -> None:
        with ExitStack() as ends:  # each is done, whatever becomes of those before it
            ends.callback(self._embedding.close)
            ends.callback(self.pager.close)
            self.predictor = None
            del self._backbone, self._engines


def check_host_files(root: Path, manifest: Manifest, *, predictor: bool) -> None:
    """Checks the hashes of all graphs and of the backbone's weights.

    Raises:
        BundleError: one is not what the compiler wrote.
    """
    for segment in manifest.segments:
        check_file(root, manifest, segment.file)
        check_file(root, manifest, weights_file(segment))
        if index_file(segment) in manifest.files:
            check_file(root, manifest, index_file(segment))
    if predictor:
        check_file(root, manifest, PREDICTORS)
    for layer in manifest.experts:
        for engine in layer.engines:
            check_file(root, manifest, engine)
