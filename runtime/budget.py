"""Where the memory goes: the whole process in a budget, what is left of it to the page cache."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BudgetError, InputError
from ..sizes import format_size, parse_size
from .bundle import Manifest
from .kv_cache import capacity, kv_bytes
from .pages import PAGE_ALIGNMENT, align

MIB = 1 << 20
LARGEST_CHUNK = 256
_SESSION_BYTES = MIB  # a session's graph, names and kernels
_RESERVE_BYTES = 16 * MIB  # allocators' slack, thread stacks, Python's own growth


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose. chunk: tokens run at once; slots: pages in the cache.

    process: interpreter and libraries. workspace: what one chunk needs while it is computed.
    """

    budget: int | None
    process: int
    backbone: int
    kv: int
    workspace: int
    chunk: int
    slots: int
    page: int

    @property
    def total(self) -> int:
        return self.process + self.backbone + self.kv + self.workspace + self.slots * self.page


def read_budget(budget: int | str | None) -> int | None:
    """Bytes of a budget as a caller gives it; raises InputError if it is no positive size."""
    if isinstance(budget, str):
        return parse_size(budget)
    if budget is not None and (isinstance(budget, bool) or budget < 1):
        raise InputError(f"memory budget must be more than 0 bytes, not {budget}")
    return budget


def workspace_bytes(manifest: Manifest, context: int, chunk: int) -> int:
    """What computing `chunk` tokens takes beyond weights and caches: the largest of its steps."""
    spec = manifest.spec
    heads, head_dim = spec.num_attention_heads, spec.head_dim
    projected = (3 * heads + 4 * spec.num_key_value_heads) * head_dim
    attention = logits = feed_forward = experts = 0
    for layer in spec.layers:
        scores = heads * capacity(layer.window, context, chunk)
        attention = max(attention, chunk * (scores + projected) * 4)
        width = max(layer.shared_intermediate_size, 0 if layer.is_moe else layer.intermediate_size)
        feed_forward = max(feed_forward, chunk * width * 3 * 4)
    for page in manifest.experts:
        parameters = 3 * page.format.hidden_size * page.format.intermediate_size
        unpacked = 0 if page.format.precision == "fp32" else parameters * 4
        activations = chunk * (3 * page.format.intermediate_size + page.format.hidden_size) * 4
        experts = max(experts, unpacked + activations)
    logits = chunk * spec.vocab_size * 4
    streams = 12 * chunk * spec.hidden_size * 4
    return streams + logits + max(attention, feed_forward, experts)


def plan_memory(
    manifest: Manifest, *, context: int, budget: int | None, process: int, name: str
) -> MemoryPlan:
    """Decides chunk and slots. `process`: bytes that the process takes before any weights.

    The largest chunk is taken that leaves a slot for each page that one token uses; where none
    does, the largest that leaves one layer's (top k + 1): a cache that small holds nothing from
    token to token, and then a prompt is read the faster, the larger its chunks.

    Raises:
        BudgetError: not even single tokens and the fewest slots fit; names the smallest budget.
    """
    sessions = len(manifest.segments) + len({layer.format for layer in manifest.experts})
    fixed = process + _RESERVE_BYTES + sessions * _SESSION_BYTES
    page = align(manifest.page_bytes, PAGE_ALIGNMENT)
    top_k = [layer.router.top_k for layer in manifest.spec.layers if layer.router is not None]
    fewest = min(manifest.num_pages, max(top_k, default=0) + 1)
    per_token = min(manifest.num_pages, sum(top_k))

    def plan(chunk: int, slots: int | None = None) -> MemoryPlan:
        kv = kv_bytes(manifest.spec, context, chunk)
        workspace = workspace_bytes(manifest, context, chunk)
        if slots is None:
            left = (budget or 0) - fixed - manifest.backbone_bytes - kv - workspace
            slots = min(manifest.num_pages, max(0, left) // page) if page and left >= 0 else -1
            slots = 0 if page == 0 and left >= 0 else slots
        return MemoryPlan(budget, fixed, manifest.backbone_bytes, kv, workspace, chunk, slots, page)

    chunks = [LARGEST_CHUNK >> shift for shift in range(LARGEST_CHUNK.bit_length())]
    chunks = sorted({min(chunk, context) for chunk in chunks}, reverse=True)
    if budget is None:
        return plan(chunks[0], manifest.num_pages)
    plans = [plan(chunk) for chunk in chunks]
    for wanted in (max(per_token, fewest), fewest):
        for candidate in plans:
            if candidate.slots >= wanted:
                return candidate
    smallest = -(-plan(1, fewest).total // MIB)
    raise BudgetError(
        f"memory budget {format_size(budget)} is too small for {name} with a context of {context} "
        f"tokens; the smallest that works is {smallest}MiB (a shorter context needs less)"
    )
