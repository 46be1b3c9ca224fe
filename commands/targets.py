"""`targets`: the devices that are known, and this machine measured."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import TargetError
from ..targets import LOCAL, Target, all_targets, check_name, find_target
from .arguments import JSON, targets_file
from .console import ProgressDisplay, print_facts, print_json, print_table


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
