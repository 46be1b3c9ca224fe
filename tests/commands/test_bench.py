"""`bench` and `run` with what they show, record and draw; every failure is one line and code 2."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pocketmoe
from pocketmoe.analysis.measuring.benchmark import generation_limit
from pocketmoe.analysis.measuring.budget_sweep import read_benchmark, usual_budgets
from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.memory.budget import MemoryPlan
from pocketmoe.runtime.recording.routes import read_routes
from pocketmoe.tests.support.command import COMMAND, call, refused
from pocketmoe.tests.support.waiting import PATIENCE

FEW = ("--prompt-tokens", "9", "--new-tokens", "5")


class TestBench:
    def test_json(self, tiny_bundle: Path) -> None:
        arguments = ["bench", tiny_bundle, "--prompt-tokens", "9", "--new-tokens", "5", "--json"]
        report = json.loads(call(*arguments).stdout)
        assert report["prompt_tokens"] == 9
        assert report["new_tokens"] == 5
        for name in ("prompt_tokens_per_second", "decode_tokens_per_second", "peak_rss_bytes"):
            assert report[name] > 0
        assert 0 <= report["decode_hit_rate"] <= 1

    def test_table(self, tiny_bundle: Path) -> None:
        result = call("bench", tiny_bundle, "--prompt-tokens", "4", "--new-tokens", "1")
        assert "time to first token" in result.stdout

    def test_more_than_the_context(self, tiny_bundle: Path) -> None:
        refused(call("bench", tiny_bundle, "--prompt-tokens", "512"), "context of 512")


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
        read, seconds = stats.bytes_read, stats.read_seconds
        if stats.decode_bytes_read:
            read, seconds = stats.decode_bytes_read, stats.decode_read_seconds
        assert limit.storage_bandwidth == read / seconds
        weights = stats.backbone_bytes + manifest.footprint.token_page_bytes
        memory = limit.memory_bandwidth / weights
        read = stats.decode_bytes_read / stats.decode_steps
        storage = limit.storage_bandwidth / read if read else memory
        assert limit.tokens_per_second == pytest.approx(min(memory, storage))

    @pytest.mark.slow
    def test_what_reading_early_was_worth(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = loading.plan_memory

        def few_slots(*args: Any, **kwargs: Any) -> MemoryPlan:
            made = plan(*args, **kwargs)
            return dataclasses.replace(made, slots=8, predicts=made.predictor > 0)

        monkeypatch.setattr(loading, "plan_memory", few_slots)
        row = re.compile(
            r"^read early +[\d.]+ pages per token, [\d.]+% of them used; [\d.]+% of the guesses",
            re.MULTILINE,
        )
        bench = ["bench", tiny_bundle, *FEW, "--prefetch"]
        assert row.search(call(*bench, "on").stdout)
        report = json.loads(call(*bench, "on", "--json").stdout)
        assert report["early_pages"] >= report["early_pages_used"]
        assert 0 < report["guess_accuracy"] <= 1
        assert "read early" not in call(*bench, "off").stdout
        run = ["run", tiny_bundle, "--prompt", "x", "--max-tokens", "6", "--stats", "--prefetch"]
        assert row.search(call(*run, "on").stderr)
        assert "read early" not in call(*run, "off").stderr
        refused(call(*run, "yes"), "--prefetch")


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
        _, stderr = process.communicate(timeout=PATIENCE)
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
    @pytest.mark.slow
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

    def test_auto_and_options_are_handed_on(self, tiny_bundle: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        options = ["--memory-budget", "auto", "--prefetch", "off", "--target", "cpu", "--json"]
        result = call("bench", tiny_bundle, *FEW, *options, "--plot", tmp_path / "p.svg")
        assert result.exit_code == 0, result.output
        (report,) = json.loads(result.stdout)
        assert report["budget_bytes"] > 0
        assert report["predicted_from"] == "this run's bandwidths"

    def test_a_report_comes_back_as_it_was(self, tiny_bundle: Path) -> None:
        text = call("bench", tiny_bundle, *FEW, "--active-experts", "1", "--json").stdout
        result = read_benchmark(json.loads(text))
        assert result.lossy
        assert result.predicted.tokens_per_second == result.predicted_tokens_per_second > 0

    def test_usual_budgets(self, tiny_bundle: Path) -> None:
        budgets = usual_budgets(tiny_bundle, context=64)
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
        refused(call("bench", tiny_bundle, *two[:3], "auto"), "need --plot")
        refused(call("bench", tmp_path, "--plot", path), str(tmp_path))

    def test_without_matplotlib(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("matplotlib", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        result = call("bench", tiny_bundle, "--plot", tmp_path / "p.png")
        refused(result, "needs matplotlib", "pip install 'pocketmoe[plot]'")
