"""The keys and values of all sessions on a device."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import BudgetError, ContextError
from ...model.spec import ModelSpec
from ...sizes import format_size
from .device import Device, Stream
from .errors import DeviceMemoryError
from .kv import DeviceKv, device_kv_bytes
from .scope import Scope
from .slots import Tier


class DeviceCaches:
    """first: made with all else, and kept when its session is closed, for the next one. The others
    take their memory from the slots for pages, which are made anew.
    """

    def __init__(
        self,
        device: Device,
        scope: Scope,
        stream: Stream,
        spec: ModelSpec,
        context: int,
        chunk: int,
        batch: int,
    ):
        """context: of the first. scope: what frees it."""
        self._device, self._stream = device, stream
        self._spec, self._context, self._chunk, self._batch = spec, context, chunk, batch
        self.first = DeviceKv(scope, stream, spec, context, chunk, batch)
        self._taken = False
        self._others: dict[DeviceKv, tuple[Scope, int]] = {}  # with the bytes of each

    def more_bytes(self, contexts: Sequence[int]) -> int:
        """What caches of these contexts take beside the first, which one of them has or gets
        unless all are others."""
        sizes = sorted(map(self._nbytes, contexts))
        return sum(sizes if len(self._others) == len(sizes) else sizes[1:])

    def _nbytes(self, context: int) -> int:
        return device_kv_bytes(self._spec, context, self._chunk, self._batch)

    def open(self, context: int, tier: Tier) -> DeviceKv:
        """Raises:
        BudgetError: the device has no memory for it.
        ContextError: it is longer than the first.
        """
        if context > self._context:
            raise ContextError(
                f"context {context} is more than the {self._context} tokens of the first session "
                "on this GPU; open that one with a longer context"
            )
        if not self._taken:
            self._taken = True
            return self.first
        nbytes = self._nbytes(context)
        tier.settle()
        tier.make_room(nbytes)
        scope = Scope(self._device)
        try:
            cache = DeviceKv(scope, self._stream, self._spec, context, self._chunk, self._batch)
        except DeviceMemoryError as error:
            scope.close()
            tier.give_room(nbytes)
            raise BudgetError(
                f"the GPU has no memory for another session of {context} tokens "
                f"({format_size(nbytes)}); use a shorter context, or fewer sessions"
            ) from error
        self._others[cache] = scope, nbytes
        return cache

    def close(self, cache: DeviceKv, tier: Tier) -> None:
        """The device is at rest."""
        cache.reset()
        if cache is self.first:
            self._taken = False
            return
        scope, nbytes = self._others.pop(cache)
        scope.close()
        tier.give_room(nbytes)

    def close_all(self) -> None:
        """But the first, which its own scope frees. May be called twice."""
        while self._others:
            _, (scope, _) = self._others.popitem()
            scope.close()
