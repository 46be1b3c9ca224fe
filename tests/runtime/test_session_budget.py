"""The memory budget of a session: what fits, and what changes while it runs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe.errors import BudgetError, InputError
from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.memory import budget
from pocketmoe.runtime.paging import page_file
from pocketmoe.tests.support.session_runs import TOKENS, run


def smallest_budget(bundle: Path) -> int:
    """Bytes, from the message that refuses one byte."""
    with pytest.raises(BudgetError, match=r"smallest that works is \d+MiB") as caught:
        pocketmoe.open(bundle, memory_budget=1)
    return int(str(caught.value).split("works is ")[1].split("MiB")[0]) << 20


def test_paged_logits_are_those_of_the_resident_model(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
        text = session.generate("def main(", max_new_tokens=40).text()
        assert session.stats.page_misses <= session.stats.num_pages
    plan = loading.plan_memory

    def few_slots(*args: object, **kwargs: object) -> budget.MemoryPlan:
        return dataclasses.replace(plan(*args, **kwargs), slots=3)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "plan_memory", few_slots)
    with pocketmoe.open(tiny_bundle) as session:
        paged = run(session)
        assert session.generate("def main(", max_new_tokens=40).text() == text
        assert session.stats.cache_slots == 3
        assert session.stats.page_misses > session.stats.num_pages
    assert paged.tobytes() == resident.tobytes()


def test_the_smallest_budget_opens_and_one_less_does_not(tiny_bundle: Path) -> None:
    smallest = smallest_budget(tiny_bundle)
    with pytest.raises(BudgetError, match="too small"):
        pocketmoe.open(tiny_bundle, memory_budget=smallest - (8 << 20))
    with pocketmoe.open(tiny_bundle, memory_budget=smallest + (8 << 20)) as session:
        assert session.forward(TOKENS).shape == (80, 384)
        assert session.stats.budget_bytes == smallest + (8 << 20)


def test_the_budget_changes_during_a_generation(tiny_bundle: Path) -> None:
    """The same text, the same logits, and the cache follows at once."""
    with pocketmoe.open(tiny_bundle, prefetch="off") as session:
        text = session.generate("def main(", max_new_tokens=40).text()
        session.reset()
        resident = run(session)
        fixed, page, pages = session.plan.fixed, session.plan.page, session.manifest.num_pages
        pieces = []
        slots = [3, 20, pages, 4, 5]
        for index, piece in enumerate(session.generate("def main(", max_new_tokens=40)):
            pieces.append(piece.text)
            count = slots[index % len(slots)]
            session.set_memory_budget(fixed + count * page)
            assert session.stats.cache_slots == count
            assert len(session._pager.resident()) <= count
            assert session.stats.budget_bytes == fixed + count * page
        assert "".join(pieces) == text
        session.reset()
        session.set_memory_budget(fixed + 3 * page)
        assert run(session).tobytes() == resident.tobytes()
        with pytest.raises(BudgetError, match=r"smallest that works is \d+MiB"):
            session.set_memory_budget(fixed)
        with pytest.raises(InputError):
            session.set_memory_budget("much")
        assert session.stats.cache_slots == 3
        session.set_memory_budget(None)
        assert session.stats.cache_slots == pages
        assert session.stats.budget_bytes is None
    with pytest.raises(InputError, match="closed"):
        session.set_memory_budget(None)


def test_another_thread_changes_the_budget_while_tokens_run(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, prefetch="off") as session:
        resident = run(session)
        fixed, page, pages = session.plan.fixed, session.plan.page, session.manifest.num_pages
        stop = threading.Event()

        def change() -> None:
            for count in itertools.cycle([3, pages, 9, 4]):
                session.set_memory_budget(fixed + count * page)
                if stop.is_set():
                    return

        changer = threading.Thread(target=change)
        changer.start()
        for _ in range(5):
            session.reset()
            assert run(session).tobytes() == resident.tobytes()
        stop.set()
        changer.join()
        wanted = (session.plan.total - fixed) // page
        assert session.stats.cache_slots == wanted
        assert len(session._pager.resident()) <= wanted


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 1e9, [], b"1GiB", True, 0, -1, ""])
def test_a_budget_that_is_none_is_refused(tiny_bundle: Path, budget: object) -> None:
    with pytest.raises(InputError):
        pocketmoe.open(tiny_bundle, memory_budget=budget)  # type: ignore[arg-type]
    with pocketmoe.open(tiny_bundle) as session:
        with pytest.raises(InputError):
            session.set_memory_budget(budget)  # type: ignore[arg-type]
        assert session.stats.budget_bytes is None
    with pytest.raises(InputError, match="context must be a whole number"):
        pocketmoe.open(tiny_bundle, context=1.5)  # type: ignore[arg-type]


def test_a_slow_disk_with_guesses_gives_the_same_bytes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that take their time, early ones among them, some no longer wanted."""
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
    real, random = os.preadv, np.random.default_rng(0)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        time.sleep(float(random.random()) * 0.004)
        return real(fd, buffers, offset)

    with pocketmoe.open(tiny_bundle, prefetch="on") as session:
        monkeypatch.setattr(page_file.os, "preadv", preadv)
        session.set_memory_budget(
            session.plan.fixed + session.plan.predictor + 7 * session.plan.page
        )
        assert session.plan.predicts
        assert run(session).tobytes() == resident.tobytes()
        stats = session.stats
        assert stats.early_pages > stats.early_pages_used > 0
        assert 0 < (stats.guess_accuracy or 0) < 1
        assert stats.wait_seconds > 0


def test_an_automatic_budget_does_not_shrink_because_of_what_it_holds(tiny_bundle: Path) -> None:
    """The cache is the process's own, so it is not counted as used by others."""
    with pocketmoe.open(tiny_bundle, memory_budget="auto") as session:
        before = session.plan.budget
        size = session._pager._slot_bytes
        session._pager._slot_bytes = 16 << 20  # 384 MiB in all
        session.forward(TOKENS)
        for slot in session._pager._resident.values():
            slot.data[:] = 1
        assert len(session._pager.resident()) >= 20
        session._pager._slot_bytes = size
        session.set_memory_budget("auto")
        assert before is not None
        assert session.plan.budget is not None
        assert session.plan.budget > before - (200 << 20)  # others take memory meanwhile


def test_closing_frees_the_weights(tiny_bundle: Path) -> None:
    session = pocketmoe.open(tiny_bundle)
    session.forward([1, 2, 3])
    backbone = weakref.ref(session._runner._backbone)  # type: ignore[attr-defined]
    session.close()
    assert backbone() is None  # at once, not when garbage is next collected
