"""The interface of a cache policy, which says what page leaves the cache.

The pager tells a policy of each layer it runs (`visit`), of each page that it has put into the
cache (`add`), and asks for pages to give up (`evict`). A policy sees keys only, never bytes, so a
route file drives it offline just as well. The default is in `next_use.py`; those that it is
compared with are in `analysis/planning/policies.py`. The cost of a request is O(log pages).
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from ...bundle.pages import ExpertKey

K = TypeVar("K")


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
