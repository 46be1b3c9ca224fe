"""The command `report`: one page about a calibration or a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ..sizes import format_size
from ..targets import Target
from .arguments import TARGET, predicted_by
from .console import ProgressDisplay


@click.command()
@click.argument("path", metavar="CAL|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), required=True,
    help="The HTML file to make; an earlier report is replaced.",
)  # fmt: skip
@click.option(
    "--calibration", metavar="CAL", type=click.Path(path_type=Path),
    help="With a bundle: the calibration of its model, for the use of its experts.",
)  # fmt: skip
@click.option(
    "--target", metavar="NAME", type=TARGET,
    help="With a bundle: the device whose speed is predicted.  [default: local, if it was "
    "measured]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE whatever it is.")
@click.pass_context
def report(
    ctx: click.Context,
    path: Path,
    output: Path,
    calibration: Path | None,
    target: Target | None,
    force: bool,
) -> None:
    """Make one HTML page of a calibration, or of a bundle.

    How experts are used, stored and hit in a cache, and how fast that will be. The page needs
    nothing but a browser.
    """
    from ..report.facts import gather_report
    from ..report.page import FIRST_LINE, render_report
    from ..runtime.whole_file import WholeFile

    file = WholeFile(output, FIRST_LINE + "\n", force=force)  # before the seconds that it takes
    try:
        measured = predicted_by(ctx, None) if target is None else None
        with ProgressDisplay("tokens") as progress:
            facts = gather_report(
                path, calibration=calibration, target=target, measured=measured, progress=progress
            )
        file.write(render_report(facts))
    except BaseException:
        file.discard()
        raise
    file.finish()
    click.echo(f"{output}: {format_size(output.stat().st_size)}, of {path}")
