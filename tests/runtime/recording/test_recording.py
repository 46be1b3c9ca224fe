"""What a session writes down: routes that replay to its own hits, and a trace that adds up."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.analysis.planning.replay import replay
from pocketmoe.errors import BundleError, InputError
from pocketmoe.runtime import whole_file
from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.cpu import runner as host_runner
from pocketmoe.runtime.memory.budget import MemoryPlan
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.recording import timeline as trace_module
from pocketmoe.runtime.recording.routes import COLUMNS, read_routes
from pocketmoe.runtime.session import Session

TOKENS = np.random.default_rng(0).integers(1, 384, 90).tolist()
Event = dict[str, Any]


@pytest.fixture
def with_slots(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes sessions that are opened from now on cache so many pages."""
    plan = loading.plan_memory

    def choose(slots: int) -> None:
        def planned(*args: Any, **kwargs: Any) -> MemoryPlan:
            return dataclasses.replace(plan(*args, **kwargs), slots=slots)

        monkeypatch.setattr(loading, "plan_memory", planned)

    return choose


def decode(session: Session, tokens: list[int]) -> None:
    for token in tokens:
        session.forward([token], last_only=True)


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


class TestFiles:
    def test_they_are_there_after_an_error(self, tiny_bundle: Path, tmp_path: Path) -> None:
        routes, trace = tmp_path / "r.csv.gz", tmp_path / "t.json"

        def interrupted() -> None:
            with pocketmoe.open(tiny_bundle, record_routes=routes, trace=trace) as session:
                session.forward(TOKENS[:3])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert read_routes(routes).visits
        assert json.loads(trace.read_text())["traceEvents"]

    def test_none_is_made_where_the_bundle_does_not_open(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise BundleError("broken")

        monkeypatch.setattr(host_runner, "load_engines", broken)
        with pytest.raises(BundleError, match="broken"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "t")
        assert list(tmp_path.iterdir()) == []

    def test_they_cannot_be_written(self, tiny_bundle: Path, tmp_path: Path) -> None:
        for options in ({"record_routes": "r"}, {"trace": "t"}):
            there = {name: tmp_path / "none" / file for name, file in options.items()}
            with pytest.raises(InputError, match="cannot be written"):
                pocketmoe.open(tiny_bundle, **there)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="cannot be written"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "none" / "t")
        with pytest.raises(InputError, match="give two files"):
            pocketmoe.open(tiny_bundle, record_routes=tmp_path / "r", trace=tmp_path / "r")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", ["record_routes", "trace"])
    def test_nothing_but_a_file_is_replaced(
        self, option: str, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        pipe, folder = tmp_path / "pipe", tmp_path / "folder"
        os.mkfifo(pipe)
        folder.mkdir()
        (tmp_path / "link").symlink_to(pipe)
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        before = sorted(tmp_path.iterdir())
        for path, wrong in (
            (pipe, "a device or a pipe"),
            (tmp_path / "link", "a device or a pipe"),
            (Path("/dev/null"), "a device or a pipe"),
            (folder, "is a folder"),
            (Path("/"), "is a folder"),
            (tmp_path / "circle", "cannot be written"),
        ):
            with pytest.raises(InputError, match=wrong) as error:
                pocketmoe.open(tiny_bundle, **{option: path})  # type: ignore[arg-type]
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before
        assert Path("/dev/null").is_char_device()

    def test_a_link_stays_and_leads_to_the_new_file(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        there = tmp_path / "there"
        there.mkdir()
        (there / "old.csv").write_text("# route_trace v1\n")
        routes, trace = tmp_path / "routes", tmp_path / "trace"
        routes.symlink_to(Path("there") / "old.csv")
        trace.symlink_to(there / "new.json")
        with pocketmoe.open(tiny_bundle, record_routes=routes, trace=trace) as session:
            session.forward(TOKENS[:3])
            assert (there / "old.csv").read_text() == "# route_trace v1\n"
        assert routes.is_symlink()
        assert trace.is_symlink()
        assert read_routes(there / "old.csv").visits
        assert json.loads((there / "new.json").read_text())
        assert len(list(there.iterdir())) == 2
        with pytest.raises(InputError, match="give two files"):
            pocketmoe.open(tiny_bundle, record_routes=routes, trace=there / "old.csv")


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many writes of a whole buffer."""

    room = 0

    def write(self, data: Any) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def with_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives recordings that are opened from now on so many writes; the first is when they open."""

    def limit(room: int) -> None:
        monkeypatch.setattr(FullDisk, "room", room)

        def opened(path: Path, mode: str, encoding: str) -> io.TextIOWrapper:
            return io.TextIOWrapper(io.BufferedWriter(FullDisk(path, "w")), encoding=encoding)

        monkeypatch.setattr(whole_file, "open", opened, raising=False)

    return limit


class TestFullDisk:
    OPTIONS = ("record_routes", "trace")

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pocketmoe.runtime.recording.route_log._MOST_KEPT", 3)
        monkeypatch.setattr(trace_module, "_MOST_KEPT", 5)

    @pytest.mark.parametrize("room", [1, 2])
    @pytest.mark.parametrize("option", OPTIONS)
    def test_the_run_goes_on(
        self,
        option: str,
        room: int,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = tmp_path / "file"
        before = "# route_trace v1\n" if option == "record_routes" else '{"traceEvents":[\n'
        path.write_text(before)
        with pocketmoe.open(tiny_bundle) as session:
            expected = session.forward(TOKENS)
        with_room(room)
        with pocketmoe.open(tiny_bundle, **{option: path}) as session:  # type: ignore[arg-type]
            for _ in range(8):
                session.reset()
                assert session.forward(TOKENS).tobytes() == expected.tobytes()
            decode(session, TOKENS[:40])
            assert len(list(tmp_path.iterdir())) == 1  # it stopped while the session was open
        warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert warned == [f"{path} is not made: {os.strerror(errno.ENOSPC)}"]
        assert path.read_text() == before

    @pytest.mark.parametrize("option", OPTIONS)
    def test_it_is_found_out_at_the_end(
        self,
        option: str,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with_room(1)
        path = tmp_path / "file"

        def failing() -> None:
            options: Any = {option: path}
            with pocketmoe.open(tiny_bundle, **options) as session:
                session.forward(TOKENS[:1])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            failing()
        assert "file is not made: No space" in caplog.text
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", OPTIONS)
    def test_another_error_stays(
        self,
        option: str,
        with_room: Callable[[int], None],
        tiny_bundle: Path,
        tmp_path: Path,
    ) -> None:
        with_room(1)

        def failing(*_: object) -> None:
            raise BundleError("broken")

        options: Any = {option: tmp_path / "file"}
        with pocketmoe.open(tiny_bundle, **options) as session:
            session.forward(TOKENS[:2])
            with pytest.raises(BundleError, match="broken"):
                session.forward(TOKENS, observe=failing)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", OPTIONS)
    def test_it_is_full_from_the_start(
        self, option: str, with_room: Callable[[int], None], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        with_room(0)
        options: Any = {option: tmp_path / "file"}
        with pytest.raises(InputError, match="file cannot be written"):
            pocketmoe.open(tiny_bundle, **options)
        assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("name", ["taken.json", "taken.csv.gz", ""])
def test_what_is_no_recording_is_not_replaced(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name else Path()
    if name:
        path.write_text('{"a user\'s": "own"}\n')
    for option in ("trace", "record_routes"):
        with pytest.raises(InputError, match="give another name" if name else "is a folder"):
            pocketmoe.open(tiny_bundle, **{option: path})  # type: ignore[arg-type]
    if name:
        assert path.read_text() == '{"a user\'s": "own"}\n'
        assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["routes.csv", "routes.csv.gz"])
def test_an_older_recording_is_replaced(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    sizes = []
    for tokens in ([1, 2, 3], [1] * 40):
        with pocketmoe.open(tiny_bundle, record_routes=tmp_path / name) as session:
            session.forward(tokens)
        sizes.append(len(read_routes(tmp_path / name).visits))
    assert 0 < sizes[0] <= sizes[1]
    assert [file.name for file in tmp_path.iterdir()] == [name]
