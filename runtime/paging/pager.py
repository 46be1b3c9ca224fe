"""The pager: expert pages in a bounded cache of slots, read ahead of their use.

Which page gives up its slot is the policy's to say (`policy.py`); reader threads fill the slots
(`readers.py`). All else happens in the caller's thread: no state here is shared. The caller puts
Ctrl-C off meanwhile (`signals.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from ...bundle.manifest import Manifest
from ...bundle.pages import PAGE_ALIGNMENT, ExpertKey, ExpertPage, align
from ...errors import InputError
from ..recording.timeline import Recorder
from .next_use import NextUse
from .page_file import PageFile, Stamp
from .policy import CachePolicy
from .readers import Load, Readers, Slot
from .slot_memory import PrivateMemory, SlotMemory

Loaded = tuple[int, Slot]  # an expert and its page


class Pager:
    """A cache of `slots` pages; `policy` says which of them leave, by default NextUse. memory:
    where slots are made, by default as PrivateMemory does. unit: bytes that a slot counts for, by
    default those of the largest page; where it is less, slots are as large as their pages, all of
    them together no more than `slots` units.

    The counters are since the pager was made: hits, misses; early, pages read before a visit asked
    for them, and early_used, those of them that it then did ask for; wait_seconds, in which nothing
    could be done before a page came; for what was read see `readers`.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        slots: int,
        *,
        verify: bool = True,
        policy: CachePolicy | None = None,
        trace: Recorder | None = None,
        memory: SlotMemory | None = None,
        unit: int | None = None,
    ):
        self._root = root
        self._memory = memory or PrivateMemory()
        self._pages: dict[ExpertKey, ExpertPage] = {page.key: page for page in manifest.pages()}
        self._files = {layer.file: PageFile(root / layer.file) for layer in manifest.experts}
        self.readers = Readers(verify=verify, trace=trace)
        self._trace = trace
        self._policy = policy or NextUse(max(1, len(manifest.experts)))
        self._slot_bytes = max(PAGE_ALIGNMENT, align(manifest.page_bytes, PAGE_ALIGNMENT))
        self._unit = unit or self._slot_bytes
        self._mixed = self._unit < self._slot_bytes
        self._resident: dict[ExpertKey, Slot] = {}
        self._loading: dict[ExpertKey, Load] = {}
        self._running: frozenset[ExpertKey] = frozenset()  # what the last visit asked for
        self._early: dict[ExpertKey, bool] = {}  # kept for the next visit; whether read for it
        self._free: list[Slot] = []
        self._stamps: dict[str, Stamp] = {}  # of files, when the visit first read from them
        self.slots = min(slots, len(self._pages))
        self.hits = self.misses = self.early = self.early_used = 0
        self.wait_seconds = 0.0

    def visit(
        self, layer: int, experts: Sequence[int], in_order: bool = False
    ) -> Iterator[list[Loaded]]:
        """A layer runs, and needs the pages of these experts, each named once.

        Yields every expert once, in lists of those whose pages are in memory: first those that
        were there, then others as they come; in_order: in the order given. While the caller works
        on a list, the pages of the next are read. A list's pages are valid until the next is asked
        for; after an error, or when left early, the pager can be used on.

        Raises (from the iterator):
            BundleError: a page cannot be read, or is not what the compiler wrote.
        """
        self._collect(wait=False)
        self._stamps.clear()
        self._policy.visit(layer, experts)
        keys = [ExpertKey(layer, expert) for expert in experts]
        self._running = frozenset(keys)
        if self._early:
            self._end_early()
        missing = deque(key for key in keys if key not in self._resident)
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        to_come = dict.fromkeys(keys)  # not handed out yet, in order
        self._start(missing, to_come)
        batches = self._hand_out(missing, to_come, in_order)
        return batches if self._trace is None else self._traced(batches, layer, self._trace)

    def _traced(
        self, batches: Iterator[list[Loaded]], layer: int, trace: Recorder
    ) -> Iterator[list[Loaded]]:
        """A list's experts are computed from when it is handed out until the next is asked for, or
        none any more."""
        trace.count("cache slots", time.perf_counter(), used=self.used)
        for batch in batches:
            started = time.perf_counter()
            try:
                yield batch
            finally:
                trace.span(f"experts {layer}", "experts", started, layer=layer, experts=len(batch))

    def read_early(self, layer: int, experts: Sequence[int], most: int) -> None:
        """Reads pages that the next visit will probably ask for, likeliest first, after what the
        present one needs: at most so many, and none that the visit's own pages leave no room for.
        """
        for expert in experts:
            if most == 0 or len(self._running) + len(self._early) + 1 >= self._sure:
                return
            key = ExpertKey(layer, expert)
            if key in self._loading:
                self._loading[key].unwanted = False
                self._early.setdefault(key, False)
                continue
            if key in self._resident:
                self._early[key] = False
                continue
            slot = self._take_slot(key, self._running)
            if slot is None:
                return
            self._submit(key, slot, early=True)
            self._early[key] = True
            self.early += 1
            most -= 1

    def _end_early(self) -> None:
        """The visit that pages were read early for has come."""
        for key, read in self._early.items():
            if key in self._running:
                self.early_used += read
            elif key in self._loading:
                self._loading[key].unwanted = True
        self._early.clear()

    def _hand_out(
        self,
        missing: deque[ExpertKey],
        to_come: dict[ExpertKey, None],
        in_order: bool,
    ) -> Iterator[list[Loaded]]:
        # Where the layer does not fit, some slots are left to be filled while others are used.
        sure = self._sure
        most = len(to_come) if len(to_come) <= sure else max(1, sure // 2)
        while to_come:
            ready = self._ready(to_come, in_order, most)
            for key in ready:
                del to_come[key]
            if ready:
                yield [(key.expert, self._resident[key]) for key in ready]
                missing.extend(self._collect(wait=False, needed=to_come))
            elif self._loading:
                missing.extend(self._collect(wait=True, needed=to_come))
            else:
                self._make_room(missing, to_come)
            self._start(missing, to_come)

    def _make_room(self, missing: deque[ExpertKey], to_come: dict[ExpertKey, None]) -> None:
        """Every slot holds a page that is still to come, but not the next one: the last of them
        leaves, to be read again."""
        needed = next(iter(to_come))
        victim = next(key for key in reversed(to_come) if key in self._resident)
        self._free.append(self._resident.pop(victim))
        self._policy.discard(victim)
        missing.append(victim)
        missing.remove(needed)
        missing.appendleft(needed)
        self.misses += 1

    def _ready(self, to_come: dict[ExpertKey, None], in_order: bool, most: int) -> list[ExpertKey]:
        ready: list[ExpertKey] = []
        for key in to_come:
            if key in self._resident:
                ready.append(key)
                if len(ready) == most:
                    break
            elif in_order:
                break
        return ready

    def _start(self, missing: deque[ExpertKey], to_come: Collection[ExpertKey]) -> None:
        """Has missing pages read as far as there are slots.

        The running layer's pages stay while they fit together; else those that are still to come.
        """
        pinned = self._running if len(self._running) <= self._sure else to_come
        while missing:
            key = missing[0]
            if key in self._loading:
                self._loading[key].unwanted = False
            elif key not in self._resident:
                slot = self._take_slot(key, pinned)
                if slot is None:
                    return
                self._submit(key, slot)
            missing.popleft()

    def _submit(self, key: ExpertKey, slot: Slot, *, early: bool = False) -> None:
        page = self._pages[key]
        load = Load(page, self._files[page.file], slot, partial(self._where, page), early=early)
        load.stamp = self._stamps.get(page.file)
        try:
            self.readers.submit(load)
        except InputError:
            self._free.append(slot)
            raise
        self._policy.add(key)
        self._loading[key] = load
        if load.stamp is not None:
            self._stamps[page.file] = load.stamp

    @property
    def _capacity(self) -> int:
        """Bytes of all slots."""
        return max(self._slot_bytes, self.slots * self._unit)

    @property
    def _sure(self) -> int:
        """As many pages fit whatever their sizes."""
        return self._capacity // self._slot_bytes if self._mixed else self.slots

    def _take_slot(self, key: ExpertKey, pinned: Collection[ExpertKey]) -> Slot | None:
        if self._mixed:
            return self._take_room(self._pages[key].nbytes, pinned)
        if self._free:
            return self._free.pop()
        if len(self._resident) + len(self._loading) < self.slots:
            return self._memory.allocate(self._slot_bytes)
        victims = self._policy.evict(_Any(pinned, self._loading, self._early))
        return self._resident.pop(victims[0]) if victims else None

    def _take_room(self, nbytes: int, pinned: Collection[ExpertKey]) -> Slot | None:
        """A slot of that size; those of other sizes are given up for it."""
        for index, slot in enumerate(self._free):
            if len(slot.data) == nbytes:
                return self._free.pop(index)
        room = self._room()
        while room < nbytes:
            if self._free:
                left = self._free.pop()
            elif victims := self._policy.evict(_Any(pinned, self._loading, self._early)):
                left = self._resident.pop(victims[0])
            else:
                return None
            if len(left.data) == nbytes:
                return left
            room += len(left.data)
            self._memory.free(left)
        return self._memory.allocate(nbytes)

    def _room(self) -> int:
        """Bytes that slots of several sizes leave."""
        slots = chain(self._resident.values(), self._free, (x.slot for x in self._loading.values()))
        return self._capacity - sum(len(slot.data) for slot in slots)

    def _collect(self, *, wait: bool, needed: Collection[ExpertKey] = ()) -> list[ExpertKey]:
        """Takes in the pages that have come; waits for the first.

        A failed one is an error where it is needed, and else as if it had never been asked for.
        Returns those that are needed, but were left out because they were not before.
        """
        dropped: list[ExpertKey] = []
        finished = self._finished()
        if wait and not finished and self._loading:
            started = time.perf_counter()
            while not finished:
                self.readers.done.wait()
                finished = self._finished()
            self.wait_seconds += time.perf_counter() - started
            if self._trace is not None:
                left = len(self._loading)
                self._trace.span("wait for pages", "wait", started, reading=left)
        for load in finished:
            key = load.page.key
            if load.error is None and not load.dropped:
                self._resident[key] = load.slot
                del self._loading[key]
                continue
            self._policy.discard(key)
            del self._loading[key]
            self._free.append(load.slot)
            if key in needed:
                if load.error is not None:
                    raise load.error
                dropped.append(key)
        return dropped

    def _finished(self) -> list[Load]:
        self.readers.done.clear()  # before looking: what finishes later sets it again
        return [load for load in self._loading.values() if load.finished]

    def holds(self, layer: int, expert: int) -> bool:
        """Whether the page is in the cache, or on its way there."""
        key = ExpertKey(layer, expert)
        load = self._loading.get(key)
        return key in self._resident or (load is not None and not load.unwanted)

    def resident(self) -> frozenset[ExpertKey]:
        """The pages in the cache. From any thread."""
        return frozenset(list(self._resident))  # a list is made in one step, a set is not

    def resize(self, slots: int) -> None:
        """Makes the cache larger, or gives up pages and their memory, at once.

        No visit may be under way.
        """
        slots = max(1, min(slots, len(self._pages)))
        smaller = slots < self.slots
        self.slots = slots
        if smaller:
            while self._loading:
                self._collect(wait=True)
            self._give_back(self._free)
            surplus = 1 if self._mixed else len(self._resident) - slots
            while (self._room() < 0 if self._mixed else len(self._resident) > slots) and (
                victims := self._policy.evict((), surplus)
            ):
                for key in victims:
                    self._memory.free(self._resident.pop(key))

    def _where(self, page: ExpertPage) -> str:
        path, key = self._root / page.file, page.key
        return f"{path}: the page of layer {key.layer}, expert {key.expert}"

    @property
    def used(self) -> int:
        """Slots with a page, or one on its way."""
        return len(self._resident) + len(self._loading)

    @property
    def direct(self) -> bool:
        """Whether every file is read past the page cache."""
        return all(file.direct for file in self._files.values())

    def close(self) -> None:
        """May be called twice."""
        self.readers.close()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._free += self._resident.values()
        self._free += (load.slot for load in self._loading.values())
        self._resident.clear()
        self._loading.clear()
        self._give_back(self._free)

    def _give_back(self, slots: list[Slot]) -> None:
        while slots:
            self._memory.free(slots.pop())


class _Any:
    """What is in any of three collections, without making another."""

    def __init__(self, *collections: Collection[ExpertKey]):
        self._collections = collections

    def __contains__(self, key: object) -> bool:
        first, second, third = self._collections  # asked at every eviction, so without a loop
        return key in first or key in second or key in third
