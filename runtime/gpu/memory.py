"""The plan of memory with a GPU: what of it, and of the host's behind it, goes to pages."""

from __future__ import annotations

from dataclasses import dataclass

from ...bundle.manifest import Manifest
from ...bundle.pages import PAGE_ALIGNMENT, align
from ...errors import BudgetError
from ...sizes import format_size
from ..memory.budget import MIB, MemoryPlan, fit_budget
from .buffers import buffer_bytes
from .kv import device_kv_bytes

# Of free GPU memory, what stays free by default: for the display, and for what drivers take later.
_RESERVE_SHARE = 32
_RESERVE = 128 * MIB
_MARGIN = 4 * MIB  # by which a session may start larger the next time
_HOST_MARGIN = 32 * MIB  # threads, what grows with the first runs
_STAGING = 4  # pages that are on their way at a time, where the GPU has room for all


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. free, total: of the device, now; taken: by the session, before any pages; page: of a
    slot. fewest: slots that it cannot do without."""

    free: int
    total: int
    taken: int
    page: int
    fewest: int
    num_pages: int

    @property
    def smallest(self) -> int:
        """The smallest budget, in whole MiB."""
        return -(-(self.taken + self.fewest * self.page + _MARGIN) // MIB) * MIB


def fewest_slots(manifest: Manifest) -> int:
    """A token's pages of one layer, and one more that can come meanwhile."""
    top_k = max((layer.top_k for layer in manifest.footprint.experts), default=0)
    return min(manifest.num_pages, top_k + 1)


def spare_bytes(free: int, taken: int, budget: int | None) -> int:
    """What the sessions of a model may take of a device beside `taken`. budget: as in
    choose_slots."""
    spare = free - max(min(_RESERVE, free // 8), free // _RESERVE_SHARE)
    return max(0, spare if budget is None else min(spare, budget - taken))


def choose_slots(memory: DeviceMemory, budget: int | None, name: str, context: int) -> int:
    """How many pages the GPU holds. budget: bytes that the session may take of it; None: what is
    free, less a reserve.

    Raises:
        BudgetError: too few; the message names the smallest budget that works.
    """
    reserve = 0
    if budget is None:
        reserve = max(min(_RESERVE, memory.free // 8), memory.free // _RESERVE_SHARE)
        # Rather without a reserve than not at all.
        reserve = max(0, min(reserve, memory.free - memory.fewest * memory.page))
    room = memory.free - reserve
    if budget is not None:
        room = min(room, budget - memory.taken)
    slots = min(memory.num_pages, max(0, room) // memory.page) if memory.page else 0
    if slots >= memory.fewest:
        return slots
    smallest = f"the smallest that works is {memory.smallest // MIB}MiB"
    if budget is not None and budget < memory.smallest:
        raise BudgetError(
            f"GPU memory {format_size(budget)} is too small for {name} with a context of "
            f"{context} tokens; {smallest} (a shorter context needs less)"
        )
    raise BudgetError(
        f"the GPU has {format_size(memory.free + memory.taken)} of {format_size(memory.total)} "
        f"free, which is too small for {name} with a context of {context} tokens; {smallest}: end "
        "other programs on it, use a shorter --context, or --backend cpu"
    )


def needed_bytes(manifest: Manifest, weights: int, context: int, chunk: int, batch: int) -> int:
    """About what a session takes of the device at least. weights: bytes of its segments."""
    spec = manifest.spec
    pages = fewest_slots(manifest) * manifest.page_bytes
    kv = device_kv_bytes(spec, context, chunk, batch)
    return weights + kv + buffer_bytes(spec, chunk, batch) + pages


def out_of_memory(name: str, needed: int, free: int, total: int, context: int) -> BudgetError:
    """For what did not even load."""
    return BudgetError(
        f"{name} does not fit into the GPU with a context of {context} tokens: of "
        f"{format_size(total)}, {format_size(free)} was free, and about {format_size(needed)} is "
        "needed; end other programs on it, use a shorter --context, or --backend cpu"
    )


def plan_host(
    manifest: Manifest,
    budget: int | None,
    *,
    chunk: int,
    batch: int,
    context: int,
    name: str,
    auto: bool,
    process: int,
    device_slots: int = 0,
    device_bytes: int = 0,
    fewest: int = 2,
) -> MemoryPlan:
    """The pager's part, once all else is loaded. budget: of the process; None: no limit.

    process: bytes that it has. device_slots: pages that the GPU holds itself: where it is all of
    them, the host needs few. device_bytes: beside `process`, of memory that the device shares with
    the host.

    Raises:
        BudgetError: it is too small; the message names the smallest that works.
    """
    num_pages = manifest.num_pages
    plan = MemoryPlan(
        budget=budget,
        process=process + _HOST_MARGIN,
        backbone=device_bytes,
        kv=0,
        workspace=0,
        chunk=chunk,
        batch=batch,
        slots=num_pages,
        page=align(manifest.page_bytes, PAGE_ALIGNMENT),
        fewest=min(num_pages, fewest),
    )
    most = num_pages if device_slots < num_pages else min(num_pages, max(fewest, _STAGING))
    return fit_budget(
        plan, budget, num_pages=most, context=context, name=name, auto=auto,
        what="host memory" if not device_bytes else "memory budget",
    )  # fmt: skip
