"""`plan`: what fits on a device, and how fast it will be."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from ..targets import CPU, TARGETS, Target
from .arguments import BUDGET_SIZE, CONTEXT, JSON, PRECISION, SIZE, TARGET
from .console import print_facts, print_json, print_table


@click.command()
@click.argument("path", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", type=TARGET, required=True, help="The device.")
@click.option(
    "--memory-budget", "budgets", metavar="SIZE", type=BUDGET_SIZE, multiple=True,
    help="Memory for the whole process, or auto; may be given several times.  "
    "[default: from the smallest to all pages]",
)  # fmt: skip
@click.option(
    "--gpu-memory", "gpu_budgets", metavar="SIZE", type=SIZE, multiple=True,
    help="For a GPU with a memory of its own: how much of it; may be given several times.  "
    "[default: from the smallest to all pages, or all that it has]",
)  # fmt: skip
@CONTEXT
@click.option(
    "--routes", metavar="FILE|CAL", type=click.Path(path_type=Path),
    help="Recorded routes of the model, or its calibration, to replay for the hit rate.",
)  # fmt: skip
@PRECISION
@click.option(
    "--block", type=click.Choice(["32", "64", "128"]), help="As in compile.  [default: 64]"
)
@JSON
def plan(
    path: Path,
    target: Target,
    budgets: tuple[int | str, ...],
    gpu_budgets: tuple[int, ...],
    context: int | None,
    routes: Path | None,
    precision: tuple[str, ...],
    block: str | None,
    as_json: bool,
) -> None:
    """Foretell what fits, and how fast it will be."""
    from ..analysis.planning.gpu import has_own_memory
    from ..analysis.planning.plan import plan_model
    from ..compiler.precision import parse_precision
    from ..runtime.memory.budget import read_budget
    from ..tables.plan import plan_columns, plan_facts, plan_table

    chosen = None
    if precision or block is not None:
        chosen = parse_precision(precision, int(block or 64), target)
    if "auto" in budgets and target in TARGETS and target != CPU and not has_own_memory(target):
        raise InputError(
            "--memory-budget auto is what this machine has free, and the plan is for "
            f"{target.name}: give a size"
        )
    sizes = [size for size in map(read_budget, budgets) if size is not None]
    result = plan_model(
        path, target, budgets=sizes, gpu_budgets=gpu_budgets, context=context, routes=routes,
        precision=chosen,
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_facts(f"plan {path} for {target.name}", plan_facts(result))
    print_table("by budget; ms are of one token", plan_columns(result), plan_table(result))
