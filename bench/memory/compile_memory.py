"""Memory and time of compiling checkpoints with the shapes of published models.

    python bench/memory/compile_memory.py -o build/compile_memory.json

Each shape is cut to 2 layers, at least one of them MoE, and filled with random numbers in the
encoding that it is published in. It is compiled for the CPU at the default precision by a process
of its own, which reads the checkpoint from the disk. Prints a Markdown table. Shapes that the
output file has already are not measured again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from pocketmoe.bench.lib.child_process import measure
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.lib.stored_tensors import quantization, stored_tensors
from pocketmoe.bench.make_checkpoint import make_checkpoint
from pocketmoe.bench.memory.memory_limit import drop_from_page_cache
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.sizes import format_size

POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))
HEADINGS = ("shape", "pages of a layer", "checkpoint", "peak", "anonymous", "time", "bundle")


@dataclass(frozen=True)
class Measurement:
    """Bytes and seconds. encoding: of the checkpoint.

    pages: experts of a MoE layer, or 1 for a dense one; hidden_size, intermediate_size: of an
    expert. resident, anonymous: see `child_process.Usage`.
    """

    shape: str
    layers: int
    encoding: str
    pages: int
    hidden_size: int
    intermediate_size: int
    checkpoint_bytes: int
    resident: int
    anonymous: int
    seconds: float
    bundle_bytes: int


def measure_compile(shape: str, layers: int, work: Path) -> Measurement:
    """Makes the checkpoint in a folder below `work`, which is removed afterwards.

    Raises:
        InputError: there is too little room, or the compiler failed.
    """
    config = with_layers(SHAPES[shape], layers)
    work.mkdir(parents=True, exist_ok=True)
    needed = 2 * sum(tensor.nbytes for tensor in stored_tensors(config))
    if shutil.disk_usage(work).free < needed:
        raise InputError(f"{work} needs {format_size(needed)} of room for {shape}; give --work")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
        nbytes = make_checkpoint(config, checkpoint)
        os.sync()
        drop_from_page_cache(checkpoint)
        command = [POCKETMOE, "compile", str(checkpoint), "--target", "cpu", "-o", str(bundle)]
        usage = measure(command)
        if usage.exit_code != 0:
            raise InputError(f"{shape}: compiling ended with {usage.exit_code}: {usage.error}")
        spec = Checkpoint(checkpoint).spec
        paged = spec.layers[spec.paged_layers[-1]]
        return Measurement(
            shape=shape,
            layers=layers,
            encoding=quantization(config) or "bf16",
            pages=paged.router.num_experts if paged.router else 0,
            hidden_size=spec.hidden_size,
            intermediate_size=paged.intermediate_size,
            checkpoint_bytes=nbytes,
            resident=usage.resident,
            anonymous=usage.anonymous,
            seconds=usage.seconds,
            bundle_bytes=sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
        )


def read_measurements(path: Path | None, layers: int) -> dict[str, Measurement]:
    """Those with so many layers that an earlier run has written."""
    if path is None or not path.exists():
        return {}
    found = [Measurement(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
    return {item.shape: item for item in found if item.layers == layers}


def row(item: Measurement) -> str:
    cells = (
        item.shape,
        f"{item.pages} of {item.hidden_size} × {item.intermediate_size}",
        f"{format_size(item.checkpoint_bytes)} {item.encoding}",
        format_size(item.resident),
        format_size(item.anonymous),
        f"{item.seconds:.0f} s",
        format_size(item.bundle_bytes),
    )
    return f"| {' | '.join(cells)} |"


@click.command(help="Measure the compiler on published shapes cut to a few layers.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", default=2, show_default=True, type=click.IntRange(1))
@click.option(
    "--work",
    default="build",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="where the checkpoints and bundles are put for a while",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON, read and written")
def main(shapes: tuple[str, ...], layers: int, work: Path, output: Path | None) -> None:
    failed = False
    try:
        known = read_measurements(output, layers)
        for shape in shapes or SHAPES:
            if shape in known:
                continue
            click.echo(shape, err=True)
            try:
                known[shape] = measure_compile(shape, layers, work)
            except PocketMoEError as error:
                failed = True
                click.echo(f"Error: {error}", err=True)
                continue
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps([asdict(item) for item in known.values()], indent=2)
                output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for shape in SHAPES:
        if shape in known:
            click.echo(row(known[shape]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
