"""The command that runs text through a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from ..sizes import format_size
from .arguments import POSITIVE
from .console import ProgressDisplay


@click.command("calibrate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="FILE|DIR", type=click.Path(path_type=Path), required=True,
    help='Text of the kind that the model is for: a text file, JSON lines with a "text", or a '
    "directory of such files.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="CAL", type=click.Path(path_type=Path), required=True,
    help="The directory to make.",
)  # fmt: skip
@click.option("--tokens", metavar="N", type=POSITIVE, default=65536, help="How much of the text.")
@click.option("--seq-len", metavar="N", type=POSITIVE, default=512, help="Tokens of a sequence.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Which part of the text."
)
@click.option(
    "--all-experts", is_flag=True,
    help="Feed every token to every expert, not only to those that it is routed to.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
def calibrate_command(
    checkpoint: Path,
    data: Path,
    output: Path,
    tokens: int,
    seq_len: int,
    seed: int,
    all_experts: bool,
    resume: bool,
) -> None:
    """Run text through a checkpoint, layer by layer, and keep what its experts see."""
    from ..calibration.calibrate import calibrate

    with ProgressDisplay("tokens") as progress:
        record = calibrate(
            checkpoint, data, output, tokens=tokens, seq_len=seq_len, seed=seed,
            all_experts=all_experts, resume=resume, progress=progress,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in output.iterdir())
    unused = sum(len(layer.unused) for layer in record.layers)
    idle = f", {unused} experts without a token" if unused else ""
    click.echo(
        f"{output}: {record.provenance.tokens:,} tokens, {len(record.layers)} layers with experts"
        f"{idle}, {format_size(size)}"
    )
