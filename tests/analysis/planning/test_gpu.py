"""Plans for GPUs: a Jetson, whose memory is shared, and cards with their own."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pocketmoe.analysis.planning import plan as planning
from pocketmoe.analysis.planning.gpu import CONTEXT_BYTES, LAYER_SECONDS
from pocketmoe.analysis.planning.limits import estimate_speed
from pocketmoe.analysis.planning.plan import machine_speed, plan_model
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import BudgetError, InputError, TargetError
from pocketmoe.runtime.cache_shape import kv_bytes
from pocketmoe.targets import find_target
from pocketmoe.tests.support.command import call
from pocketmoe.tests.support.gpu.sample_graphs import add_sample_graphs
from pocketmoe.tests.support.paths import DEMO

CARD, JETSON = find_target("rtx-4090"), find_target("jetson-orin-nano-8gb")


@pytest.fixture(autouse=True)
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "process_memory", lambda _: 100 << 20)


def third_of_pages(bundle: Path, name: str = "rtx-4090") -> int:
    whole = plan_model(bundle, find_target(name)).everything
    return whole.fixed + whole.slots // 3 * whole.page


def test_a_gpus_memory_holds_a_context_half_a_cache_and_pages(tiny_bundle: Path) -> None:
    plan = plan_model(tiny_bundle, CARD, context=200)
    whole, footprint = plan.everything, read_manifest(tiny_bundle).footprint
    assert (plan.budget_of, plan.missing_from) == ("GPU", "link")
    assert whole.process > CONTEXT_BYTES
    assert whole.kv == kv_bytes(footprint.spec, 200, 200) // 2
    assert not whole.predictor
    shared = plan_model(tiny_bundle, JETSON, context=200)
    assert (shared.budget_of, shared.missing_from) == ("process", "storage")
    assert shared.everything.process == whole.process + (100 << 20)


def test_missing_pages_come_over_the_link(tiny_bundle: Path) -> None:
    budget = third_of_pages(tiny_bundle)
    (row,) = plan_model(tiny_bundle, CARD, gpu_budgets=[budget], context=300).rows
    footprint, speed = read_manifest(tiny_bundle).footprint, machine_speed(CARD)
    assert row.memory is not None
    assert row.speed is not None
    assert row.hit_rate == pytest.approx(row.memory.slots / footprint.num_pages)
    assert speed is not None
    assert speed.storage_bandwidth == CARD.link_bandwidth
    assert speed.layer_seconds == LAYER_SECONDS
    estimate = estimate_speed(footprint, speed, hit_rate=row.hit_rate, position=128)
    assert row.speed == replace(estimate, attention_seconds=estimate.attention_seconds / 2)
    missed = footprint.token_page_bytes * (1 - row.hit_rate)
    assert CARD.link_bandwidth is not None
    assert row.speed.limit_storage_seconds == pytest.approx(missed / CARD.link_bandwidth)
    assert row.prompt_tokens_per_second is None


def test_shared_memory_reads_missing_pages_from_storage(tiny_bundle: Path) -> None:
    budget = third_of_pages(tiny_bundle, JETSON.name)
    (row,) = plan_model(tiny_bundle, JETSON, budgets=[budget]).rows
    speed = machine_speed(JETSON)
    assert speed is not None
    assert speed.storage_bandwidth == JETSON.storage_bandwidth
    assert speed.memory_bandwidth == JETSON.memory_bandwidth
    assert row.speed is not None
    assert row.speed.limit_storage_seconds > 0


@pytest.mark.parametrize("name", ["rtx-4090", "jetson-orin-nano-8gb"])
def test_rows_end_with_all_pages_or_all_memory(name: str) -> None:
    target = find_target(name)
    plan = plan_model(DEMO, target)
    assert plan.rows[0].budget_bytes == plan.smallest_budget
    assert plan.rows[-1].hit_rate == 1.0
    memory = plan.smallest_budget + plan.everything.page
    small = plan_model(DEMO, replace(target, memory_bytes=memory))
    assert small.rows[-1].budget_bytes == memory
    assert small.rows[-1].hit_rate is not None
    assert small.rows[-1].hit_rate < 1
    with pytest.raises(BudgetError, match=rf"takes at least \d+MiB, and {name} has \d+MiB"):
        plan_model(DEMO, replace(target, memory_bytes=plan.smallest_budget - 1))


def test_budgets_of_the_wrong_kind(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="use --gpu-memory instead of --memory-budget"):
        plan_model(tiny_bundle, CARD, budgets=[1 << 30])
    for name in ("cpu", "dgx-spark"):
        with pytest.raises(InputError, match="use --memory-budget instead of --gpu-memory"):
            plan_model(tiny_bundle, find_target(name), gpu_budgets=[1 << 30])
    with pytest.raises(InputError, match=r"32\.0 GiB is more than the 24\.0 GiB that rtx-4090 has"):
        plan_model(tiny_bundle, CARD, gpu_budgets=[32 << 30, 1 << 30])
    with pytest.raises(InputError, match=r"more than the 8\.0 GiB that jetson-orin-nano-8gb has"):
        plan_model(tiny_bundle, JETSON, budgets=[9 << 30])


def test_a_gpu_memory_that_is_too_small(tiny_bundle: Path) -> None:
    with pytest.raises(BudgetError, match=r"GPU memory are too few.* the smallest that works is"):
        plan_model(tiny_bundle, CARD, gpu_budgets=[64 << 20])
    small, large = plan_model(tiny_bundle, CARD, gpu_budgets=[64 << 20, 8 << 30]).rows
    assert (small.memory, large.hit_rate) == (None, 1.0)


def test_a_precision_that_the_target_lacks(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    old = find_target("rtx-2080-ti")
    with pytest.raises(TargetError, match="experts=int8, and compile it again; it has int8, fp16"):
        plan_model(tiny_bundle, old)
    with pytest.raises(TargetError, match="has experts in int4, which target rtx-2080-ti does not"):
        plan_model(tiny_checkpoint, old)


class TestGpuPlanCommand:
    def test_a_card(self, tiny_bundle: Path) -> None:
        budget = f"{third_of_pages(tiny_bundle)}B"
        result = call("plan", tiny_bundle, "--target", "rtx-4090", "--gpu-memory", budget)
        assert result.exit_code == 0, result.output
        for words in (
            "never been compared with a GPU",
            "host memory holds all pages",
            "over the link, PCIe 4.0 x16",
            "CUDA takes 500MiB, keys and values are fp16",
            "smallest GPU memory",
        ):
            assert words in result.stdout
        head = result.stdout.splitlines()[-3]
        assert head.startswith("GPU memory")
        assert "link ms" in head
        assert "prompt tok/s" not in head
        assert "storage ms" not in head

    def test_a_jetson(self, tiny_bundle: Path) -> None:
        result = call("plan", tiny_bundle, "--target", "jetson-orin-nano-8gb")
        assert result.exit_code == 0, result.output
        assert "never been compared with a GPU" in result.stdout
        assert "missing pages come from storage, NVMe, PCIe 3.0 x4" in result.stdout
        assert "storage ms" in result.stdout

    def test_a_bundle_for_cpus(self, tiny_bundle: Path) -> None:
        assert (
            "the bundle has nothing for GPUs"
            in call("plan", tiny_bundle, "--target", "rtx-4090").stdout
        )

    def test_the_context_is_that_of_the_graphs(self, tiny_bundle: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        shutil.copytree(tiny_bundle, bundle)
        add_sample_graphs(bundle)
        shown = call("plan", bundle, "--target", "rtx-4090").stdout
        assert re.search(r"^context +256 tokens$", shown, re.M)
        assert "nothing for GPUs" not in shown
        assert not re.search(r" 0\.0 .* 0\.0 ", shown.splitlines()[-2])
        result = call("plan", bundle, "--target", "rtx-4090", "--context", "300")
        assert "context 300 is more than the 256 tokens" in result.stderr
        assert call("plan", bundle, "--target", "cpu", "--context", "300").exit_code == 0

    def test_auto_is_of_this_machine(self, tiny_bundle: Path) -> None:
        for name in ("jetson-orin-nano-8gb", "cpu-x86"):
            result = call("plan", tiny_bundle, "--target", name, "--memory-budget", "auto")
            assert f"and the plan is for {name}: give a size" in result.stderr
        assert not call("plan", tiny_bundle, "--target", "cpu", "--memory-budget", "auto").stderr

    def test_json(self, tiny_bundle: Path) -> None:
        plan = json.loads(call("plan", tiny_bundle, "--target", "rtx-4090", "--json").stdout)
        assert (plan["budget_of"], plan["missing_from"]) == ("GPU", "link")
        assert plan["assumptions"]
        assert plan["rows"][0]["prompt_tokens_per_second"] is None

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--memory-budget", "2GiB"], "--gpu-memory"),
            (["--gpu-memory", "much"], "'much'"),
            (["--gpu-memory", "1MiB"], "the smallest that works is"),
        ],
    )
    def test_errors(self, tiny_bundle: Path, options: list[str], words: str) -> None:
        result = call("plan", tiny_bundle, "--target", "rtx-4090", *options)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert words in line
