"""Replays agree with published ones; route files are read as written and refused with a reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketmoe.analysis.planning.policies import Lfu, Lru
from pocketmoe.analysis.planning.replay import belady, replay, replay_layers, replay_rows
from pocketmoe.errors import InputError
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.paging.policy import CachePolicy
from pocketmoe.runtime.recording.routes import RouteRow, Routes, RouteWriter, Visit, read_routes
from pocketmoe.tests.support.paths import ROOT

TRACE = ROOT.parent / "shared" / "data" / "qwen3-30b-a3b.route.csv.gz"
# Decode only, per cent: optimum, LRU, LFU, per-layer LRU, per-layer LFU.
# github.com/Helldez/BigMoeOnEdge, scripts/route-replay.py on its trace of 2026-07-15.
PUBLISHED = {
    500: (45.3, 0.0, 26.6, 38.3, 38.3),
    1000: (62.7, 37.7, 40.2, 42.3, 45.1),
    2000: (79.4, 56.5, 58.6, 59.4, 63.3),
    3000: (87.8, 70.6, 71.3, 71.1, 74.2),
    4000: (92.7, 80.3, 80.8, 79.7, 81.7),
}
BUDGETS = pytest.mark.parametrize("mib", PUBLISHED)


@pytest.fixture(scope="module")
def trace() -> Routes:
    if not TRACE.exists():
        pytest.skip(f"no {TRACE}: the published trace is not part of the repository")
    return read_routes(TRACE)


@pytest.mark.slow
@BUDGETS
def test_published_hit_rates(trace: Routes, mib: int) -> None:
    whole: tuple[CachePolicy, ...] = (belady(trace), Lru(), Lfu())
    split: tuple[Callable[[], CachePolicy], ...] = (Lru, Lfu)
    rates = [replay(trace, mib << 20, policy).hit_rate for policy in whole]
    rates += [replay_layers(trace, mib << 20, make).hit_rate for make in split]
    assert [100 * rate for rate in rates] == pytest.approx(PUBLISHED[mib], abs=0.1)


@pytest.mark.slow
@BUDGETS
def test_the_default_is_above_the_best_published_of_the_same_bytes(trace: Routes, mib: int) -> None:
    _, lru, lfu, *per_layer = PUBLISHED[mib]
    ours = replay(trace, mib << 20, NextUse(len(trace.layers)))
    assert ours.peak_bytes <= mib << 20
    assert 100 * ours.hit_rate > max(lru, lfu)
    # At 500 MiB the published per-layer caches hold 785 MiB: compared with as much here.
    held = max(mib << 20, replay_layers(trace, mib << 20, Lfu).peak_bytes)
    assert (held >> 20 > mib) == (mib == 500)
    same = replay(trace, held, NextUse(len(trace.layers)))
    assert 100 * same.hit_rate > max(per_layer)


def test_rows_and_layers(trace: Routes) -> None:
    (row,) = replay_rows(trace, [2000 << 20])
    assert row.capacity_bytes == 2000 << 20
    assert max(row.hit_rates, key=row.hit_rates.__getitem__) == "optimum"
    ours = replay(trace, 2000 << 20, NextUse(len(trace.layers)))
    assert row.hit_rates["default"] == ours.hit_rate
    assert list(ours.by_layer) == list(range(48))
    assert all(tally.requests == 128 * 6 for tally in ours.by_layer.values())
    assert ours.bytes_read == sum(
        (tally.requests - tally.hits) * trace.page_bytes[layer]
        for layer, tally in ours.by_layer.items()
    )


HEAD = "# layer=3 expert_bytes=10\n# layer=4 expert_bytes=20 more=x\nturn,phase,step,layer,expert\n"
ROWS = "0,0,0,3,7\n0,0,0,3,1\n0,0,1,3,7\n0,0,1,4,2\n0,1,2,3,5\n0,1,2,4,5\n0,1,3,3,1\n1,1,3,3,1\n"
VISITS = (
    Visit(3, (1, 7), True),
    Visit(4, (2,), True),
    Visit(3, (5,), False),
    Visit(4, (5,), False),
    Visit(3, (1,), False),
    Visit(3, (1,), False),
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_visit_is_a_layers_chunk_or_token(tmp_path: Path) -> None:
    routes = read_routes(write(tmp_path / "r.csv", "# by hand\n" + HEAD + ROWS))
    assert routes == Routes(VISITS, {3: 10, 4: 20})


def test_gzip_is_seen_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(gzip.compress((HEAD + ROWS).encode()))
    assert read_routes(path).visits == VISITS


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_what_is_written_reads_back(tmp_path: Path, name: str) -> None:
    with RouteWriter(tmp_path / name, {3: 10, 4: 20}, "a note") as writer:
        for line in ROWS.split():
            turn, phase, step, layer, expert = map(int, line.split(","))
            writer.write([RouteRow(turn, phase, step, layer, 0, expert, 0.25)])
        assert not (tmp_path / name).exists()
    assert read_routes(tmp_path / name) == Routes(VISITS, {3: 10, 4: 20})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    old = "# route_trace v1\nold"
    path = write(tmp_path / "r.csv", old)
    with pytest.raises(ValueError, match="stop"), RouteWriter(path, {}, "a note"):
        raise ValueError("stop")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("r.csv", old)]
    with pytest.raises(InputError, match="cannot be written"):
        RouteWriter(tmp_path / "none" / "r.csv", {}, "a note")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no routes"),
        (HEAD, "holds no routes"),
        ("a,b\n1,2\n", "line 1: no column 'turn'; it is no route file"),
        (HEAD + "0,1,0,3\n", "line 4: 4 fields instead of 5"),
        (HEAD + "0,1,0,3,\n", "line 4: '' is not a number"),
        (HEAD + "0,1,0,3,-1\n", "line 4: '-1' is not a number"),
        (HEAD + "0,1,0,3,1.0\n", "line 4: '1.0' is not a number"),
        (HEAD + "0,1,0,3," + "9" * 5000 + "\n", r"line 4: '9+\.\.\.' is not a number"),
        (HEAD + "0,2,0,3,1\n", "line 4: phase 2 is neither"),
        (HEAD + "0,1,0,5,1\n", "line 4: no '# layer=5 expert_bytes=...' line"),
        ("# layer=0 expert_bytes=0\n" + HEAD, "line 1: pages of 0 bytes"),
        ("# layer=0 expert_bytes=x\n" + HEAD, "line 1: 'x' is not a number"),
        ("# caf\u00e9\n", "more than ASCII"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_routes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_routes(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_routes(tmp_path)
    packed = gzip.compress((HEAD + ROWS * 100).encode())
    for name, data in (
        ("cut", packed[:-12]), ("bad", packed[:10] + b"\xff" * 20), ("end", packed[:-8] + bytes(8)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"cannot be read|not a whole gzip file"):
            read_routes(tmp_path / name)


def test_a_prompt_larger_than_the_cache_is_read_in_groups() -> None:
    routes = Routes((Visit(0, tuple(range(10)), True), Visit(0, (9, 0), False)), {0: 5})
    result = replay(routes, 3 * 5 + 4, Lru())
    assert (result.total.hits, result.total.requests) == (1, 2)
    assert result.peak_bytes == 15


def test_nothing_decoded() -> None:
    assert replay(Routes((Visit(0, (1,), True),), {0: 5}), 10, Lru()).hit_rate == 1.0
