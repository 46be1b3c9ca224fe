"""`bench` at several memory budgets, each in a process of its own: cold, its memory its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...progress import Progress, Silent
from ...sizes import format_size
from ..planning.limits import SpeedEstimate
from .benchmark import Benchmark

_STEPS = 5
_MIB = 1 << 20
_SILENT = Silent()


def usual_budgets(bundle: Path, *, context: int | None = None) -> list[int]:
    """From the smallest budget that works to one in which every page has a slot, evenly spaced.

    Raises:
        BundleError, ContextError, InputError: as open_bundle.
    """
    options = [] if context is None else ["--context", str(context)]
    # In a process of its own: this one has loaded what draws the plot.
    facts = json.loads(_call("plan", ["--target", "cpu", "--json", *options, "--", str(bundle)]))
    plan, smallest = facts["everything"], facts["smallest_budget"]
    largest = smallest + (plan["slots"] - plan["fewest"]) * plan["page"]
    step = (largest - smallest) / (_STEPS - 1)
    budgets = [smallest + round(step * index) for index in range(_STEPS)]
    return sorted({-(-budget // _MIB) * _MIB for budget in budgets})


def run_budgets(
    bundle: Path, budgets: Sequence[int], options: Sequence[str], progress: Progress = _SILENT
) -> list[Benchmark]:
    """One run for each budget, in their order. options: of `bench`, as on the command line.

    Raises:
        InputError: a run failed; the message is its own.
    """
    results = []
    for budget in budgets:
        progress.stage(f"memory budget {format_size(budget)}", 0)
        results.append(_run(bundle, budget, options))
    return results


def _run(bundle: Path, budget: int, options: Sequence[str]) -> Benchmark:
    arguments = ["--json", "--memory-budget", str(budget), *options, "--", str(bundle)]
    return read_benchmark(json.loads(_call("bench", arguments)))


def _call(name: str, arguments: Sequence[str]) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "pocketmoe", name, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode < 0:
        raise InputError(
            f"{name} {' '.join(arguments)} was killed by signal {-done.returncode}; "
            "give it a memory budget below what the machine has"
        )
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise InputError(lines[-1].removeprefix("error: "))
    return done.stdout


def read_benchmark(facts: dict[str, Any]) -> Benchmark:
    """What `bench --json` printed, as it was."""
    predicted = SpeedEstimate(**facts["predicted"])
    return Benchmark(**{**facts, "lossy": tuple(facts["lossy"]), "predicted": predicted})
