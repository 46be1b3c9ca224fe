"""Pages are read as they were written, and kept as the policy says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketmoe.analysis.planning.policies import Lru
from pocketmoe.bundle.manifest import Manifest
from pocketmoe.bundle.pages import ExpertKey
from pocketmoe.runtime.paging import page_file
from pocketmoe.runtime.paging.pager import Pager
from pocketmoe.runtime.paging.policy import CachePolicy
from pocketmoe.tests.support.expert_pages import (
    EXPERTS,
    FORMATS,
    LAYERS,
    content,
    expected,
    pages,
    write_pages,
)


def test_pages_are_what_was_written(bundle: tuple[Path, Manifest], pager: Pager) -> None:
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            assert content(pager, layer, expert) == expected(bundle[0], layer, expert)
    assert pager.misses == pager.readers.verified == LAYERS * EXPERTS
    assert pager.readers.bytes_read == sum(f.nbytes for f in FORMATS) * EXPERTS


def test_slots_are_aligned_to_memory_pages(pager: Pager) -> None:
    for batch in pager.visit(1, [0, 2, 3]):
        for _, slot in batch:
            assert slot.address == slot.data.ctypes.data
            assert slot.address % 4096 == 0


def test_no_more_slots_than_pages(bundle: tuple[Path, Manifest]) -> None:
    pager = Pager(*bundle, slots=1000)
    assert pager.slots == LAYERS * EXPERTS
    pager.close()


requests = st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=requests, slots=st.integers(1, LAYERS * EXPERTS))
def test_with_lru_the_least_recently_used_goes_first(
    bundle: tuple[Path, Manifest], order: list[tuple[int, int]], slots: int
) -> None:
    pager = Pager(*bundle, slots=slots, policy=Lru())
    cached: list[ExpertKey] = []
    hits = 0
    for layer, expert in order:
        key = ExpertKey(layer, expert)
        hits += key in cached
        cached = [*(other for other in cached if other != key), key][-slots:]
        assert content(pager, layer, expert) == expected(bundle[0], layer, expert)
        assert pager.resident() == frozenset(cached)
    assert (pager.hits, pager.misses) == (hits, len(order) - hits)
    pager.close()


experts_of_a_run = st.lists(st.integers(0, EXPERTS - 1), min_size=1, unique=True).map(sorted)
layer_runs = st.lists(st.tuples(st.integers(0, LAYERS - 1), experts_of_a_run), max_size=30)


@pytest.mark.parametrize("make", [lambda: None, Lru], ids=["default", "lru"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(runs=layer_runs, slots=st.integers(1, LAYERS * EXPERTS), in_order=st.booleans())
def test_every_page_comes_once_and_the_running_layers_stay_if_they_fit_together(
    bundle: tuple[Path, Manifest],
    make: Callable[[], CachePolicy | None],
    runs: list[tuple[int, list[int]]],
    slots: int,
    in_order: bool,
) -> None:
    pager = Pager(*bundle, slots=slots, policy=make())
    for layer, experts in runs:
        keys = {ExpertKey(layer, expert) for expert in experts}
        before, misses = pager.resident(), pager.misses
        seen = []
        for batch in pager.visit(layer, experts, in_order=in_order):
            for expert, slot in batch:
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
                assert ExpertKey(layer, expert) in pager.resident()
                seen.append(expert)
            assert len(pager.resident()) <= slots
        assert seen == experts if in_order else sorted(seen) == experts
        if len(experts) <= slots:
            assert keys <= pager.resident()
            assert pager.misses - misses == len(keys - before)
    pager.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.integers(0, LAYERS - 1), experts_of_a_run, st.integers(0, 3), st.integers(1, 9)
        ),
        max_size=20,
    )
)
def test_a_run_left_early_and_new_sizes_do_no_harm(
    bundle: tuple[Path, Manifest], runs: list[tuple[int, list[int], int, int]]
) -> None:
    pager = Pager(*bundle, slots=3)
    for layer, experts, lists, slots in runs:
        visit = pager.visit(layer, experts)
        for _ in range(lists):
            for expert, slot in next(visit, []):
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
        del visit
        pager.resize(slots)
        assert pager.slots == min(slots, LAYERS * EXPERTS)
        assert len(pager.resident()) <= pager.slots
    pager.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(0, LAYERS - 1), experts_of_a_run, experts_of_a_run), max_size=25
    ),
    slots=st.integers(2, LAYERS * EXPERTS),
    wait=st.booleans(),
)
def test_wrong_and_right_guesses_change_nothing_but_the_counts(
    bundle: tuple[Path, Manifest],
    runs: list[tuple[int, list[int], list[int]]],
    slots: int,
    wait: bool,
) -> None:
    """Each run guesses another; wait: until what was guessed has come."""
    pager = Pager(*bundle, slots=slots)
    guesses = 0
    for layer, experts, guessed in runs:
        visit = pager.visit(layer, experts)
        before = pager.early
        if len(experts) <= slots:
            pager.read_early(1 - layer, guessed, most=2)
        guesses += pager.early - before
        assert pager.early - before <= 2
        seen = []
        for batch in visit:
            for expert, slot in batch:
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
                seen.append(expert)
        assert sorted(seen) == experts
        assert len(pager.resident()) <= slots
        while wait and pager._loading:
            pager._collect(wait=True)
    assert pager.early == guesses
    assert pager.early_used <= guesses
    pager.close()


def test_an_early_page_is_a_hit(bundle: tuple[Path, Manifest]) -> None:
    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    list(pager.visit(0, [0, 1]))
    pager.read_early(1, [3, 2, 1], most=2)
    while pager._loading:
        pager._collect(wait=True)
    assert {key.expert for key in pager.resident() if key.layer == 1} == {3, 2}
    hits = pager.hits
    assert sorted(e for batch in pager.visit(1, [0, 3]) for e, _ in batch) == [0, 3]
    assert (pager.hits - hits, pager.early, pager.early_used) == (1, 2, 1)
    pager.close()


def test_what_is_there_comes_first_and_does_not_wait(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    pages(pager, 0, [1, 3])
    gate = threading.Event()
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        assert gate.wait(60)
        return real(fd, buffers, offset)

    monkeypatch.setattr(page_file.os, "preadv", preadv)
    visit = pager.visit(0, [0, 1, 2, 3])
    assert [expert for expert, _ in next(visit)] == [1, 3]
    gate.set()
    assert sorted(expert for batch in visit for expert, _ in batch) == [0, 2]
    assert pager.wait_seconds > 0
    pager.close()


def test_more_than_one_page_is_read_at_a_time(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two reads meet at a barrier: one alone would wait for ever."""
    barrier = threading.Barrier(2)
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        barrier.wait(60)
        return real(fd, buffers, offset)

    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    monkeypatch.setattr(page_file.os, "preadv", preadv)
    found = dict(pages(pager, 0, [0, 1, 2, 3]))
    assert all(found[expert] == expected(bundle[0], 0, expert) for expert in range(4))
    pager.close()


def test_below_a_tokens_pages_the_default_has_hits_where_lru_has_none(tmp_path: Path) -> None:
    """Four layers, of whose 4 experts a token takes 2, mostly the same: 8 pages, in 5 slots."""
    manifest = write_pages(tmp_path, FORMATS * 2)
    hits = {}
    for name, policy in (("default", None), ("lru", Lru())):
        random = np.random.default_rng(0)
        pager = Pager(tmp_path, manifest, slots=5, policy=policy)
        for _ in range(100):
            for layer in range(len(manifest.experts)):
                chosen = random.choice(EXPERTS, 2, replace=False, p=(0.4, 0.3, 0.2, 0.1))
                experts = sorted(chosen.tolist())
                pages(pager, layer, experts)
        assert pager.hits + pager.misses == 800
        hits[name] = pager.hits
        pager.close()
    assert hits["lru"] == 0
    assert hits["default"] > 800 / 5, hits
