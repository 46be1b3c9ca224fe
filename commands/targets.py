"""The commands about machines: which there are, and what one can do for a model."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from ..errors import InputError, TargetError
from ..targets import LOCAL, TARGETS, Target, all_targets, check_name, find_target
from ..targets.devices import CPU
from .arguments import (
    BUDGET_SIZE,
    CONTEXT,
    JSON,
    PRECISION,
    SIZE,
    TARGET,
    targets_file,
)
from .console import ProgressDisplay, print_facts, print_json, print_table

_log = logging.getLogger(__name__)


@click.command()
@click.argument("name", required=False)
@click.option(
    "--measure", is_flag=True,
    help="Measure this machine, and keep it as the target NAME.  [default: local]",
)  # fmt: skip
@click.option(
    "--storage", metavar="PATH", type=click.Path(path_type=Path),
    help="With --measure: a directory, to write a file of 1 GiB into and remove it, or a bundle or "
    "a large file to read.  [default: the bundle, or the current directory]",
)  # fmt: skip
@click.option(
    "--bundle", metavar="BUNDLE", type=click.Path(path_type=Path),
    help="With --measure: a bundle to run, for the speed of a backbone.",
)  # fmt: skip
@JSON
@click.pass_context
def targets(
    ctx: click.Context,
    name: str | None,
    measure: bool,
    storage: Path | None,
    bundle: Path | None,
    as_json: bool,
) -> None:
    """List the devices it knows, show one, or measure this machine."""
    from ..tables.targets import TARGET_COLUMNS, target_rows, target_table

    path = targets_file(ctx)
    if measure:
        target = _measure(path, name or LOCAL, storage, bundle)
    elif storage is not None or bundle is not None:
        raise click.UsageError("--storage and --bundle need --measure", ctx)
    elif name is None:
        known = all_targets(path)
        if as_json:
            print_json(known)
            return
        print_table("targets", TARGET_COLUMNS, target_table(known))
        return
    else:
        target = find_target(name, path)
    if as_json:
        print_json(target)
        return
    print_facts(f"target {target.name}", target_rows(target))


def _measure(path: Path | None, name: str, storage: Path | None, bundle: Path | None) -> Target:
    """Measures this machine and writes it down."""
    from ..analysis.measuring.machine import measure_target
    from ..targets import check_writable, write_target

    if path is None:
        raise TargetError("there is no file to keep targets in")
    check_name(name)
    check_writable(path)  # before the seconds that measuring takes
    with ProgressDisplay() as progress:
        target = measure_target(
            name, storage=storage or bundle or Path(), bundle=bundle, progress=progress
        )
    write_target(path, target)
    return target


def predicted_by(ctx: click.Context, target: Target | None) -> Target | None:
    """The target that was named, or else this machine as it was measured, if it was."""
    if target is not None:
        return target
    try:
        known = all_targets(targets_file(ctx))
    except TargetError as error:
        _log.warning("%s", error)
        return None
    return next((target for target in known if target.name == LOCAL), None)


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
