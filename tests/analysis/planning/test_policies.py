"""Every policy keeps to its cache; none beats the optimum; the simple ones match naive models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.analysis.planning.policies import Lfu, Lru, PerLayer, Pins
from pocketmoe.analysis.planning.replay import belady, policies, replay
from pocketmoe.bundle.pages import ExpertKey
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.paging.policy import CachePolicy
from pocketmoe.runtime.recording.routes import Routes, Visit

LAYERS, EXPERTS = 3, 6
Make = Callable[[], CachePolicy]
ONLINE: dict[str, Make] = {
    "next use": lambda: NextUse(LAYERS),
    "short memory": lambda: NextUse(LAYERS, memory=0.5, last_share=0.0),
    "lru": Lru,
    "lfu": Lfu,
    "lfu, ageing": lambda: Lfu(memory=3),
    "lru per layer": lambda: PerLayer(range(LAYERS), Lru),
    "lfu per layer": lambda: PerLayer(range(LAYERS), Lfu),
    "pins": lambda: Pins([ExpertKey(0, 1), ExpertKey(2, 0)], Lru()),
}
every_policy = pytest.mark.parametrize("make", ONLINE.values(), ids=list(ONLINE))

experts = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=3, unique=True)
tokens = st.lists(st.tuples(*[experts] * LAYERS), min_size=1, max_size=25)


def routes_of(tokens: list[tuple[list[int], ...]]) -> Routes:
    visits = [
        Visit(layer, tuple(one), False) for token in tokens for layer, one in enumerate(token)
    ]
    return Routes(tuple(visits), dict.fromkeys(range(LAYERS), 1))


class Cage:
    """Drives a policy as a pager does, and checks each of its answers."""

    def __init__(self, policy: CachePolicy, slots: int):
        self.policy, self.slots = policy, slots
        self.cached: set[ExpertKey] = set()
        self.log: list[ExpertKey] = []

    def visit(self, layer: int, experts: list[int], in_flight: frozenset[ExpertKey]) -> None:
        self.policy.visit(layer, experts)
        keys = [ExpertKey(layer, expert) for expert in experts]
        misses = [key for key in keys if key not in self.cached]
        pinned = in_flight | frozenset(keys)
        wanted = len(self.cached) + len(misses) - self.slots
        if wanted > 0:
            victims = self.policy.evict(pinned, wanted)
            assert len(victims) == len(set(victims)) <= wanted
            assert self.cached.issuperset(victims)
            assert not pinned.intersection(victims)
            self.cached.difference_update(victims)
            self.log += victims
        for key in misses:
            self.policy.add(key)
            self.cached.add(key)


@every_policy
@settings(deadline=None)
@given(tokens=tokens, slots=st.integers(7, 14), data=st.data())
def test_only_cached_pages_leave_and_none_that_is_pinned(
    make: Make, tokens: list[tuple[list[int], ...]], slots: int, data: st.DataObject
) -> None:
    cage, twin = Cage(make(), slots), Cage(make(), slots)
    for visit in routes_of(tokens).visits:
        others = sorted((k for k in cage.cached if k.layer != visit.layer), key=repr)
        flying = frozenset(
            data.draw(st.lists(st.sampled_from(others), max_size=2)) if others else ()
        )
        for one in (cage, twin):
            one.visit(visit.layer, list(visit.experts), flying)
        # Of the layer 3, in flight 2, fixed 2 at most: there is always one to give.
        assert len(cage.cached) <= slots
    assert cage.log == twin.log


@every_policy
@given(tokens=tokens)
def test_a_failed_read_leaves_the_books_right(
    make: Make, tokens: list[tuple[list[int], ...]]
) -> None:
    policy = make()
    cached: set[ExpertKey] = set()
    for visit in routes_of(tokens).visits:
        policy.visit(visit.layer, visit.experts)
        for expert in visit.experts:
            key = ExpertKey(visit.layer, expert)
            if key in cached:
                policy.discard(key)
                policy.discard(key)
                cached.remove(key)
            else:
                policy.add(key)
                cached.add(key)
    given_up = policy.evict(frozenset(), 100)
    assert len(given_up) == len(set(given_up))
    fixed = {ExpertKey(0, 1), ExpertKey(2, 0)} if isinstance(policy, Pins) else set()
    assert set(given_up) == cached - fixed
    assert policy.evict(frozenset()) == []


@settings(deadline=None)
@given(tokens=tokens, slots=st.integers(3, 18))
def test_no_policy_beats_the_optimum(tokens: list[tuple[list[int], ...]], slots: int) -> None:
    routes = routes_of(tokens)
    best = replay(routes, slots, belady(routes))
    for name, make in [*policies(routes), *(one for one in ONLINE.items() if one[0] != "pins")]:
        one = replay(routes, slots, make())
        assert one.total.hits <= best.total.hits, name
        assert one.peak_bytes <= slots, name


@given(tokens=tokens, slots=st.integers(3, 18))
def test_lru_is_lru(tokens: list[tuple[list[int], ...]], slots: int) -> None:
    routes = routes_of(tokens)
    cached: list[tuple[int, int]] = []
    hits = 0
    for visit in routes.visits:
        keys = [(visit.layer, expert) for expert in visit.experts]
        hits += sum(key in cached for key in keys)
        cached = [*(key for key in cached if key not in keys), *keys][-slots:]
    assert replay(routes, slots, Lru()).total.hits == hits


@given(tokens=tokens, slots=st.integers(3, 18))
def test_lfu_is_lfu(tokens: list[tuple[list[int], ...]], slots: int) -> None:
    cage = Cage(Lfu(), slots)
    uses: dict[ExpertKey, int] = {}
    for visit in routes_of(tokens).visits:
        before = set(cage.cached)
        cage.visit(visit.layer, list(visit.experts), frozenset())
        gone = before - cage.cached
        running = {ExpertKey(visit.layer, expert) for expert in visit.experts}
        stayed = before & cage.cached - running
        assert max((uses[k] for k in gone), default=0) <= min((uses[k] for k in stayed), default=99)
        for key in running:
            uses[key] = uses.get(key, 0) + 1


def test_below_a_tokens_pages_the_default_keeps_hits_where_lru_has_none() -> None:
    routes = routes_of([([0, 1, 2],) * LAYERS] * 50)  # 9 pages a token, in 6 slots
    assert replay(routes, 6, Lru()).total.hits == 0
    assert replay(routes, 6, NextUse(LAYERS)).hit_rate == replay(routes, 6, belady(routes)).hit_rate


def test_pinned_keys_stay() -> None:
    pin = ExpertKey(1, 5)
    cage = Cage(Pins([pin], NextUse(LAYERS)), 4)
    cage.visit(1, [5], frozenset())
    for turn in range(50):
        cage.visit(turn % LAYERS, [turn % 5, (turn + 1) % 5], frozenset())
        assert pin in cage.cached


def test_a_layer_with_its_share_gives_up_its_own() -> None:
    cage = Cage(PerLayer([0, 1], Lru), 4)
    for layer, expert in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        cage.visit(layer, [expert], frozenset())
    assert cage.log == [ExpertKey(1, 0)]


@pytest.mark.parametrize("make", [lambda: NextUse(1), lambda: Lfu(memory=16)])
def test_counts_stay_finite_and_in_order(make: Make) -> None:
    cage = Cage(make(), 3)
    for _ in range(10_000):  # units grow by 1/16 a visit: past the largest float without scaling
        cage.visit(0, [0, 1], frozenset())
    cage.visit(0, [2], frozenset())
    for expert in (3, 4, 5):
        cage.visit(0, [expert], frozenset())
    assert {ExpertKey(0, 0), ExpertKey(0, 1)} <= cage.cached
