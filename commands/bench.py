"""`bench`: speed, cache hits and memory of a bundle; with --plot at several budgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BundleError
from ..targets import Target
from .arguments import (
    ACTIVE_EXPERTS,
    BUDGETS,
    BUNDLE,
    CONTEXT,
    JSON,
    PLOT,
    POSITIVE,
    PREDICT,
    PREFETCH,
    RECORD_ROUTES,
    SKIP_COLD,
    TRACE,
    gpu_options,
    predicted_by,
    with_opening,
)
from .console import ProgressDisplay, print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..runtime.options import OpenOptions


@click.command()
@BUNDLE
@click.option("--prompt-tokens", metavar="N", type=POSITIVE, default=128, help="Tokens to read.")
@click.option("--new-tokens", metavar="N", type=POSITIVE, default=64, help="Tokens to generate.")
@click.option("--threads", metavar="N", type=POSITIVE, help="[default: one per core]")
@BUDGETS
@gpu_options
@CONTEXT
@PREFETCH
@ACTIVE_EXPERTS
@SKIP_COLD
@PLOT
@RECORD_ROUTES
@TRACE
@PREDICT
@JSON
@click.pass_context
@with_opening
def bench(
    ctx: click.Context,
    bundle: Path,
    prompt_tokens: int,
    new_tokens: int,
    budgets: tuple[int | str, ...],
    plot: Path | None,
    target: Target | None,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Measure speed, cache hits and memory."""
    from ..analysis.measuring.benchmark import run_benchmark
    from ..tables.model import benchmark_rows

    if plot is not None:
        if opening.makes_files:
            raise click.UsageError("--record-routes, --trace: one run; --plot makes several", ctx)
        if opening.backend not in ("auto", "cpu"):
            raise click.UsageError("--plot is of the CPU backend", ctx)
        options: dict[str, Any] = {
            "--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens,
            "--threads": opening.threads, "--context": opening.context,
            "--prefetch": opening.prefetch,
            "--active-experts": opening.active_experts, "--skip-cold": opening.skip_cold,
            "--target": target.name if target is not None else None,
            "--backend": "cpu",
        }  # fmt: skip
        plot_speeds(bundle, plot, budgets, options, as_json=as_json)
        return
    if len(budgets) > 1:
        raise click.UsageError("several --memory-budget need --plot", ctx)
    with ProgressDisplay("tokens") as progress:
        result = run_benchmark(
            bundle, prompt_tokens=prompt_tokens, new_tokens=new_tokens,
            opening=replace(opening, memory_budget=budgets[0] if budgets else None),
            target=predicted_by(ctx, target), progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_facts(f"bench {bundle}", benchmark_rows(result))


def plot_speeds(
    bundle: Path,
    path: Path,
    budgets: tuple[int | str, ...],
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Runs `bench` at each budget and draws what came of it. options: of `bench`, None for those
    that were not given."""
    from ..analysis.inspection.inspect import BundleFacts, inspect_path
    from ..analysis.measuring.budget_sweep import run_budgets, usual_budgets
    from ..analysis.measuring.speed_plot import check_plot, draw_speed
    from ..runtime.memory.budget import read_budget
    from ..tables.model import SPEED_COLUMNS, speed_rows

    check_plot(path)
    facts = inspect_path(bundle)
    if not isinstance(facts, BundleFacts):
        raise BundleError(f"{bundle} is a checkpoint; compile it first")
    sizes = {size for size in map(read_budget, budgets) if size is not None}
    chosen = sorted(sizes) or usual_budgets(bundle, context=options["--context"])
    given = [word for name, value in options.items() if value is not None
             for word in (name, str(value))]  # fmt: skip
    with ProgressDisplay() as progress:
        results = run_budgets(bundle, chosen, given, progress)
    draw_speed(path, facts, results)
    if as_json:
        print_json(results)
        return
    print_table(f"bench {bundle}: {path}", SPEED_COLUMNS, speed_rows(results))
