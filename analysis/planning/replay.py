"""Hit rates of cache policies on recorded routes, without a model.

How a replay counts, by which it agrees with the published replays of BigMoeOnEdge
(github.com/Helldez/BigMoeOnEdge, scripts/route-replay.py):

- A layer's run is one visit: each expert is looked up once, whatever the number of tokens.
- The prompt comes first, in visits of all its tokens, and fills the cache and the policy's books;
  hits are counted while decoding alone.
- Pages count with their own sizes. The pages of the running layer are not given up for each
  other. Those of a prompt that do not fit together are read in groups that do.
- LFU counts a use per visit, for ever, also of pages that have left; the prompt's count too. Of
  equally frequent pages the least recently used goes.
- Per-layer policies are published as a cache for each layer with an even share of the bytes,
  within which the running layer's pages always stay. So a share of fewer pages than a token needs
  (500 MiB in the published table) holds more than the budget; `peak_bytes` says how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...bundle.pages import ExpertKey
from ...errors import InputError
from ...runtime.paging.next_use import NextUse
from ...runtime.paging.policy import CachePolicy
from ...runtime.recording.routes import Routes, Visit, layer_routes
from .policies import Belady, Lfu, Lru, PerLayer


@dataclass(frozen=True)
class HitCount:
    """Page requests while decoding."""

    hits: int = 0
    requests: int = 0

    @property
    def hit_rate(self) -> float:
        """1 where nothing was asked for."""
        return self.hits / self.requests if self.requests else 1.0

    def __add__(self, other: HitCount) -> HitCount:
        return HitCount(self.hits + other.hits, self.requests + other.requests)


@dataclass(frozen=True)
class Replay:
    """bytes_read: while decoding. peak_bytes: the most that was cached after a decoding visit."""

    by_layer: dict[int, HitCount]
    bytes_read: int
    peak_bytes: int

    @property
    def total(self) -> HitCount:
        return sum(self.by_layer.values(), HitCount())

    @property
    def hit_rate(self) -> float:
        return self.total.hit_rate


@dataclass
class _ReplayCache:
    """The pages that a policy keeps, in bytes."""

    policy: CachePolicy
    capacity: int
    page_bytes: dict[int, int]
    pages: set[ExpertKey] = field(default_factory=set)
    used: int = 0

    def visit(self, visit: Visit, *, whole: bool) -> int:
        """Runs a layer; returns its hits. whole: all its pages together, fit or not."""
        size = self.page_bytes[visit.layer]
        keys = [ExpertKey(visit.layer, expert) for expert in visit.experts]
        misses = [key for key in keys if key not in self.pages]
        self.policy.visit(visit.layer, visit.experts)
        group = max(1, self.capacity // size)
        if whole or len(keys) <= group:
            self._load(misses, size, frozenset(keys))
        else:
            for start in range(0, len(misses), group):
                part = misses[start : start + group]
                self._load(part, size, frozenset(part))
        return len(keys) - len(misses)

    def _load(self, keys: list[ExpertKey], size: int, pinned: frozenset[ExpertKey]) -> None:
        room = self.used + size * len(keys) - self.capacity
        while room > 0 and (victims := self.policy.evict(pinned)):
            self.pages.remove(victims[0])
            self.used -= self.page_bytes[victims[0].layer]
            room -= self.page_bytes[victims[0].layer]
        for key in keys:
            self.policy.add(key)
            self.pages.add(key)
            self.used += size


def replay(
    routes: Routes, capacity_bytes: int, policy: CachePolicy, *, whole_layers: bool = False
) -> Replay:
    """Runs the routes through a cache of `capacity_bytes`.

    It holds no more than that, except for a single page that is larger. whole_layers: nor for
    the pages of the running layer together, which then stay until another layer needs room.
    """
    cache = _ReplayCache(policy, capacity_bytes, routes.page_bytes)
    hits = dict.fromkeys(routes.layers, 0)
    requests = dict.fromkeys(routes.layers, 0)
    bytes_read = peak = 0
    for visit in routes.visits:
        found = cache.visit(visit, whole=whole_layers)
        if visit.prompt:
            continue
        hits[visit.layer] += found
        requests[visit.layer] += len(visit.experts)
        bytes_read += (len(visit.experts) - found) * routes.page_bytes[visit.layer]
        peak = max(peak, cache.used)
    tallies = {layer: HitCount(hits[layer], requests[layer]) for layer in routes.layers}
    return Replay(tallies, bytes_read, peak)


def replay_layers(routes: Routes, capacity_bytes: int, make: Callable[[], CachePolicy]) -> Replay:
    """A cache for each layer with an even share of the bytes, as published.

    peak_bytes is the sum over the layers, each at its peak.
    """
    share = capacity_bytes // len(routes.layers)
    parts = [replay(part, share, make(), whole_layers=True) for part in layer_routes(routes)]
    return Replay(
        {layer: tally for part in parts for layer, tally in part.by_layer.items()},
        sum(part.bytes_read for part in parts),
        sum(part.peak_bytes for part in parts),
    )


def belady(routes: Routes) -> Belady:
    return Belady((visit.layer, visit.experts) for visit in routes.visits)


def policies(routes: Routes) -> Iterator[tuple[str, Callable[[], CachePolicy]]]:
    """The policies that `replay_rows` compares, each made anew for a run; the default first."""
    layers = routes.layers
    token = len(layers)  # visits of a token
    yield "default", lambda: NextUse(token)
    yield "lru", Lru
    yield "lfu", Lfu
    yield "lfu, ageing", lambda: Lfu(memory=16 * token)
    yield "lru per layer", lambda: PerLayer(layers, Lru)
    yield "lfu per layer", lambda: PerLayer(layers, Lfu)
    yield "optimum", lambda: belady(routes)


def token_bytes(routes: Routes) -> int:
    """What the pages of one decoded token take, on average over the file; 0 without any."""
    decoded = [visit for visit in routes.visits if not visit.prompt]
    nbytes = sum(len(visit.experts) * routes.page_bytes[visit.layer] for visit in decoded)
    tokens = sum(visit.layer == routes.layers[0] for visit in decoded)
    return nbytes // max(1, tokens)


def used_bytes(routes: Routes) -> int:
    """Of all pages that were asked for, each counted once."""
    pages = {(visit.layer, expert) for visit in routes.visits for expert in visit.experts}
    return sum(routes.page_bytes[layer] for layer, _ in pages)


def usual_capacities(routes: Routes) -> list[int]:
    """Budgets to look at where none is given: from half of one token's pages to eight times, as far
    as there are pages that were asked for."""
    token, everything = max(2, token_bytes(routes)), used_bytes(routes)
    sizes = [token // 2, token, 2 * token, 4 * token, 8 * token]
    smaller = [size for size in sizes if size < everything]
    return smaller if len(smaller) == len(sizes) else [*smaller, everything]


@dataclass(frozen=True)
class ReplayRow:
    """Hit rates at one budget for the cache, by the policy's name."""

    capacity_bytes: int
    hit_rates: dict[str, float]


def replay_rows(routes: Routes, capacities: list[int]) -> list[ReplayRow]:
    """What `pocketmoe replay` prints: a row for each budget.

    Raises:
        InputError: nothing was decoded.
    """
    if all(visit.prompt for visit in routes.visits):
        raise InputError("the routes are a prompt's alone; hits are counted while decoding")
    return [
        ReplayRow(
            capacity,
            {name: replay(routes, capacity, make()).hit_rate for name, make in policies(routes)},
        )
        for capacity in capacities
    ]
