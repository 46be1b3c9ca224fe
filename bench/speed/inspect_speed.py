"""Time, memory and bytes read of `pocketmoe inspect` on checkpoints of published size.

    python bench/speed/inspect_speed.py --shape deepseek-v3

The checkpoints are hollow: all headers, sizes and shards, and holes for weights, so that 642 GiB
take 21 MiB of the disk. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from pocketmoe.bench.lib.child_process import measure
from pocketmoe.bench.lib.shapes import SHAPES
from pocketmoe.bench.lib.stored_tensors import stored_tensors
from pocketmoe.bench.make_checkpoint import make_checkpoint
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.sizes import format_size

POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))
HEADINGS = ("shape", "checkpoint", "files", "tensors", "time", "peak", "read")


def measure_inspect(shape: str, folder: Path) -> str:
    """One row of the table.

    Raises:
        InputError: `inspect` failed.
    """
    nbytes = make_checkpoint(SHAPES[shape], folder, hollow=True)
    usage = measure([POCKETMOE, "inspect", str(folder), "--json"])
    if usage.exit_code != 0:
        raise InputError(f"{shape}: inspect ended with {usage.exit_code}: {usage.error}")
    cells = (
        shape,
        format_size(nbytes),
        str(len(list(folder.glob("*.safetensors")))),
        str(len(stored_tensors(SHAPES[shape]))),
        f"{usage.seconds:.1f} s",
        format_size(usage.resident),
        format_size(usage.read),
    )
    return f"| {' | '.join(cells)} |"


@click.command(help="Measure `pocketmoe inspect` on hollow checkpoints.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)))
def main(shapes: tuple[str, ...]) -> None:
    rows = []
    try:
        for shape in shapes or SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure_inspect(shape, Path(folder)))
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    click.echo("\n".join(rows))


if __name__ == "__main__":
    main()
