"""`bench` and `run` with what they show, record and draw; every failure is one line and code 2."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pocketmoe
from pocketmoe.benchmark import generation_limit, measure_memory, token_bytes
from pocketmoe.budget_sweep import usual_budgets
from pocketmoe.cli import main
from pocketmoe.runtime.routes import read_routes

COMMAND = (sys.executable, "-m", "pocketmoe")
FEW = ("--prompt-tokens", "9", "--new-tokens", "5")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


class TestFigures:
    def test_bench(self, tiny_bundle: Path) -> None:
        report = json.loads(call("bench", tiny_bundle, *FEW, "--json").stdout)
        speed, limit = report["decode_tokens_per_second"], report["limit_tokens_per_second"]
        assert report["limit_reached"] == pytest.approx(speed / limit)
        assert 0 <= report["decode_wait_seconds"] <= report["decode_seconds"]
        assert 4 / report["decode_seconds"] == pytest.approx(speed)
        assert report["storage_bandwidth"] > 0
        table = call("bench", tiny_bundle, *FEW).stdout
        for word in ("of it reached", "waited for pages", "of that time", "per token"):
            assert word in table

    def test_run(self, tiny_bundle: Path) -> None:
        arguments = ["run", tiny_bundle, "--prompt", "def main(", "--stats", "--max-tokens"]
        lines = call(*arguments, "6").stderr
        for word in ("limit", "of it reached", "while decoding", "per token", "waited for pages"):
            assert word in lines
        lines = call(*arguments, "1").stderr  # nothing is decoded
        assert "limit  " not in lines
        assert "per token" not in lines

    def test_the_limit_is_what_memory_and_storage_allow(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            assert generation_limit(session.manifest, session.stats) is None
            list(session.generate("x", max_new_tokens=8))
            manifest, stats = session.manifest, session.stats
        limit = generation_limit(manifest, stats)
        assert limit is not None
        assert limit.storage_bandwidth == stats.bytes_read / stats.read_seconds
        memory = limit.memory_bandwidth / token_bytes(manifest)
        read = stats.decode_bytes_read / stats.decode_steps
        storage = limit.storage_bandwidth / read if read else memory
        assert limit.tokens_per_second == pytest.approx(min(memory, storage))

    def test_memory_is_measured_with_and_without_the_native_kernels(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert measure_memory(1, 64 << 20) > 1e8
        monkeypatch.setattr("pocketmoe.runtime.native.library.available", lambda: False)
        assert measure_memory(2, 64 << 20) > 1e8


class TestRecording:
    def test_bench(self, tiny_bundle: Path, tmp_path: Path) -> None:
        routes, trace = tmp_path / "r.csv.gz", tmp_path / "t.json"
        result = call("bench", tiny_bundle, *FEW, "--record-routes", routes, "--trace", trace)
        assert result.exit_code == 0, result.output
        steps = [visit for visit in read_routes(routes).visits if not visit.prompt]
        events = json.loads(trace.read_text())["traceEvents"]
        assert sum(event["name"] == "token" and event["ph"] == "i" for event in events) == 4
        assert len(steps) == 4 * len(read_routes(routes).layers)
        assert call("replay", routes).exit_code == 0

    def test_run(self, tiny_bundle: Path, tmp_path: Path) -> None:
        routes, trace = tmp_path / "r.csv", tmp_path / "t.json"
        arguments = ["run", tiny_bundle, "--prompt", "x", "--max-tokens", "3", "--stats"]
        result = call(*arguments, "--record-routes", routes, "--trace", trace)
        assert result.exit_code == 0, result.output
        assert read_routes(routes).visits[0].prompt
        assert json.loads(trace.read_text())["traceEvents"]

    def test_after_ctrl_c(self, tiny_bundle: Path, tmp_path: Path) -> None:
        routes, trace = tmp_path / "r.csv", tmp_path / "t.json"
        process = subprocess.Popen(
            [*COMMAND, "run", tiny_bundle, "--prompt", "x", "--max-tokens", "100000",
             "--record-routes", routes, "--trace", trace],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(20)  # tokens after the prompt
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (130, b"interrupted\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "t.json"]
        assert any(not visit.prompt for visit in read_routes(routes).visits)
        assert json.loads(trace.read_text())["traceEvents"]

    @pytest.mark.parametrize("option", ["--record-routes", "--trace"])
    def test_where_nothing_can_be_written(
        self, option: str, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "none" / "file"
        refused(call("run", tiny_bundle, "--prompt", "x", option, path), str(path), "written")


class TestPlot:
    def test_a_picture_and_a_table(self, tiny_bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / "speed.png"
        budgets = ["--memory-budget", "8GiB", "--memory-budget", "4GiB"]
        arguments = ["bench", tiny_bundle, *FEW, *budgets, "--plot", path]
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert [one.name for one in tmp_path.iterdir()] == ["speed.png"]
        lines = result.stdout.splitlines()
        assert len(lines) == 5
        assert [line.split()[0] for line in lines[-2:]] == ["4.0", "8.0"]
        assert lines[-1].count("tok/s") == 2

        reports = json.loads(call(*arguments, "--json").stdout)
        assert [report["budget_bytes"] for report in reports] == [4 << 30, 8 << 30]
        assert all(report["limit_reached"] > 0 for report in reports)

    def test_usual_budgets(self, tiny_bundle: Path) -> None:
        budgets = usual_budgets(tiny_bundle, context=64, threads=1)
        assert 2 <= len(budgets) <= 5
        assert budgets == sorted(budgets)
        assert all(budget % (1 << 20) == 0 for budget in budgets)

    def test_a_run_that_fails(self, tiny_bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        arguments = ["bench", tiny_bundle, "--plot", tmp_path / "p.png", "--memory-budget", "9MiB"]
        result = call(*arguments)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(
            "error: memory budget 9.0 MiB is too small"
        )
        assert list(tmp_path.iterdir()) == []

    def test_what_does_not_go_together(self, tiny_bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / "p.png"
        refused(call("bench", tiny_bundle, "--plot", tmp_path / "p.txt"), "p.txt", ".png")
        refused(call("bench", tiny_bundle, "--plot", tmp_path / "none" / "p.png"), "written")
        refused(call("bench", tiny_bundle, "--plot", path, "--trace", "t"), "--plot makes several")
        two = ["--memory-budget", "1GiB", "--memory-budget", "2GiB"]
        refused(call("bench", tiny_bundle, *two), "need --plot")
        refused(call("bench", tmp_path, "--plot", path), str(tmp_path))

    def test_without_matplotlib(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("matplotlib", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        result = call("bench", tiny_bundle, "--plot", tmp_path / "p.png")
        refused(result, "needs matplotlib", 'pip install "pocketmoe[plot]"')
