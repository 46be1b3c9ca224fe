"""The pager's slots in memory that the device copies from, or reads in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...bundle.pages import ExpertKey
from ..paging.pager import Pager
from ..paging.readers import Slot
from .device import Device, HostBuffer, Stream
from .slots import Page


class PinnedSlot(Slot):
    """device_address: where a device with unified memory sees it."""

    __slots__ = ("buffer", "device_address")

    def __init__(self, buffer: HostBuffer):
        super().__init__(buffer.data)
        self.buffer = buffer
        self.device_address = buffer.device_address


class PinnedMemory:
    """Gives slots to a pager; fits SlotMemory."""

    def __init__(self, device: Device):
        self._device = device

    def allocate(self, nbytes: int) -> Slot:
        return PinnedSlot(self._device.allocate_host(nbytes))

    def free(self, slot: Slot) -> None:
        if isinstance(slot, PinnedSlot):
            slot.buffer.free()


class SharedSlots:
    """Pages on a device with unified memory: it reads the pager's slots where they are.

    Fits DeviceSlots, but that there is nothing to copy. The pager may reuse a slot once what reads
    it is done, for which the caller waits.
    """

    def __init__(self, device: Device, pager: Pager, compute: Stream):
        self._pager = pager
        self._compute = compute
        self._used = device.event()
        self.slots = self.spare = 0
        self.hits = self.requests = self.copied = 0

    def visit(self, layer: int, experts: Sequence[int]) -> Iterator[list[Page]]:
        self.settle()
        self.requests += len(experts)
        for batch in self._pager.visit(layer, experts):
            try:
                yield [(expert, _seen(slot)) for expert, slot in batch]
            finally:
                self._compute.record(self._used)
            if len(experts) > self._pager.slots:
                self._used.wait()

    def gather(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The experts fit into the pager's slots together, so those of a list stay for the next."""
        self.settle()
        self.requests += len(experts)
        found: dict[int, int] = {}
        for batch in self._pager.visit(layer, experts):
            found.update((expert, _seen(slot)) for expert, slot in batch)
        return [found[expert] for expert in experts]

    def done(self, layer: int, experts: Sequence[int]) -> None:
        self._compute.record(self._used)

    def holds(self, layer: int, expert: int) -> bool:
        return self._pager.holds(layer, expert)

    def settle(self) -> None:
        self._used.wait()

    def resident(self) -> frozenset[ExpertKey]:
        return self._pager.resident()

    def make_room(self, nbytes: int) -> None:
        """The pager has been made smaller: the host's memory plan counts it."""

    def give_room(self, nbytes: int) -> None:
        """The host's memory plan counts it."""

    def close(self) -> None:
        self._used.free()


def _seen(slot: Slot) -> int:
    if not isinstance(slot, PinnedSlot):
        raise TypeError("a slot that the device does not see")
    return slot.device_address
