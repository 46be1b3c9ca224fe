"""The GPU tier: pages in device memory, over the pager's pages in host memory.

What is not on the device comes from the pager, which has it in host memory or reads it from disk.
Copies go on a stream of their own, beside what is computed and read. The books are kept in the
caller's thread, ahead of the device; events keep the device in order:

- the copy stream waits before it overwrites a slot for what was computed from it last (`used`);
- the computing stream waits before it reads a slot for its copy (`filled`);
- the caller waits before the pager can reuse host memory for the copies from it (`_copied`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from ...bundle.pages import ExpertKey
from ...errors import BudgetError
from ..paging.next_use import NextUse
from ..paging.pager import Pager
from ..paging.policy import CachePolicy
from .device import Device, Event, Stream
from .scope import Scope

# Lists that are handed out share this many events in turn. A slot that waits for an event which has
# been recorded again meanwhile waits longer than it must, not shorter.
_EVENTS = 64
Page = tuple[int, int]  # an expert, and the device address of its page


class ResidentPages(Protocol):
    """Pages where the device computes with them. See DeviceSlots, which has them."""

    def visit(self, layer: int, experts: Sequence[int]) -> Iterator[list[Page]]: ...

    def gather(self, layer: int, experts: Sequence[int]) -> list[int]: ...

    def done(self, layer: int, experts: Sequence[int]) -> None: ...


class Tier(ResidentPages, Protocol):
    """The pages of all layers. spare: bytes of the device that may still be taken."""

    hits: int
    requests: int
    copied: int
    slots: int
    spare: int

    def holds(self, layer: int, expert: int) -> bool: ...

    def settle(self) -> None:
        """Blocks until the pager's memory is not read from any more: it may be resized."""
        ...

    def resident(self) -> frozenset[ExpertKey]:
        """Pages in memory, the device's or the host's. From any thread."""
        ...

    def make_room(self, nbytes: int) -> None:
        """Something else takes so many bytes of the device: slots are given up where it needs more
        than is spare.

        Raises:
            BudgetError: too few would be left.
        """
        ...

    def give_room(self, nbytes: int) -> None:
        """It has given them back: the slots are there again."""
        ...

    def close(self) -> None: ...


class _DeviceSlot:
    """used: recorded when what reads it was given to the computing stream. filled: recorded after
    its copy; `ready` once the computing stream waits for that, and need not again."""

    __slots__ = ("address", "filled", "ready", "used")

    def __init__(self, address: int, filled: Event):
        self.address, self.filled = address, filled
        self.used: Event | None = None
        self.ready = True


class DeviceSlots:
    """`slots` pages in one piece of device memory; `policy` says which of them leave.

    hits: pages that were on the device when asked for; requests: all. copied: bytes.
    """

    def __init__(
        self,
        device: Device,
        pager: Pager,
        page_bytes: dict[int, int],
        slots: int,
        compute: Stream,
        policy: CachePolicy | None = None,
        fewest: int = 1,
    ):
        """page_bytes: of each paged layer. fewest: slots that it cannot do without."""
        self._pager = pager
        self._compute = compute
        self._page_bytes = page_bytes
        self._policy = policy or NextUse(max(1, len(page_bytes)))
        self.slots = self._planned = slots
        self.spare = 0
        self._device = device
        self._fewest = fewest
        self._slot_bytes = max(page_bytes.values(), default=1)
        self.hits = self.requests = self.copied = 0
        self._turn = 0
        self._make()

    def _make(self) -> None:
        slots, slot_bytes = self.slots, self._slot_bytes
        with ExitStack() as undo:
            scope = self._scope = Scope(self._device)
            undo.callback(scope.close)
            memory = scope.allocate(max(1, slots * slot_bytes)).address
            self._copied = scope.event()
            self._in_use = [scope.event() for _ in range(_EVENTS)]
            self._all = [
                _DeviceSlot(memory + index * slot_bytes, scope.event()) for index in range(slots)
            ]
            self._copies = scope.stream()  # last, so that it ends first
            undo.pop_all()
        self._free = self._all[::-1]
        self._resident: dict[ExpertKey, _DeviceSlot] = {}
        self._broken = False  # an interrupt came while the books were changed

    def visit(self, layer: int, experts: Sequence[int]) -> Iterator[list[Page]]:
        """A layer runs, and needs these experts, each named once.

        Yields every expert once, in lists of at most half of the slots: first those on the device,
        then others as they come. The work that reads a list's pages has to be given to the
        computing stream before the next list is asked for.

        Raises (from the iterator):
            BundleError: a page cannot be read. What was handed out stays valid.
        """
        missing = self._begin(layer, experts)
        resident = [expert for expert in experts if ExpertKey(layer, expert) in self._resident]
        # The pager's visit begins its reads now, before anything is computed.
        loaded = self._pager.visit(layer, missing)
        most = max(1, self.slots // 2)
        for start in range(0, len(resident), most):
            yield from self._hand_out(layer, resident[start : start + most])
        for batch in loaded:
            for start in range(0, len(batch), most):
                part = {ExpertKey(layer, item[0]): item[1] for item in batch[start : start + most]}
                for key, slot in part.items():
                    self._copy(key, slot.address, part)
                yield from self._hand_out(layer, [key.expert for key in part])
            self._keep(missing)

    def gather(self, layer: int, experts: Sequence[int]) -> list[int]:
        """As `visit`, for experts whose pages are needed together: their addresses, in order.

        What reads them has to be given to the computing stream before the next call; then `done`.
        """
        missing = self._begin(layer, experts)
        keys = [ExpertKey(layer, expert) for expert in experts]
        for batch in self._pager.visit(layer, missing):
            for expert, slot in batch:
                self._copy(ExpertKey(layer, expert), slot.address, keys)
            self._keep(missing)
        found = [self._resident[key] for key in keys]
        for item in found:
            self._need(item)
        return [item.address for item in found]

    def done(self, layer: int, experts: Sequence[int]) -> None:
        """What reads the gathered pages was given to the computing stream."""
        self._mark_used([self._resident[ExpertKey(layer, expert)] for expert in experts])

    def holds(self, layer: int, expert: int) -> bool:
        """Whether the page need not be read from disk."""
        return ExpertKey(layer, expert) in self._resident or self._pager.holds(layer, expert)

    def _begin(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Those that are not on the device."""
        if self._broken:
            self._forget_all()
        self.settle()  # a visit that was left early may have copies under way
        self._policy.visit(layer, experts)
        missing = [expert for expert in experts if ExpertKey(layer, expert) not in self._resident]
        self.requests += len(experts)
        self.hits += len(experts) - len(missing)
        return missing

    def _keep(self, missing: list[int]) -> None:
        """Before the pager is asked for its next list: where a layer's pages do not all fit into
        host memory, they may take that of the present one."""
        if len(missing) > self._pager.slots:
            self._copied.wait()

    def _hand_out(self, layer: int, experts: list[int]) -> Iterator[list[Page]]:
        slots = [self._resident[ExpertKey(layer, expert)] for expert in experts]
        for slot in slots:
            self._need(slot)
        try:
            yield [(expert, slot.address) for expert, slot in zip(experts, slots, strict=True)]
        finally:
            self._mark_used(slots)

    def _need(self, slot: _DeviceSlot) -> None:
        if not slot.ready:
            self._compute.wait(slot.filled)
            slot.ready = True

    def _mark_used(self, slots: list[_DeviceSlot]) -> None:
        event = self._in_use[self._turn]
        self._turn = (self._turn + 1) % _EVENTS
        self._compute.record(event)
        for slot in slots:
            slot.used = event

    def _copy(self, key: ExpertKey, source: int, pinned: Collection[ExpertKey]) -> None:
        """Has a page copied into a slot that is free, or that of a page which leaves."""
        self._broken = True
        slot = self._take(pinned)
        if slot.used is not None:
            self._copies.wait(slot.used)
        if not slot.ready:  # copied, but never read: that copy is before this one anyway
            slot.ready = True
        nbytes = self._page_bytes[key.layer]
        self._copies.upload(slot.address, source, nbytes)
        self.copied += nbytes
        self._copies.record(slot.filled)
        self._copies.record(self._copied)
        slot.ready = False
        self._policy.add(key)
        self._resident[key] = slot
        self._broken = False

    def _take(self, pinned: Collection[ExpertKey]) -> _DeviceSlot:
        if self._free:
            return self._free.pop()
        victims = self._policy.evict(pinned)
        if not victims:
            raise ValueError(f"{self.slots} slots are too few for {len(pinned)} pages")
        return self._resident.pop(victims[0])

    def _forget_all(self) -> None:
        """The books are not to be trusted: begins anew, once the device is at rest."""
        self._copies.synchronize()
        self._compute.synchronize()
        self._policy.evict((), self.slots + 1)
        self._resident.clear()
        for slot in self._all:
            slot.used, slot.ready = None, True
        self._free = self._all[::-1]
        self._broken = False

    def settle(self) -> None:
        self._copied.wait()

    def resident(self) -> frozenset[ExpertKey]:
        return frozenset(list(self._resident)) | self._pager.resident()

    def make_room(self, nbytes: int) -> None:
        fewer = max(0, -(-(nbytes - self.spare) // self._slot_bytes))
        if self.slots - fewer < self._fewest:
            raise BudgetError(
                f"the GPU has no memory for another session: of the room for {self.slots} pages it "
                f"would take that of {fewer}, and {self._fewest} are needed; use a shorter "
                "context, or fewer sessions"
            )
        self._resize(self.slots - fewer)
        self.spare -= nbytes

    def give_room(self, nbytes: int) -> None:
        self.spare += nbytes
        more = max(0, self.spare // self._slot_bytes)
        self._resize(min(self._planned, self.slots + more))

    def _resize(self, slots: int) -> None:
        """Makes the slots anew, with no page in them, where they become more or fewer."""
        if slots == self.slots:
            return
        self.spare += (self.slots - slots) * self._slot_bytes
        self._copies.synchronize()
        self._compute.synchronize()
        self._policy.evict((), self.slots + 1)
        self._resident.clear()
        self._scope.close()
        self.slots = slots
        self._make()

    def close(self) -> None:
        """The computing stream is at rest. May be called twice."""
        self._resident.clear()
        self._scope.close()
