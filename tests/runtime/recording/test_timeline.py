"""A trace for a timeline adds up to what the session counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.runtime.recording import timeline as trace_module
from pocketmoe.tests.support.session_runs import decode

TOKENS = np.random.default_rng(0).integers(1, 384, 90).tolist()
Event = dict[str, Any]


def read_trace(path: Path) -> tuple[list[Event], dict[int, str]]:
    """Its events in the order of time, and the names of its threads."""
    content = json.loads(path.read_text())
    events = content["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    timed = [event for event in events if event["ph"] != "M"]
    assert all(event["ts"] >= 0 for event in timed)
    return sorted(timed, key=lambda event: event["ts"]), names


def assert_nested(spans: list[Event]) -> None:
    """Spans of one thread either follow one another or lie within one another."""
    open_until: list[float] = []
    for span in sorted(spans, key=lambda one: (one["ts"], -one["dur"])):
        while open_until and open_until[-1] <= span["ts"] + 0.002:  # rounded to ns
            open_until.pop()
        end = span["ts"] + span["dur"]
        assert not open_until or end <= open_until[-1] + 0.002, span
        open_until.append(end)


class TestTrace:
    @pytest.mark.parametrize("kernels", ["auto", "onnxruntime"])
    @pytest.mark.parametrize("most", [trace_module._MOST_KEPT, 5])
    def test_it_adds_up_to_the_stats(
        self,
        kernels: str,
        most: int,
        with_slots: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with_slots(10)
        monkeypatch.setattr(trace_module, "_MOST_KEPT", most)
        path = tmp_path / "trace.json"
        with pocketmoe.open(tiny_bundle, kernels=kernels, trace=path) as session:
            session.forward(TOKENS[:20])
            decode(session, TOKENS[20:40])
            stats, segments = session.stats, len(session.manifest.segments)
        events, names = read_trace(path)
        kinds = Counter(event["cat"] for event in events)
        assert kinds["call"] == kinds["mark"] == 21
        assert kinds["backbone"] == 21 * segments
        assert kinds["hash"] == stats.verified_pages
        assert ("trace" in kinds) == (most == 5)

        def total(category: str, argument: str) -> int:
            return sum(e["args"][argument] for e in events if e["cat"] == category)

        requests = stats.page_hits + stats.page_misses
        assert total("experts", "experts") == requests
        assert total("read", "bytes") == stats.bytes_read
        counted = [e["args"] for e in events if e["name"] == "page requests"]
        assert sum(args["hits"] for args in counted) == stats.page_hits
        assert sum(args["misses"] for args in counted) == stats.page_misses
        used = [e["args"]["used"] for e in events if e["name"] == "cache slots"]
        assert max(used) == 10
        waits = sum(e["dur"] for e in events if e["cat"] == "wait") / 1e6
        assert waits == pytest.approx(stats.wait_seconds, rel=0.05, abs=1e-3)

        assert names[1] == "main thread"
        readers = {tid for tid, name in names.items() if name.startswith("pages-")}
        assert readers
        for tid in names:
            spans = [e for e in events if e["ph"] == "X" and e["tid"] == tid]
            assert_nested(spans)
            assert (tid in readers) == ({e["cat"] for e in spans} <= {"read", "hash"})

    def test_early_reads_can_be_told_from_others(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "trace.json"
        with pocketmoe.open(tiny_bundle, prefetch="on", trace=path) as session:
            plan = session.plan
            session.set_memory_budget(plan.fixed + plan.predictor + 9 * plan.page)
            decode(session, TOKENS[:60])
        stats = session.stats  # with the reads that were under way at the end
        events, _ = read_trace(path)
        reads = [event for event in events if event["cat"] == "read"]
        early = [event for event in reads if event["args"].get("early") is True]
        assert sum(event["args"]["bytes"] for event in reads) == stats.bytes_read
        assert 0 < stats.early_pages_used <= len(early) <= stats.early_pages
        assert all("early" in event["name"] for event in early)

    def test_the_same_bytes_come_out(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            plain = session.forward(TOKENS)
        with pocketmoe.open(
            tiny_bundle, trace=tmp_path / "t", record_routes=tmp_path / "r"
        ) as session:
            assert session.forward(TOKENS).tobytes() == plain.tobytes()
