"""Plans against sessions, replays and simulations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.analysis.planning import plan as planning
from pocketmoe.analysis.planning.limits import estimate_speed
from pocketmoe.analysis.planning.locality import no_locality, replayed
from pocketmoe.analysis.planning.plan import NOT_MEASURED, machine_speed, plan_model
from pocketmoe.analysis.planning.replay import replay
from pocketmoe.bundle.footprint import Footprint
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import BudgetError, InputError
from pocketmoe.model.families import FAMILIES
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.recording.routes import Routes, Visit
from pocketmoe.targets import Target, find_target, measured_target, write_target
from pocketmoe.tests.support.command import call, refused

FIGURES = {
    "memory_bytes": 8 << 30, "memory_bandwidth": 2e10, "storage_bandwidth": 1.5e9,
    "expert_bandwidth": 1.5e10, "backbone_bandwidth": 1.6e10, "layer_seconds": 2e-4,
    "expert_rate": 5e10, "backbone_rate": 6e10,
}  # fmt: skip


@pytest.fixture
def local() -> Target:
    return measured_target("local", "this machine", FIGURES, {})


@pytest.fixture
def few_budgets(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Room for a third of the tiny bundle's pages, and for all."""
    monkeypatch.setattr(planning, "process_memory", lambda _: 100 << 20)
    whole = plan_model(tiny_bundle, find_target("cpu")).everything
    pages = whole.slots // 3 * whole.page
    return [whole.fixed + whole.predictor + pages, whole.total]


@pytest.fixture
def config(tmp_path: Path, local: Target, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a measured target."""
    monkeypatch.setenv("POCKETMOE_CONFIG", str(tmp_path / "config"))
    write_target(tmp_path / "config/targets.json", local)
    return tmp_path / "config"


def random_routes(footprint: Footprint, tokens: int) -> Routes:
    """Every token chooses evenly."""
    random = np.random.default_rng(0)
    visits = [
        Visit(
            layer.layer, tuple(random.permutation(layer.num_experts)[: layer.top_k].tolist()), False
        )
        for _ in range(tokens)
        for layer in footprint.experts
    ]
    return Routes(
        tuple(visits), {layer.layer: layer.formats[0].nbytes for layer in footprint.experts}
    )


def write_routes(path: Path, routes: Routes) -> Path:
    lines = [f"# layer={layer} expert_bytes={size}" for layer, size in routes.page_bytes.items()]
    lines.append("turn,phase,step,layer,expert")
    for number, visit in enumerate(routes.visits):
        step = number // len(routes.layers)
        lines += [f"0,1,{step},{visit.layer},{expert}" for expert in visit.experts]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_parts_are_those_of_a_session(tiny_bundle: Path, local: Target) -> None:
    plan = plan_model(tiny_bundle, local, context=200)
    with pocketmoe.open(tiny_bundle, context=200) as session:
        opened = session.plan
    whole = plan.everything
    for part in ("backbone", "kv", "workspace", "chunk", "slots", "page", "fewest"):
        assert getattr(whole, part) == getattr(opened, part)
    assert plan.num_pages == whole.slots
    assert plan.rows[0].budget_bytes == plan.smallest_budget == whole.smallest
    slots = [row.memory.slots for row in plan.rows if row.memory is not None]
    assert slots == sorted(slots)
    assert slots[0] >= whole.fewest
    assert slots[-1] == whole.slots
    assert plan.rows[-1].hit_rate == 1.0


def test_a_checkpoint_is_planned_like_its_bundle(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, local: Target
) -> None:
    from pocketmoe.compiler.precision import parse_precision

    precision = parse_precision([], 32, local)
    bundle = plan_model(tiny_bundle, local)
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    for path in (tiny_checkpoint, tmp_path):
        found = plan_model(path, local, precision=precision)
        assert (bundle.kind, found.kind) == ("bundle", "checkpoint")
        assert found.precision == bundle.precision
        assert found.num_pages == bundle.num_pages
        assert found.token_page_bytes == bundle.token_page_bytes
        for part in ("kv", "slots", "page", "predictor"):
            assert getattr(found.everything, part) == getattr(bundle.everything, part)
        # What is not compiled yet is counted as ONNX Runtime takes it.
        for part in ("backbone", "workspace"):
            assert getattr(found.everything, part) >= getattr(bundle.everything, part)


def test_the_smallest_budget_is_enough_to_run(tiny_bundle: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pocketmoe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    plan = json.loads(run("plan", str(tiny_bundle), "--target", "cpu", "--json"))
    smallest = f"{plan['smallest_budget'] // 2**20}MiB"
    text = run(
        "run", str(tiny_bundle), "--prompt", "def", "--max-tokens", "2", "--memory-budget", smallest
    )
    assert text


def test_speeds_are_those_of_the_limit_model(
    tiny_bundle: Path, local: Target, few_budgets: list[int]
) -> None:
    plan = plan_model(tiny_bundle, local, context=300, budgets=few_budgets)
    footprint, speed = read_manifest(tiny_bundle).footprint, machine_speed(local)
    assert speed is not None
    for row in plan.rows:
        assert row.memory is not None
        assert row.hit_rate == pytest.approx(min(1, row.memory.slots / footprint.num_pages))
        estimate = estimate_speed(
            footprint, speed, hit_rate=row.hit_rate, position=128, prefetches=row.memory.predicts
        )
        assert row.memory.predicts == (row.hit_rate < 1)
        assert row.speed == estimate
        assert row.tokens_per_second == estimate.tokens_per_second
        assert row.tokens_per_second is not None
        assert row.full_context_tokens_per_second is not None
        assert row.tokens_per_second > row.full_context_tokens_per_second
        assert row.limit_tokens_per_second is not None
        assert row.limit_tokens_per_second > row.tokens_per_second


def test_evenly_chosen_experts_hit_as_often_as_is_assumed(tiny_bundle: Path) -> None:
    """The floor: the default policy on random routes has about as many hits as slots for pages."""
    footprint = read_manifest(tiny_bundle).footprint
    routes = random_routes(footprint, 3000)
    assumed, found = no_locality(footprint), replayed(footprint, routes, "routes")
    for slots in range(footprint.num_pages // 4, footprint.num_pages, 5):
        assert found(slots) == pytest.approx(assumed(slots), abs=0.06)
    assert found(footprint.num_pages) == 1.0


def test_routes_are_replayed_in_as_many_slots(
    tiny_bundle: Path, tmp_path: Path, local: Target, few_budgets: list[int]
) -> None:
    footprint = read_manifest(tiny_bundle).footprint
    routes = random_routes(footprint, 50)
    path = write_routes(tmp_path / "routes.csv", routes)
    plan = plan_model(tiny_bundle, local, routes=path, budgets=few_budgets)
    row, all_pages = plan.rows
    assert row.memory is not None
    assert row.memory.slots == footprint.num_pages // 3
    assert all_pages.hit_rate == 1.0
    equal = Routes(routes.visits, dict.fromkeys(routes.layers, 64))
    expected = replay(equal, 64 * row.memory.slots, NextUse(len(routes.layers)))
    assert row.hit_rate == expected.hit_rate
    assert str(path) in plan.hits_from


@pytest.mark.parametrize("change", ["layers", "experts", "top_k", "prompt"])
def test_routes_of_another_model(tiny_bundle: Path, change: str) -> None:
    footprint = read_manifest(tiny_bundle).footprint
    layer = footprint.experts[0]
    routes = random_routes(footprint, 2)
    first = routes.visits[0]
    other = {
        "layers": Visit(99, first.experts, False),
        "experts": Visit(first.layer, (*first.experts[1:], layer.num_experts), False),
        "top_k": Visit(first.layer, first.experts[1:], False),
        "prompt": first,
    }[change]
    visits = (other, *routes.visits[1:])
    if change == "prompt":
        visits = tuple(Visit(visit.layer, visit.experts, True) for visit in visits)
    routes = Routes(visits, {**routes.page_bytes, **({99: 1} if change == "layers" else {})})
    with pytest.raises(InputError) as refusal:
        replayed(footprint, routes, "routes.csv")
    message = str(refusal.value)
    assert message.startswith("routes.csv ")
    if change != "prompt":
        shape = f"{len(footprint.experts)} layers of {layer.num_experts} experts"
        assert f"the model has {shape}, {layer.top_k} at work" in message
        assert "at least" in message


def test_one_budget_that_is_too_small_is_an_error(tiny_bundle: Path, local: Target) -> None:
    with pytest.raises(BudgetError, match="the smallest that works is"):
        plan_model(tiny_bundle, local, budgets=[1 << 20])
    plan = plan_model(tiny_bundle, local, budgets=[1 << 20, 1 << 40])
    small, large = plan.rows
    assert (small.budget_bytes, small.memory, small.tokens_per_second) == (1 << 20, None, None)
    assert large.hit_rate == 1.0


def test_a_target_without_figures_has_no_speed(tiny_bundle: Path, few_budgets: list[int]) -> None:
    plan = plan_model(tiny_bundle, find_target("cpu"))
    assert plan.speed_from == NOT_MEASURED
    assert all(row.memory is not None and row.speed is None for row in plan.rows)
    only_memory = measured_target("m", "", {"memory_bandwidth": 1e10}, {})
    plan = plan_model(tiny_bundle, only_memory, budgets=few_budgets)
    assert plan.rows[0].speed is None
    assert plan.rows[-1].speed is not None


@pytest.mark.parametrize("family", sorted(set(FAMILIES)))
def test_every_familys_config_can_be_planned(family: str, tmp_path: Path, local: Target) -> None:
    from pocketmoe.compiler.precision import parse_precision

    tiny = FAMILIES[family].tiny
    if not tiny:
        pytest.skip("no tiny config")
    (tmp_path / "config.json").write_text(json.dumps(dict(tiny)))
    plan = plan_model(tmp_path, local, precision=parse_precision(["fp16"], 64, local))
    assert plan.num_pages > 0
    assert all(row.tokens_per_second is not None for row in plan.rows)


@pytest.mark.usefixtures("config")
class TestPlanCommand:
    def test_a_table(self, tiny_bundle: Path) -> None:
        result = call(
            "plan", tiny_bundle, "--target", "local", "--context", "64", "--memory-budget", "1MiB",
            "--memory-budget", "1GiB", "--memory-budget", "auto",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert re.search(r"^smallest budget +\d+MiB$", result.stdout, re.MULTILINE)
        assert "assumed: no locality; --routes" in result.stdout
        head, _, small, large, auto = result.stdout.splitlines()[-5:]
        for column in ("tok/s", "limit", "memory ms", "storage ms", "wait ms", "prompt tok/s"):
            assert column in head
        assert small.split() == ["1MiB", "too", "small"]
        assert large.split()[0] == "1024MiB"
        assert "100.0%" in auto

    def test_json(self, tiny_bundle: Path) -> None:
        result = call("plan", tiny_bundle, "--target", "local", "--json")
        plan: dict[str, Any] = json.loads(result.stdout)
        assert plan["target"] == "local"
        assert plan["everything"]["slots"] == plan["num_pages"]
        for row in plan["rows"]:
            assert row["speed"]["backbone_seconds"] > 0
            assert row["limit_tokens_per_second"] > row["tokens_per_second"] > 0

    def test_a_checkpoint_without_speeds(self, tiny_checkpoint: Path) -> None:
        result = call("plan", tiny_checkpoint, "--target", "cpu", "--precision", "fp32")
        assert NOT_MEASURED in result.stdout
        assert "experts fp32" in result.stdout
        assert "tok/s" not in result.stdout.splitlines()[-3]

    def test_errors(self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
        local = ("--target", "local")
        refused(call("plan", tiny_bundle), "--target")
        refused(call("plan", tiny_bundle, "--target", "locale"), "did you mean local?")
        refused(call("plan", tmp_path / "none", *local), "does not exist")
        refused(call("plan", tmp_path, *local), "config.json")
        refused(call("plan", tiny_bundle, *local, "--memory-budget", "1MiB"), "is too small")
        refused(call("plan", tiny_bundle, *local, "--memory-budget", "much"), "'much'")
        refused(call("plan", tiny_bundle, *local, "--context", "100000"), "context must be")
        refused(call("plan", tiny_bundle, *local, "--block", "64"), "is a bundle")
        refused(call("plan", tiny_checkpoint, *local, "--precision", "int3"), "int3")
        refused(call("plan", tiny_bundle, *local, "--routes", tmp_path / "no"), "cannot be read")

    @pytest.mark.slow
    def test_run_prints_predicted_beside_measured(self, tiny_bundle: Path) -> None:
        arguments = ("run", tiny_bundle, "--prompt", "def", "--max-tokens", "6", "--stats")
        result = call(*arguments)
        assert re.search(r"^predicted +[\d.]+ tok/s .* by target local$", result.stderr, re.M)
        assert re.search(r"^limit +[\d.]+ tok/s .* reached$", result.stderr, re.M)
        assert re.search(r"^page hits +.*while decoding [\d.]+%$", result.stderr, re.M)
        result = call(*arguments, "--target", "cpu")
        assert re.search(rf"^predicted +{NOT_MEASURED}$", result.stderr, re.M)
        result = call(*arguments, "--target", "rtx-4090")
        assert re.search(r"^predicted +nothing: rtx-4090 is a GPU", result.stderr, re.M)
        refused(call(*arguments[:-1], "--target", "cpu"), "--stats")

    def test_a_damaged_file_of_targets_is_said_and_does_not_stop_a_run(
        self, tiny_bundle: Path, config: Path
    ) -> None:
        (config / "targets.json").write_text("{")
        result = call("run", tiny_bundle, "--prompt", "def", "--max-tokens", "3", "--stats")
        assert result.exit_code == 0
        assert "warning: " in result.stderr
        assert NOT_MEASURED in result.stderr
        refused(call("targets"), "targets.json", "targets --measure")
        assert call("targets", "cpu").exit_code == 0

    def test_bench_predicts_by_the_target(self, tiny_bundle: Path) -> None:
        arguments = ("bench", tiny_bundle, "--prompt-tokens", "9", "--new-tokens", "5", "--json")
        report = json.loads(call(*arguments).stdout)
        assert report["predicted_from"] == "target local"
        assert report["prompt"] in ("text", "random ids")
        footprint, speed = read_manifest(tiny_bundle).footprint, FIGURES
        assert report["predicted"]["backbone_seconds"] == pytest.approx(
            footprint.backbone_bytes / speed["backbone_bandwidth"]
        )
        assert report["predicted_tokens_per_second"] > 0

    def test_auto_is_said_in_the_stats(self, tiny_bundle: Path) -> None:
        result = call(
            "run", tiny_bundle, "--prompt", "def", "--max-tokens", "2", "--memory-budget", "auto",
            "--stats",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "(auto: what the machine had free)" in result.stderr


def test_without_a_measured_target(tiny_bundle: Path) -> None:
    result = call("run", tiny_bundle, "--prompt", "def", "--max-tokens", "3", "--stats")
    assert NOT_MEASURED in result.stderr
    report = json.loads(
        call("bench", tiny_bundle, "--prompt-tokens", "5", "--new-tokens", "3", "--json").stdout
    )
    assert report["predicted_from"] == "this run's bandwidths"
    refused(call("plan", tiny_bundle, "--target", "local"), "targets --measure")


def test_decoding_has_counters_of_its_own(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, memory_budget=None) as session:
        list(session.generate("def main(", max_new_tokens=1))
        prompt = session.stats
        assert (prompt.decode_page_hits, prompt.decode_page_misses) == (0, 0)
        assert prompt.decode_hit_rate == 1.0
        list(session.generate("def main(", max_new_tokens=9))
        stats = session.stats
    per_token = sum(layer.top_k for layer in session.manifest.footprint.experts)
    requests = stats.decode_page_hits + stats.decode_page_misses
    assert requests == per_token * stats.decode_steps > 0
    assert stats.decode_page_misses <= stats.page_misses - prompt.page_misses
