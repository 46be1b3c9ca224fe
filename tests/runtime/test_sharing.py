"""Sessions of one model: its budget, its memory, and when it is shared."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe.errors import BudgetError, InputError
from pocketmoe.runtime.batching import combining
from pocketmoe.runtime.session import Session
from pocketmoe.tests.runtime.batching.test_parallel import (
    TOKENS,
    Script,
    open_all,
    play,
    play_together,
)
from pocketmoe.tests.support.waiting import until


class TestBudget:
    def test_keys_and_values_of_all_count(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle, prefetch="off") as first:
            plan, pages = first.plan, first.manifest.num_pages
            first.set_memory_budget(plan.fixed + 20 * plan.page)
            assert first.stats.cache_slots == 20
            with first.another(context=64) as second:
                more = second.plan.fixed - plan.fixed
                assert more == second.plan.kv - plan.kv + 2 * 4 * 384
                assert 0 < second.plan.kv - plan.kv < plan.kv
                assert second.plan.budget == plan.fixed + 20 * plan.page
                assert second.stats.cache_slots == (20 * plan.page - more) // plan.page < 20
                assert first.model.sessions == 2
                assert second.stats.context == 64
                play_together([first, second], [Script(0.0, (40, 1, 1))] * 2)
                assert len(first.model.resident()) <= second.stats.cache_slots
            assert first.stats.cache_slots == 20
            assert first.model.sessions == 1
            first.set_memory_budget(plan.fixed + plan.fewest * plan.page)
            with pytest.raises(
                BudgetError, match=r"2 sessions of 1024 tokens .* is \d+MiB \(fewer"
            ):
                first.another()
            assert (first.model.sessions, first.stats.cache_slots) == (1, plan.fewest)
            first.forward(TOKENS[:20])
            first.set_memory_budget(None)
            with first.another() as second:
                assert second.stats.cache_slots == pages

    def test_the_model_goes_with_its_last_session(self, tiny_bundle: Path) -> None:
        first = pocketmoe.open(tiny_bundle)
        second = first.another()
        model = first.model
        expected = play(second, Script(0.0, (20, 1, 1)), 0)
        first.close()
        first.close()
        with pytest.raises(InputError, match="closed"):
            first.another()
        assert play(second, Script(0.0, (20, 1, 1)), 0) == expected
        assert model.sessions == 1
        second.close()
        assert model.sessions == 0
        with pytest.raises(InputError, match="closed"):
            second.forward([1])

    def test_nobody_waits_for_one_whose_generation_has_ended(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Were it waited for, it would be for half a minute."""
        monkeypatch.setattr(combining, "_LEAST_WAIT", 30.0)
        monkeypatch.setattr(combining, "_MOST_WAIT", 30.0)
        with pocketmoe.open(tiny_bundle) as first, first.another() as second:
            expected = first.model._combiner._expected
            for end in (lambda made: made.text(), lambda made: made.close()):
                made = second.generate([5, 6, 7], max_new_tokens=20)
                next(made), next(made), next(made)
                assert second._seat in expected
                end(made)
                assert second._seat not in expected
            first.forward([1])

    def test_sessions_that_are_forgotten(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as first:
            others = [first.another()]
            with pytest.warns(ResourceWarning, match="was not closed"):
                others.clear()
            first.forward(TOKENS[:3])
            assert first.model.sessions == 1
            with pytest.warns(ResourceWarning, match="was not closed"):
                first.another()
        assert first.model.sessions == 0

    def test_the_forgotten_leave_room_for_others(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as first:
            with pytest.warns(ResourceWarning, match="was not closed"):
                first.another()
            with first.another():
                assert first.model.sessions == 2
            with pytest.warns(ResourceWarning, match="was not closed"):
                first.another()
            first.set_memory_budget(None)
            assert first.model.sessions == 1

    def test_sessions_that_open_at_once_are_all_planned_for(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as first, ExitStack() as stack:
            model, alone = first.model, first.plan.kv
            opened: list[Session] = []
            with model._combiner.still():
                threads = [
                    threading.Thread(target=lambda: opened.append(first.another()))
                    for _ in range(3)
                ]
                for thread in threads:
                    thread.start()
                until(lambda: len(model._contexts) == 4)
                first.set_memory_budget(None)
            for thread in threads:
                thread.join()
            for session in opened:
                stack.enter_context(session)
            assert (model.sessions, model.plan.kv) == (4, 4 * alone)

    def test_the_last_is_closed_while_another_opens(self, tiny_bundle: Path) -> None:
        first = pocketmoe.open(tiny_bundle)
        model, opened = first.model, []
        with model._combiner.still():
            thread = threading.Thread(target=lambda: opened.append(first.another()))
            thread.start()
            until(lambda: len(model._contexts) == 2)
            first.close()
        thread.join()
        opened[0].forward(TOKENS[:3])
        opened[0].close()
        assert model.sessions == 0

    def test_what_an_observer_may_not_do_changes_nothing(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as first:
            second, kv, refused = first.another(), first.plan.kv, []

            def observe(index: int, outputs: dict[str, np.ndarray]) -> None:
                for act in (second.close, first.another):
                    with pytest.raises(InputError, match="runs in this thread") as caught:
                        act()
                    refused.append(caught)

            first.forward(TOKENS[:3], observe=observe)
            assert refused
            assert (first.model.sessions, first.plan.kv) == (2, kv)
            second.forward(TOKENS[:3])
            second.close()
            assert first.model.sessions == 1

    def test_a_model_that_is_forgotten_does_not_stay(self, tiny_bundle: Path) -> None:
        sessions = [pocketmoe.open(tiny_bundle)]
        model = sessions[0].model
        with pytest.warns(ResourceWarning, match="was not closed"):
            sessions.clear()
        with pocketmoe.open(tiny_bundle) as other:
            assert model.sessions == 0
            assert other.model is not model

    @pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_bundle_fp32"])
    @pytest.mark.parametrize("kernels", ["auto", "onnxruntime"])
    def test_it_opens_again_in_the_budget_in_which_it_was_closed(
        self, bundle: str, kernels: str, request: pytest.FixtureRequest
    ) -> None:
        """In a process of its own, whose memory nothing else has touched."""
        path = request.getfixturevalue(bundle)
        program = (
            "import re, sys, pocketmoe\n"
            "def opened(budget):\n"
            "    return pocketmoe.open(sys.argv[1], memory_budget=budget, kernels=sys.argv[2])\n"
            "try:\n    opened('1MiB')\n"
            "except pocketmoe.BudgetError as error:\n"
            "    named = int(re.search(r'is (\\d+)MiB', str(error))[1])\n"
            "for _ in range(3):\n"
            "    with opened(f'{named}MiB') as session:\n"
            "        session.generate('def main(', max_new_tokens=40).text()\n"
            "        assert session.stats.peak_rss_bytes <= named << 20\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, path, kernels], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_the_smallest_budget_that_is_named_works(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            with pytest.raises(BudgetError, match="smallest that works") as caught:
                session.set_memory_budget("1MiB")
            named = int(re.search(r"is (\d+)MiB", str(caught.value))[1])  # type: ignore[index]
            with pytest.raises(BudgetError):
                session.set_memory_budget(f"{named - 1}MiB")
            session.set_memory_budget(f"{named}MiB")
            assert session.stats.cache_slots >= session.plan.fewest

    def test_no_thread_is_left_behind(self, tiny_bundle: Path) -> None:
        gc.collect()
        before = threading.active_count()
        with ExitStack() as stack:
            sessions = open_all(stack, tiny_bundle, 4)
            play_together(sessions, [Script(0.0, (10, 1, 1))] * 4)
        assert threading.active_count() == before


class TestSharing:
    def test_the_same_bundle_and_settings_are_one_model(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as first, pocketmoe.open(str(tiny_bundle)) as second:
            assert first.model is second.model
            with pocketmoe.open(tiny_bundle, threads=1) as other:
                assert other.model is not first.model
            with pocketmoe.open(tiny_bundle, memory_budget="16GiB") as same:
                assert same.model is first.model
            assert first.stats.budget_bytes == 16 << 30
            with pocketmoe.open(tiny_bundle) as same:
                assert same.stats.budget_bytes == 16 << 30
            with pocketmoe.open(tiny_bundle, memory_budget="auto") as same:
                assert first.stats.auto_budget
            first.set_memory_budget("15GiB")
            assert not first.stats.auto_budget
            with pocketmoe.open(tiny_bundle, context=100) as short:
                assert short.model is not first.model  # batches of another size
            assert first.model.sessions == 2

    def test_a_budget_that_is_too_small_for_another_session(self, tiny_bundle: Path) -> None:
        """The first keeps what it had."""
        with pocketmoe.open(tiny_bundle, memory_budget="16GiB") as first:
            plan = first.plan
            with pytest.raises(BudgetError, match="too small for"):
                pocketmoe.open(tiny_bundle, memory_budget="1MiB")
            assert first.plan == plan
            with pytest.raises(BudgetError, match="the process holds 1 other model, which"):
                pocketmoe.open(tiny_bundle, memory_budget="1MiB", threads=1)
            assert first.model.sessions == 1

    def test_threads_that_open_at_the_same_time_share(self, tiny_bundle: Path) -> None:
        opened: list[Session] = []
        threads = [
            threading.Thread(target=lambda: opened.append(pocketmoe.open(tiny_bundle)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(session.model) for session in opened}) == 1
        for session in opened:
            session.close()
        with pocketmoe.open(tiny_bundle) as again:
            assert again.model is not opened[0].model

    def test_recordings_are_of_one_session(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with (
            pocketmoe.open(tiny_bundle) as first,
            pocketmoe.open(tiny_bundle, trace=tmp_path / "t") as second,
        ):
            assert first.model is not second.model
