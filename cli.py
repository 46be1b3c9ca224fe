"""The command `pocketmoe`."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click

from . import __version__
from .commands.arguments import AGAINST, BUNDLE, JSON
from .commands.calibrate import calibrate_command
from .commands.chat.command import chat
from .commands.compile import build, compile_command
from .commands.console import ProgressDisplay, print_facts, print_json, print_table, start_logging
from .commands.entry import CommandLine
from .commands.eval import eval_command
from .commands.export import export_command
from .commands.report import report
from .commands.run import bench, replay, run
from .commands.serve import serve
from .commands.targets import plan, targets
from .errors import BundleError
from .runtime.cpu.installed import find_onnxruntime
from .sizes import format_size


@click.group(
    cls=CommandLine,
    invoke_without_command=True,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="pocketmoe %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
@click.pass_context
def main(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """Compile a Mixture-of-Experts model for a device too small for it, and run it there."""
    # ONNX Runtime 1.32 collects usage data unless told otherwise before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    ctx.obj = config_folder() / "targets.json"
    start_logging(verbose=verbose)
    find_onnxruntime()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def config_folder() -> Path:
    """Where the user's files are: $POCKETMOE_CONFIG, or pocketmoe below the XDG folder."""
    if chosen := os.environ.get("POCKETMOE_CONFIG"):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.config")) / "pocketmoe"


@main.command()
@click.argument("path", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@JSON
def inspect(path: Path, as_json: bool) -> None:
    """Show what a model or a bundle is made of."""
    from .analysis.inspection.engine_facts import (
        ENGINE_COLUMNS,
        SET_COLUMNS,
        engine_rows,
        engine_set_rows,
        names_of,
    )
    from .analysis.inspection.inspect import BundleFacts, inspect_path
    from .tables.model import fact_rows, size_rows

    facts = inspect_path(path)
    if as_json:
        print_json(facts)
        return
    print_facts(f"{facts.kind} {path}", fact_rows(facts))
    precisions = [sizes.precision for sizes in facts.model.sizes]
    title = f"bytes per precision (blocks of {facts.model.block_size})"
    print_table(title, ["", *precisions], size_rows(facts.model))
    if isinstance(facts, BundleFacts) and facts.engines:
        print_table("engine sets", SET_COLUMNS, engine_set_rows(facts.engines))
        for item in {item.engines: item for item in facts.engines}.values():
            print_table(f"engines for {names_of(item, facts.engines)}", ENGINE_COLUMNS,
                        engine_rows(item))  # fmt: skip


main.add_command(targets)
main.add_command(plan)


main.add_command(calibrate_command)
main.add_command(compile_command)
main.add_command(build)


@main.command()
@BUNDLE
@AGAINST
@JSON
def verify(bundle: Path, against: Path | None, as_json: bool) -> None:
    """Check a bundle's hashes, and its numbers."""
    from .bundle.damage import find_damage, remedy_for
    from .bundle.manifest import read_manifest

    manifest = read_manifest(bundle)
    with ProgressDisplay() as progress:
        progress.stage("hash", manifest.total_bytes)
        damaged = find_damage(bundle, manifest, progress.advance)
        differences = None
        if against is not None and not damaged:
            from .analysis.evaluation.verify import compare_with_checkpoint

            progress.stage(f"compare with {against}", 0)
            differences = compare_with_checkpoint(bundle, against)
    named = [f"{name} ({part})" if part else name for name, part in damaged.items()]
    if as_json:
        print_json({
            "bundle": str(bundle), "files": len(manifest.files), "bytes": manifest.total_bytes,
            "damaged": named, "differences": differences,
        })  # fmt: skip
    if damaged:
        remedy = remedy_for(bundle, manifest, damaged)
        raise BundleError(f"{bundle} is damaged: {', '.join(named)}; {remedy}")
    if as_json:
        return
    size = format_size(manifest.total_bytes)
    click.echo(f"{bundle}: {len(manifest.files)} files, {size}, every hash is right")
    if differences is not None:
        rows = [(d.where, f"{d.relative:.2e}", f"{d.maximum:.2e}") for d in differences]
        print_table(f"difference from {against}", ["", "relative", "largest"], rows)
        wrong = [d.where for d in differences if not math.isfinite(d.relative)]
        if wrong:
            raise BundleError(f"{bundle} computes numbers that are not finite: {wrong[0]}")


main.add_command(run)
main.add_command(chat)
main.add_command(serve)
main.add_command(replay)
main.add_command(eval_command)
main.add_command(bench)
main.add_command(report)
main.add_command(export_command)
