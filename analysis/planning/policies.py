"""The cache policies that the runtime's own is compared with: those of textbooks, and the optimum.

The cost of a request is O(log pages), but for `PerLayer`, which looks at each layer.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice

from ...bundle.pages import ExpertKey
from ...runtime.paging.policy import CachePolicy, Ranking

_LARGEST_UNIT = 1e100  # counts are scaled down before floats end


class Lru:
    """Least recently used: evicts the page that was not used for the longest time.

    Within a visit, the experts are used in the order in which it names them.
    """

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()
        self._latest: list[ExpertKey] = []

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        self._use()  # those of the last visit again, as pages that were missing came late
        self._latest = [ExpertKey(layer, expert) for expert in experts]
        self._use()

    def _use(self) -> None:
        for key in self._latest:
            if key in self._order:
                self._order.move_to_end(key)

    def add(self, key: ExpertKey) -> None:
        self._order[key] = None

    def discard(self, key: ExpertKey) -> None:
        self._order.pop(key, None)

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        free = (key for key in self._order if key not in pinned)
        taken = list(islice(free, count))
        for key in taken:
            del self._order[key]
        return taken


class Lfu:
    """Least frequently used: evicts the page used least often; of equal ones, that not used for
    longest.

    Uses are remembered after a page is evicted. memory: visits after which a use counts 1/e of a
    new one (a token is as many visits as there are paged layers); None: for ever.
    """

    def __init__(self, memory: float | None = None) -> None:
        self._growth = 1.0 if memory is None else 1.0 + 1.0 / memory
        self._unit = 1.0  # what a use counts now: grows, instead of all counts shrinking
        self._uses: defaultdict[ExpertKey, float] = defaultdict(float)
        self._cached: Ranking[ExpertKey] = Ranking()

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        self._unit *= self._growth
        if self._unit > _LARGEST_UNIT:
            self._shrink()
        for expert in experts:
            key = ExpertKey(layer, expert)
            self._uses[key] += self._unit
            if key in self._cached.entries:
                self._cached.set(key, self._uses[key])

    def add(self, key: ExpertKey) -> None:
        self._cached.set(key, self._uses[key])

    def discard(self, key: ExpertKey) -> None:
        self._cached.discard(key)

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        return self._cached.take(pinned, count)

    def _shrink(self) -> None:
        for key in self._uses:
            self._uses[key] /= self._unit
        self._cached.rescale(1 / self._unit)
        self._unit = 1.0


class PerLayer:
    """A policy for each layer; a layer with its even share of the pages evicts its own.

    One with less takes from the layer that has most.
    """

    def __init__(self, layers: Iterable[int], make: Callable[[], CachePolicy]) -> None:
        self._policies = {layer: make() for layer in layers}
        self._sizes = dict.fromkeys(self._policies, 0)
        self._pages = 0
        self._running = next(iter(self._policies))

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        self._running = layer
        self._policies[layer].visit(layer, experts)

    def add(self, key: ExpertKey) -> None:
        self._policies[key.layer].add(key)
        self._count(key.layer, 1)

    def discard(self, key: ExpertKey) -> None:
        # A policy does not say whether it had the page, so it is asked to give it up.
        if self._policies[key.layer].evict(_AllBut(key)):
            self._count(key.layer, -1)

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        taken: list[ExpertKey] = []
        while len(taken) < count:
            victim = self._evict_one(pinned)
            if victim is None:
                break
            taken.append(victim)
            self._count(victim.layer, -1)
        return taken

    def _evict_one(self, pinned: Container[ExpertKey]) -> ExpertKey | None:
        share = self._pages / len(self._policies)
        own = self._running if self._sizes[self._running] >= share else None
        for layer in sorted(self._sizes, key=lambda layer: (layer != own, -self._sizes[layer])):
            if victims := self._policies[layer].evict(pinned):
                return victims[0]
        return None

    def _count(self, layer: int, change: int) -> None:
        self._sizes[layer] += change
        self._pages += change


class _AllBut:
    """Pins every page but one."""

    def __init__(self, key: ExpertKey) -> None:
        self._key = key

    def __contains__(self, key: object) -> bool:
        return key != self._key


class Pins:
    """Pages that are never evicted, and another policy for the rest.

    Whoever chooses the pins leaves room for the pages of one layer.
    """

    def __init__(self, keys: Iterable[ExpertKey], rest: CachePolicy) -> None:
        self._keys = frozenset(keys)
        self._rest = rest

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        self._rest.visit(layer, experts)

    def add(self, key: ExpertKey) -> None:
        if key not in self._keys:
            self._rest.add(key)

    def discard(self, key: ExpertKey) -> None:
        if key not in self._keys:
            self._rest.discard(key)

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        return self._rest.evict(pinned, count)


class Belady:
    """The offline optimum: evicts the page whose next use lies furthest ahead.

    L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
    Journal 5 (2), 1966. `visits` is what `visit` is going to be told, in order. It is the optimum
    for pages of one size; with several sizes it comes close.
    """

    def __init__(self, visits: Iterable[tuple[int, Sequence[int]]]) -> None:
        self._uses: dict[ExpertKey, list[int]] = defaultdict(list)
        for time, (layer, experts) in enumerate(visits):
            for expert in experts:
                self._uses[ExpertKey(layer, expert)].append(time)
        for times in self._uses.values():
            times.reverse()
        self._cached: Ranking[ExpertKey] = Ranking()

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            key = ExpertKey(layer, expert)
            self._uses[key].pop()
            if key in self._cached.entries:
                self._cached.set(key, self._rank(key))

    def add(self, key: ExpertKey) -> None:
        self._cached.set(key, self._rank(key))

    def discard(self, key: ExpertKey) -> None:
        self._cached.discard(key)

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        return self._cached.take(pinned, count)

    def _rank(self, key: ExpertKey) -> float:
        times = self._uses[key]
        return -float(times[-1]) if times else -float("inf")
