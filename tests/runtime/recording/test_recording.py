"""What a session writes down of its routes: a replay has its own hits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.analysis.planning.replay import replay
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.recording.routes import COLUMNS, read_routes
from pocketmoe.tests.support.session_runs import decode

TOKENS = np.random.default_rng(0).integers(1, 384, 90).tolist()


def rows_of(path: Path) -> list[dict[str, float]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == ",".join(COLUMNS)
    return [dict(zip(COLUMNS, map(float, line.split(",")), strict=True)) for line in lines[1:]]


class TestRoutes:
    @pytest.mark.parametrize("slots", [8, 9, 13, 20, 1000])
    def test_a_replay_has_the_hits_of_the_session(
        self, slots: int, with_slots: Callable[[int], None], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with_slots(slots)
        path = tmp_path / "routes.csv"
        hits = requests = read = 0
        with pocketmoe.open(tiny_bundle, prefetch="off", record_routes=path) as session:
            slots = session.stats.cache_slots
            for first in (0, 30):  # the second prompt follows what was decoded
                session.reset()
                session.forward(TOKENS[first : first + 20])
                before = session.counters
                decode(session, TOKENS[first + 20 : first + 60])
                done = session.counters - before
                hits += done.page_hits
                requests += done.page_hits + done.page_misses
                read += done.bytes_read
            page = session.manifest.page_bytes
            assert not path.exists()
        routes = read_routes(path)
        result = replay(routes, slots * page, NextUse(len(routes.layers)))
        assert (result.total.hits, result.total.requests) == (hits, requests)
        assert result.bytes_read == read
        assert requests > hits > 0
        assert [one.name for one in tmp_path.iterdir()] == ["routes.csv"]

    def test_rows_say_what_the_cache_did(
        self, with_slots: Callable[[int], None], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with_slots(12)
        path = tmp_path / "routes.csv"
        chosen: list[tuple[int, np.ndarray, np.ndarray]] = []

        def observe(segment: int, out: dict[str, np.ndarray]) -> None:
            if "expert_ids" in out:
                chosen.append((segment, out["expert_ids"].copy(), out["expert_weights"].copy()))

        with pocketmoe.open(tiny_bundle, record_routes=path) as session:
            layers = [segment.router_layer for segment in session.manifest.segments]
            session.forward(TOKENS[:5], observe=observe)
            session.forward(TOKENS[5:6], observe=observe)
            session.reset()
            session.forward(TOKENS[:1], observe=observe)
            session.forward(TOKENS[1:2], observe=observe)
            stats = session.stats
        rows = rows_of(path)
        assert sum(row["expert_bytes"] for row in rows) == stats.bytes_read
        calls = [(0, 0, 0), (0, 1, 5), (1, 0, 0), (1, 1, 1)]
        assert list(dict.fromkeys((r["turn"], r["phase"]) for r in rows)) == [c[:2] for c in calls]
        expected = [
            {"turn": turn, "phase": phase, "step": step + token, "layer": layers[segment],
             "slot": slot, "expert": ids[token, slot], "weight": weights[token, slot]}
            for call, (turn, phase, step) in enumerate(calls)
            for segment, ids, weights in chosen[call * len(chosen) // 4 :][: len(chosen) // 4]
            for token, slot in np.ndindex(ids.shape)
        ]  # fmt: skip

        def place(row: dict[str, Any]) -> tuple[float, ...]:
            return tuple(float(row[name]) for name in ("turn", "phase", "step", "layer", "slot"))

        found = sorted(rows, key=place)
        for one, other in zip(found, sorted(expected, key=place), strict=True):
            assert one["expert"] == other["expert"]
            assert one["weight"] == pytest.approx(float(other["weight"]), rel=1e-5)

    def test_experts_that_a_token_goes_without_are_not_in_it(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "routes.csv"
        with pocketmoe.open(tiny_bundle, active_experts=1, record_routes=path) as session:
            session.forward(TOKENS)
            layers = len(session.manifest.experts)
        rows = rows_of(path)
        assert len(rows) == len(TOKENS) * layers
        assert min(row["expert"] for row in rows) >= 0

    def test_what_is_kept_becomes_text_now_and_then(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = []
        for most in (16_384, 3):
            monkeypatch.setattr("pocketmoe.runtime.recording.route_log._MOST_KEPT", most)
            path = tmp_path / f"{most}.csv"
            with pocketmoe.open(tiny_bundle, record_routes=path) as session:
                session.forward(TOKENS[:10])
                decode(session, TOKENS[10:20])
            texts.append(path.read_text())
        assert texts[0] == texts[1]


def test_what_decoding_took_is_counted_apart(
    with_slots: Callable[[int], None], tiny_bundle: Path
) -> None:
    with_slots(9)
    with pocketmoe.open(tiny_bundle) as session:
        assert session.stats.decode_hit_rate == 1.0
        session.forward(TOKENS)
        before = session.counters
        text = session.generate(TOKENS[:20], max_new_tokens=12)
        next(text)
        prompt = session.counters - before  # and maybe a token more, until there is text
        list(text)
        done, stats = session.counters - before, session.stats
        layers = len(session.manifest.experts)
        top_k = session.manifest.spec.layers[-1].router.top_k  # type: ignore[union-attr]
    requests = stats.decode_page_hits + stats.decode_page_misses
    assert requests == stats.decode_steps * layers * top_k
    assert stats.decode_page_misses <= done.page_misses
    assert prompt.page_misses > 0
    assert stats.decode_bytes_read == stats.decode_page_misses * session.manifest.page_bytes
    assert 0 <= stats.decode_wait_seconds <= stats.decode_seconds
    assert stats.decode_hit_rate == stats.decode_page_hits / requests
