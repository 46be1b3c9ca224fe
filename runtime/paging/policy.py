"""Which page leaves the cache: the interface, and the policies to compare with.

The pager tells a policy of each layer it runs (`visit`), of each page that it has put into the
cache (`add`), and asks for pages to give up (`evict`). A policy sees keys only, never bytes, so a
route file drives it offline just as well (`replay.py`). The default is in `next_use.py`.

The cost of a request is O(log pages), but for `PerLayer`, which looks at each layer.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

from ...bundle.pages import ExpertKey

K = TypeVar("K")
_LARGEST_UNIT = 1e100  # counts are scaled down before floats end


class CachePolicy(Protocol):
    """Keeps the books of one cache. The same calls lead to the same answers, always."""

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        """A layer runs and needs these experts, each named once, for a token or for a chunk.

        Called before the pages of the layer are added and before others are evicted for them.
        """

    def add(self, key: ExpertKey) -> None:
        """The page is in the cache now, or on its way there; it was not before."""

    def discard(self, key: ExpertKey) -> None:
        """The page has left unasked: its read failed. Does nothing if it was not there."""

    def evict(self, pinned: Container[ExpertKey], count: int = 1) -> list[ExpertKey]:
        """Gives up `count` pages, none of them pinned; fewer if there are no more.

        What is returned is out of the books. One call for several is cheaper than many for one.
        """


class Ranking(Generic[K]):
    """Keys by rank, lowest first; of equal ranks, the one set first.

    A heap whose outdated entries are skipped: those that are not the key's own in `entries`.
    """

    def __init__(self) -> None:
        self.entries: dict[K, tuple[float, int, K]] = {}  # (rank, serial, key)
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def set(self, key: K, rank: float) -> None:
        self._serial += 1
        entry = (rank, self._serial, key)
        self.entries[key] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 4 * len(self.entries) + 64:
            self.rescale(1.0)

    def discard(self, key: K) -> None:
        self.entries.pop(key, None)

    def lowest(self) -> tuple[float, int, K] | None:
        """The first entry, left in place."""
        while self._heap:
            entry = self._heap[0]
            if self.entries.get(entry[2]) is entry:
                return entry
            heapq.heappop(self._heap)
        return None

    def pop(self) -> tuple[float, int, K] | None:
        """The first entry, taken out; `put_back` undoes it."""
        entry = self.lowest()
        if entry is not None:
            heapq.heappop(self._heap)
            del self.entries[entry[2]]
        return entry

    def put_back(self, entries: Iterable[tuple[float, int, K]]) -> None:
        for entry in entries:
            self.entries[entry[2]] = entry
            heapq.heappush(self._heap, entry)

    def take(self, pinned: Container[K], count: int) -> list[K]:
        """Removes the first `count` keys that are not pinned."""
        taken: list[K] = []
        passed: list[tuple[float, int, K]] = []
        while len(taken) < count and (entry := self.pop()) is not None:
            if entry[2] in pinned:
                passed.append(entry)
            else:
                taken.append(entry[2])
        self.put_back(passed)
        return taken

    def rescale(self, factor: float) -> None:
        """Multiplies all ranks, and drops the heap's outdated entries."""
        self.entries = {
            key: (rank * factor, serial, key) for rank, serial, key in self.entries.values()
        }
        self._heap = list(self.entries.values())
        heapq.heapify(self._heap)


class Lru:
    """The page that was not used for the longest time goes first.

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
    """The page used least often goes first; of equal ones, the one not used for longest.

    Uses are remembered after a page has left. memory: visits after which a use counts 1/e of a
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
    """A policy for each layer; a layer with its even share of the pages gives up its own.

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
    """Pages that never leave, and another policy for the rest.

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
