"""`bench` at several memory budgets, each in a process of its own: cold, its memory its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmark import Benchmark
from .errors import InputError
from .progress import Progress, Silent
from .runtime.limits import SpeedEstimate
from .sizes import format_size

_STEPS = 5
_MIB = 1 << 20
_SILENT = Silent()


def usual_budgets(
    bundle: Path, *, context: int | None = None, threads: int | None = None
) -> list[int]:
    """From the smallest budget that works to one in which every page has a slot, evenly spaced.

    Raises:
        BundleError, ContextError, InputError: as open_bundle.
    """
    from .runtime.opening import open_bundle

    with open_bundle(bundle, context=context, threads=threads, verify_pages=False) as session:
        plan = session.plan
    largest = plan.smallest + (plan.slots - plan.fewest) * plan.page
    step = (largest - plan.smallest) / (_STEPS - 1)
    budgets = [plan.smallest + round(step * index) for index in range(_STEPS)]
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
    command = [
        sys.executable, "-m", "pocketmoe", "bench", "--json", "--memory-budget", str(budget),
        *options, "--", str(bundle),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode < 0:
        raise InputError(
            f"the run with a memory budget of {format_size(budget)} was killed by signal "
            f"{-done.returncode}; give it less than the machine has"
        )
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise InputError(lines[-1].removeprefix("error: "))
    return read_benchmark(json.loads(done.stdout))


def read_benchmark(facts: dict[str, Any]) -> Benchmark:
    """What `bench --json` printed, as it was."""
    predicted = SpeedEstimate(**facts["predicted"])
    return Benchmark(**{**facts, "lossy": tuple(facts["lossy"]), "predicted": predicted})
