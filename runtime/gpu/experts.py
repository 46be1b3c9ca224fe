"""Experts on a device: all of a token's in one graph, those of a prompt one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...bundle.gpu_graphs import ALIGNMENT, FLOAT, INT64, GpuGraphs, page_inputs, row_step
from ...bundle.manifest import Manifest
from ...bundle.pages import ExpertKey, PageFormat, align
from ...model.spec import ModelSpec
from ..routing import Routing
from .buffers import BatchBuffers, most_experts
from .device import Device, Stream
from .executor import Executor, Loader, check_names
from .slots import Page, ResidentPages
from .uploads import Uploads

_ROWS = ALIGNMENT // FLOAT  # rows and weights of an expert begin at multiples of so many


@dataclass(frozen=True)
class _LayerGraphs:
    """tensors: of a page: name, offset in its slot, shape. suffixed: the same for each of a
    token's experts."""

    expert: Executor
    token: Executor
    combine: Executor
    top_k: int
    tensors: tuple[tuple[str, int, tuple[int, ...]], ...]
    suffixed: tuple[tuple[tuple[str, int, tuple[int, ...]], ...], ...]


class DeviceExperts:
    """Adds the experts of a layer to `base`, or to zeros, and leaves the sum in `buffers.out`.

    A token's terms are added in ascending order of experts, wherever their pages came from.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        graphs: GpuGraphs,
        loader: Loader,
        device: Device,
        stream: Stream,
        buffers: BatchBuffers,
        batch: int,
    ):
        spec = manifest.spec
        self._stream, self._buffers = stream, buffers
        self._loaded: dict[str, Executor] = {}
        self._layers: dict[int, _LayerGraphs] = {}
        formats = {layer.layer: layer.format for layer in manifest.experts}
        for item in graphs.layers:
            names = item.expert, item.token, item.combine
            expert, token, combine = (self._load(loader, name) for name in names)
            self._layers[item.layer] = _describe(
                root, spec, item.layer, formats[item.layer], expert, token, combine, names
            )
        self._hidden = spec.hidden_size
        self._step = row_step(buffers.row)
        experts = max((len(layer.offsets) for layer in manifest.experts), default=1)
        entries = batch * most_experts(spec)
        most_lists = min(experts, entries)
        self._terms = device.allocate((entries + 1 + most_lists * self._step) * buffers.row)
        padded = align(entries + most_lists * _ROWS, _ROWS)
        # rows, weights and places, one after the other
        nbytes = padded * (INT64 + FLOAT) + align(entries * INT64, ALIGNMENT)
        self._routes = device.allocate(nbytes)
        self._uploads = Uploads(device, stream, nbytes)

    def _load(self, loader: Loader, name: str) -> Executor:
        if name not in self._loaded:
            self._loaded[name] = loader.load(name)
        return self._loaded[name]

    def run_token(
        self, layer: int, routing: Routing, tier: ResidentPages, *, has_base: bool
    ) -> None:
        """One token. Experts that it goes without are bound to a page of another, at weight 0."""
        item, buffers, executor = self._layers[layer], self._buffers, self._layers[layer].token
        experts = routing.experts
        weights = np.zeros(item.top_k, np.float32)
        weights[: len(experts)] = routing.weights
        with self._uploads.fill() as memory:
            memory.view(np.float32, (item.top_k,))[:] = weights
            self._stream.upload(self._routes.address, memory.address, weights.nbytes)
        addresses = tier.gather(layer, experts)
        addresses += [addresses[0]] * (item.top_k - len(experts))
        executor.bind("x", buffers.expert_input, (1, self._hidden))
        executor.bind("weights", self._routes.address, (1, item.top_k))
        executor.bind("base", buffers.base if has_base else buffers.zeros, (1, self._hidden))
        executor.bind("out", buffers.out, (1, self._hidden))
        for address, tensors in zip(addresses, item.suffixed, strict=True):
            for name, offset, shape in tensors:
                executor.bind(name, address + offset, shape)
        executor.run(self._stream)
        tier.done(layer, experts)

    def run_batch(
        self, layer: int, routing: Routing, tokens: int, tier: ResidentPages, *, has_base: bool
    ) -> None:
        """Several tokens."""
        item, buffers, stream = self._layers[layer], self._buffers, self._stream
        plan = plan_terms(routing, tokens, item.top_k, self._step)
        lists = len(plan.rows)
        with self._uploads.fill() as memory:
            memory.view(np.int64, (lists,))[:] = plan.rows
            memory.view(np.float32, (lists,), lists * INT64)[:] = plan.weights
            at = lists * (INT64 + FLOAT)
            memory.view(np.int64, plan.places.shape, at)[:] = plan.places
            stream.upload(self._routes.address, memory.address, at + plan.places.nbytes)
        if plan.has_gaps:  # what a token goes without is a row of zeros
            stream.clear(self._terms.address + (plan.terms - 1) * buffers.row, buffers.row)
        x = (tokens, self._hidden)
        executor = item.expert
        executor.bind("x", buffers.expert_input, x)
        rows, weights = self._routes.address, self._routes.address + lists * INT64
        index = {expert: place for place, expert in enumerate(routing.experts)}
        for pages in tier.visit(layer, routing.experts):
            for expert, address in pages:
                place = index[expert]
                first, count, term = plan.starts[place], plan.counts[place], plan.firsts[place]
                executor.bind("rows", rows + first * INT64, (count,))
                executor.bind("weights", weights + first * FLOAT, (count,))
                for name, offset, shape in item.tensors:
                    executor.bind(name, address + offset, shape)
                target = self._terms.address + term * buffers.row
                executor.bind("terms", target, (count, self._hidden))
                executor.run(stream)
        combine = item.combine
        combine.bind("terms", self._terms.address, (plan.terms, self._hidden))
        places = self._routes.address + lists * (INT64 + FLOAT)
        combine.bind("places", places, plan.places.shape)
        combine.bind("base", buffers.base if has_base else buffers.zeros, x)
        combine.bind("out", buffers.out, x)
        combine.run(stream)

    def warm_up(self, page: int, batch: int) -> None:
        """Runs every graph once on a page at an address, for a whole batch."""
        first = {id(item.expert): layer for layer, item in reversed(self._layers.items())}
        every = np.arange(batch)
        routing = Routing([0], np.array([0, batch]), every, np.zeros(batch, np.float32))
        one = Routing([0], np.array([0, 1]), every[:1], np.zeros(1, np.float32))
        tier = _OnePage(page)
        for layer in first.values():
            self.run_batch(layer, routing, batch, tier, has_base=False)
            self.run_token(layer, one, tier, has_base=False)

    def close(self) -> None:
        for executor in self._loaded.values():
            executor.close()


class _OnePage:
    """Every page is the same."""

    def __init__(self, address: int):
        self._address = address

    def visit(self, layer: int, experts: Sequence[int]) -> Iterator[list[Page]]:
        yield [(expert, self._address) for expert in experts]

    def gather(self, layer: int, experts: Sequence[int]) -> list[int]:
        return [self._address for _ in experts]

    def done(self, layer: int, experts: Sequence[int]) -> None:
        pass

    def resident(self) -> frozenset[ExpertKey]:
        return frozenset()

    def holds(self, layer: int, expert: int) -> bool:
        return True

    def settle(self) -> None:
        pass

    def make_room(self, nbytes: int) -> None:
        pass

    def give_room(self, nbytes: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class TermPlan:
    """Where everything lies. rows, weights: those of expert e are `counts[e]` from `starts[e]` on;
    its terms from row `firsts[e]` on, of `terms`. places `[tokens, k]`: the row of each term of a
    token; has_gaps: the last row stands for none."""

    rows: np.ndarray
    weights: np.ndarray
    starts: list[int]
    counts: list[int]
    firsts: list[int]
    terms: int
    places: np.ndarray
    has_gaps: bool


def plan_terms(routing: Routing, tokens: int, top_k: int, step: int) -> TermPlan:
    """step: the terms of an expert begin at multiples of it."""
    counts = np.diff(routing.starts)
    starts = _spread(counts, _ROWS)
    firsts = _spread(counts, step)
    inner = np.arange(len(routing.tokens)) - np.repeat(routing.starts[:-1], counts)
    at = np.repeat(starts[:-1], counts) + inner
    rows = np.zeros(int(starts[-1]), np.int64)
    weights = np.zeros(int(starts[-1]), np.float32)
    rows[at], weights[at] = routing.tokens, routing.weights
    term = np.repeat(firsts[:-1], counts) + inner
    # Expert after expert, so what is left of a token's terms after a stable sort is ascending.
    order = np.argsort(routing.tokens, kind="stable")
    token = routing.tokens[order]
    nth = np.arange(len(token)) - np.searchsorted(token, token)
    has_gaps = len(token) < tokens * top_k
    last = int(firsts[-2] + counts[-1]) if len(counts) else 0
    places = np.full((tokens, top_k), last, np.int64)
    places[token, nth] = term[order]
    return TermPlan(
        rows, weights, starts[:-1].tolist(), counts.tolist(), firsts[:-1].tolist(),
        last + has_gaps, places, has_gaps,
    )  # fmt: skip


def _spread(counts: np.ndarray, step: int) -> np.ndarray:
    """Where lists of such lengths begin, each at a multiple of step; and the end of the last."""
    return np.concatenate([[0], np.cumsum(-(-counts // step) * step)])


def _describe(
    root: Path,
    spec: ModelSpec,
    layer: int,
    page_format: PageFormat,
    expert: Executor,
    token: Executor,
    combine: Executor,
    files: tuple[str, str, str],
) -> _LayerGraphs:
    router = spec.layers[layer].router
    top_k = router.top_k if router is not None else 1
    names = {item.name for item in page_inputs(page_format)}
    check_names(expert, root / files[0], {"x", "rows", "weights"} | names, {"terms"}, set())
    several = {f"{name}.{index}" for name in names for index in range(top_k)}
    check_names(token, root / files[1], {"x", "weights", "base"} | several, {"out"}, set())
    check_names(combine, root / files[2], {"terms", "places", "base"}, {"out"}, set())
    tensors = _tensors(page_format, "", expert)
    suffixed = tuple(_tensors(page_format, f".{index}", token) for index in range(top_k))
    return _LayerGraphs(expert, token, combine, top_k, tensors, suffixed)


def _tensors(
    page_format: PageFormat, suffix: str, executor: Executor
) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    """As the graph reads them: it may take integers as the bytes that hold them."""
    places = ((f"{place.name}{suffix}", place.offset) for place in page_format.tensors())
    return tuple((name, offset, executor.inputs[name].shape) for name, offset in places)
