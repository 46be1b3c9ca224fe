"""The hit rate that a page cache can be expected to have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...bundle.footprint import Footprint
from ...errors import InputError
from ...runtime.paging.next_use import NextUse
from ...runtime.recording.routes import Routes
from .replay import replay

ASSUMED = "assumed: no locality"

HitRate = Callable[[int], float]  # of a cache with so many slots


def no_locality(footprint: Footprint) -> HitRate:
    """Where every token chooses its experts evenly and by itself, a page is as likely to be in the
    cache as there are slots for pages. Text through a trained model hits more often.

    The default policy has such hits below one token's pages too; LRU would have none there.
    """

    def rate(slots: int) -> float:
        return min(1.0, slots / footprint.num_pages) if footprint.num_pages else 1.0

    return rate


def replayed(footprint: Footprint, routes: Routes, where: str) -> HitRate:
    """The default policy's hits on recorded routes, in a cache of as many slots.

    Raises:
        InputError: the routes are of a model of another shape, or nothing was decoded.
    """
    decoded = [visit for visit in routes.visits if not visit.prompt]
    if not decoded:
        raise InputError(f"{where} has a prompt's routes alone; hits are counted while decoding")
    top_k = {layer.layer: layer.top_k for layer in footprint.experts}
    experts = {layer.layer: layer.num_experts for layer in footprint.experts}
    same = set(routes.layers) == set(experts)
    same = same and all(max(v.experts) < experts[v.layer] for v in routes.visits)
    if not same or any(len(visit.experts) != top_k[visit.layer] for visit in decoded):
        raise InputError(
            f"{where} is of {_routes_shape(routes)}, and the model has {_shape(footprint)}; "
            "give routes of this model"
        )
    # All slots are of one size, whatever a layer's pages have.
    unit = replace(routes, page_bytes=dict.fromkeys(routes.layers, 1))
    rates: dict[int, float] = {}

    def rate(slots: int) -> float:
        if slots >= footprint.num_pages:
            return 1.0
        if slots not in rates:
            rates[slots] = replay(unit, slots, NextUse(len(routes.layers))).hit_rate
        return rates[slots]

    return rate


def _shape(footprint: Footprint) -> str:
    layers = footprint.experts
    experts = _range([layer.num_experts for layer in layers])
    return f"{len(layers)} layers of {experts} experts, {_range([e.top_k for e in layers])} at work"


def _routes_shape(routes: Routes) -> str:
    experts = max(max(visit.experts) for visit in routes.visits) + 1
    top_k = _range([len(visit.experts) for visit in routes.visits if not visit.prompt])
    return f"{len(routes.layers)} layers of at least {experts} experts, {top_k} at work"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low} to {high}"
