"""Routed experts on a CPU: the native engine, and the choice of one for each layer of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np

from ...bundle.footprint import Footprint
from ...bundle.manifest import Manifest
from ...bundle.pages import PageFormat
from ...errors import BundleError, InputError
from ..native.kernels import ExpertFormat, NativeKernels
from ..native.library import PRECISIONS, available
from ..paging.pager import Loaded
from ..paging.readers import Slot
from ..routing import Routing
from .engine import ExpertEngine, PageSource

KERNELS = ("auto", "native", "onnxruntime")
# Up to so many rows of work, experts are computed as their pages come; beyond, as in a prompt, in
# order, for which nothing has to be kept.
FEW_ROWS = 64
_log = logging.getLogger(__name__)
_said: set[str] = set()  # reasons for ONNX Runtime that were logged


class NativeExpertEngine:
    """The native kernels, straight on the page. They read it while they compute: nothing of it is
    unpacked or copied.

    kinds: of each expert, its index in `formats`; empty where all have the first. most_rows: of
    work, tokens of all experts, in one call: it bounds the kernels' memory.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        formats: Sequence[PageFormat],
        most_rows: int,
        kinds: Sequence[int] = (),
    ):
        self._kernels = kernels
        self._formats = [ExpertFormat(page_format) for page_format in formats]
        self._most_rows = most_rows
        self._kinds = kinds

    def add(self, out: np.ndarray, x: np.ndarray, routing: Routing, pages: PageSource) -> None:
        if not routing.experts:
            return
        if len(routing.tokens) <= FEW_ROWS:
            self._add_as_they_come(out, x, routing, pages(False))
            return
        index = 0
        for batch in pages(True):
            slots = [slot for _, slot in batch]
            while slots:
                kind, alike = self._alike(routing.experts[index : index + len(slots)])
                count = self._fitting(routing, index, alike)
                part = routing.part(index, index + count)
                self._run(kind, part, slots[:count], x, out)
                index += count
                slots = slots[count:]

    def _add_as_they_come(
        self, out: np.ndarray, x: np.ndarray, routing: Routing, batches: Iterator[list[Loaded]]
    ) -> None:
        """Computes what is there while the rest is read, and adds all of it in order at the end."""
        first = next(batches)
        kind, alike = self._alike(routing.experts)
        if len(first) == alike == len(routing.experts):
            self._run(kind, routing, [slot for _, slot in first], x, out)
            return
        terms = np.empty((len(routing.tokens), x.shape[1]), np.float32)
        places: list[np.ndarray] = []
        done = 0
        for batch in chain([first], batches):
            for kind, some in self._by_kind(batch):
                part, rows = routing.pick([expert for expert, _ in some])
                self._kernels.expert_terms(
                    self._formats[kind], [slot.data for _, slot in some], part.starts,
                    part.tokens, part.weights, x, terms[done : done + len(rows)],
                )  # fmt: skip
                places.append(rows)
                done += len(rows)
        order = np.argsort(np.concatenate(places))
        self._kernels.add_terms(routing.tokens, terms[order], out)

    def _run(
        self, kind: int, part: Routing, slots: list[Slot], x: np.ndarray, out: np.ndarray
    ) -> None:
        self._kernels.run_experts(
            self._formats[kind], [slot.data for slot in slots], part.starts, part.tokens,
            part.weights, x, out,
        )  # fmt: skip

    def _alike(self, experts: Sequence[int]) -> tuple[int, int]:
        """The kind of the first, and how many from it on are of that kind."""
        if not self._kinds:
            return 0, len(experts)
        kind = self._kinds[experts[0]]
        others = (n for n, expert in enumerate(experts) if self._kinds[expert] != kind)
        return kind, next(others, len(experts))

    def _by_kind(self, batch: list[Loaded]) -> Iterator[tuple[int, list[Loaded]]]:
        if not self._kinds:
            yield 0, batch
            return
        for kind in sorted({self._kinds[expert] for expert, _ in batch}):
            yield kind, [item for item in batch if self._kinds[item[0]] == kind]

    def _fitting(self, routing: Routing, first: int, most: int) -> int:
        """How many experts from `first` on go into one call, at least one."""
        limit = routing.starts[first] + self._most_rows
        count = int(np.searchsorted(routing.starts[first + 1 :], limit, side="right"))
        return max(1, min(count, most))


def choose_kernels(
    choice: str, manifest: Manifest | Footprint, threads: int
) -> NativeKernels | None:
    """The native kernels, or None where ONNX Runtime is to compute the experts.

    choice: "native", "onnxruntime", or "auto": native where it can, which is said once if not.

    Raises:
        InputError: another choice, or "native" where it cannot be.
    """
    if choice not in KERNELS:
        raise InputError(f"kernels must be one of {', '.join(KERNELS)}, not {choice}")
    if choice == "onnxruntime":
        return None
    kernels = NativeKernels(threads) if available() else None
    reason = "are not built; install pocketmoe again where there is a C++ compiler"
    if kernels is not None:
        formats = {item for layer in manifest.experts for item in layer.formats}
        if all(item.precision in PRECISIONS for item in formats) and all(
            kernels.supports(ExpertFormat(item)) for item in formats
        ):
            return kernels
        reason = "do not know this bundle's page format"
    if choice == "native":
        raise InputError(f"the native kernels {reason}, or use kernels='onnxruntime'")
    if reason not in _said and find_spec("onnxruntime") is not None:  # else an error follows
        _said.add(reason)
        _log.warning("the native kernels %s; ONNX Runtime computes the experts, slower", reason)
    return None


def most_rows(manifest: Manifest | Footprint, batch: int) -> int:
    """Rows of work in one call of the kernels: a whole batch on one expert, or one token's."""
    top_k = [layer.router.top_k for layer in manifest.spec.layers if layer.router is not None]
    return max([batch, *top_k])


def native_bytes(kernels: NativeKernels, manifest: Manifest | Footprint, batch: int) -> int:
    """Memory that the kernels hold once each page format has had a whole batch, and the terms of
    a few tokens."""
    formats = {item for layer in manifest.experts for item in layer.formats}
    rows = most_rows(manifest, batch)
    held = sum(kernels.scratch_bytes(ExpertFormat(item), batch, rows) for item in formats)
    return held + 2 * FEW_ROWS * manifest.spec.hidden_size * 4


def load_engines(
    root: Path, manifest: Manifest, batch: int, kernels: NativeKernels | None
) -> dict[int, ExpertEngine]:
    """An engine for each MoE layer, native if there are kernels. In ONNX Runtime, experts with the
    same graph and page format share it."""
    if kernels is not None:
        rows = most_rows(manifest, batch)
        return {
            layer.layer: NativeExpertEngine(kernels, layer.formats, rows, layer.kinds)
            for layer in manifest.experts
        }
    from .onnx_experts import OnnxExpert, OnnxExpertEngine

    loaded: dict[tuple[bytes, PageFormat], OnnxExpert] = {}
    by_layer: dict[int, ExpertEngine] = {}
    for layer in manifest.experts:
        graphs = []
        for name, page_format in zip(layer.engines, layer.formats, strict=True):
            where = root / name
            try:
                model = where.read_bytes()
            except OSError as error:
                raise BundleError(f"{where} cannot be read ({error.strerror})") from error
            key = (model, page_format)
            if key not in loaded:
                loaded[key] = OnnxExpert(model, where, page_format, batch)
            graphs.append(loaded[key])
        by_layer[layer.layer] = OnnxExpertEngine(graphs, layer.kinds)
    return by_layer
