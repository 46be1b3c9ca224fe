"""A bundle runs inside a hard memory limit of the size of its own budget."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE

SCRIPT = ROOT / "bench/memory/memory_limit.py"
POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))


def run_limited(limit: str, *command: str) -> dict[str, Any]:
    """The outcome that bench/memory/memory_limit.py reports; skips where no cgroup can be made."""
    arguments = [sys.executable, str(SCRIPT), "--limit", limit, "--json", "--", *command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)
    refused = re.search(r"Error: (no memory cgroup .*)", done.stderr)
    if refused:
        pytest.skip(refused[1])
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def run_bundle(bundle: Path, budget: str) -> list[str]:
    return [
        POCKETMOE, "run", str(bundle), "--prompt", "def main(", "--max-tokens", "48",
        "--memory-budget", budget,
    ]  # fmt: skip


def smallest_budget(bundle: Path) -> int:
    """MiB that the refusal of a hopeless budget names as the smallest."""
    refused = subprocess.run(
        run_bundle(bundle, "1MiB"), capture_output=True, text=True, timeout=PATIENCE
    )
    assert refused.returncode == 2
    match = re.search(r"the smallest that works is (\d+)MiB", refused.stderr)
    assert match, refused.stderr
    return int(match[1])


def test_a_command_over_its_limit_is_killed() -> None:
    outcome = run_limited("64MiB", sys.executable, "-c", "bytearray(128 << 20)")
    assert outcome["killed"]
    assert outcome["exit_code"] == -9


def test_a_command_within_its_limit_is_not() -> None:
    outcome = run_limited("64MiB", sys.executable, "-c", "raise SystemExit(3)")
    assert not outcome["killed"]
    assert outcome["exit_code"] == 3
    assert 0 < outcome["peak"] <= outcome["limit"] == 64 << 20


@pytest.mark.slow
def test_the_page_cache_counts_and_is_reclaimed(tmp_path: Path) -> None:
    file = tmp_path / "large"
    program = f"file = open({str(file)!r}, 'wb')\nfor _ in range(96): file.write(bytes(1 << 20))"
    outcome = run_limited("64MiB", sys.executable, "-c", program)
    assert outcome["exit_code"] == 0
    assert outcome["peak"] > 56 << 20


def test_a_budget_near_the_smallest_is_kept(tiny_bundle: Path) -> None:
    budget = f"{smallest_budget(tiny_bundle)}MiB"
    outcome = run_limited(budget, *run_bundle(tiny_bundle, budget))
    assert not outcome["killed"], outcome
    assert outcome["exit_code"] == 0, outcome
    assert outcome["resident"] <= outcome["limit"]


def test_auto_finds_the_limit_and_keeps_it(tiny_bundle: Path) -> None:
    """Most of the limit, whatever the machine has free."""
    program = (
        "from pocketmoe.runtime.memory.budget import read_budget\n"
        "budget = read_budget('auto')\n"
        "raise SystemExit(0 if 200 << 20 < budget < 256 << 20 else 1)"
    )
    outcome = run_limited("256MiB", sys.executable, "-c", program)
    assert outcome["exit_code"] == 0, outcome
    outcome = run_limited("256MiB", *run_bundle(tiny_bundle, "auto"))
    assert not outcome["killed"], outcome
    assert outcome["exit_code"] == 0, outcome
