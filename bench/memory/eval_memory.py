"""Memory and time of `pocketmoe eval --against` on checkpoints with the shapes of published models.

    python bench/memory/eval_memory.py --shape olmoe-1b-7b --layers 2 --layers 4
    python bench/memory/eval_memory.py --bundle build/olmoe --checkpoint build/olmoe-1b-7b

A shape is cut to so many layers, filled with random numbers, compiled for the CPU at the default
precision, and compared with its checkpoint on bytes of text, by a process of its own that reads
both from the disk. Prints a Markdown table: what a peak is to be held against is the checkpoint as
a float32 module, one layer of it, and the hidden states.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from pocketmoe.bench.lib.child_process import measure
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.lib.stored_tensors import stored_tensors
from pocketmoe.bench.make_checkpoint import make_checkpoint
from pocketmoe.bench.memory.memory_limit import drop_from_page_cache
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.model.parameters import count_parameters, expert_shapes, layer_shapes
from pocketmoe.model.spec import ModelSpec
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target

POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))
HEADINGS = (
    "model", "layers", "in float32", "a layer of it", "an expert", "hidden states",
    "memory budget", "peak", "anonymous", "time",
)  # fmt: skip
_HEADROOM = 64 << 20  # of the budget, beyond the smallest that works


def elements(shapes: dict[str, tuple[int, ...]]) -> int:
    count = 0
    for shape in shapes.values():
        size = 1
        for length in shape:
            size *= length
        count += size
    return count


def layer_bytes(spec: ModelSpec) -> tuple[int, int]:
    """Of the largest layer, its experts included, and of the largest expert, in float32."""
    layers, experts = [], [0]
    for index, rule in enumerate(spec.layers):
        count = rule.router.num_experts if rule.router is not None else 0
        expert = elements(expert_shapes(spec, index, 0)) if count else 0
        layers.append(elements(layer_shapes(spec, index)) + count * expert)
        experts.append(expert)
    return 4 * max(layers), 4 * max(experts)


def row(name: str, bundle: Path, checkpoint: Path, tokens: int, folder: Path) -> str:
    """Measures one bundle against its checkpoint.

    Raises:
        InputError: the command failed.
    """
    text = folder / "text.txt"
    text.write_text("The same words, over and over.\n" * (tokens // 30 + 100), encoding="ascii")
    with open_bundle(bundle, backend="cpu", context=512) as session:
        budget = session.plan.smallest + _HEADROOM
    for path in (bundle, checkpoint):
        drop_from_page_cache(path)
    usage = measure([
        POCKETMOE, "eval", str(bundle), "--data", str(text), "--against", str(checkpoint),
        "--tokens", str(tokens), "--memory-budget", str(budget), "--backend", "cpu",
        "--work", str(folder),
    ])  # fmt: skip
    if usage.exit_code != 0:
        raise InputError(f"{name}: eval ended with {usage.exit_code}: {usage.error}")
    spec = read_manifest(bundle).spec
    count = count_parameters(spec)
    whole = 4 * (count.embedding + count.backbone + count.head + count.experts)
    layer, expert = layer_bytes(spec)
    sizes = (whole, layer, expert, 3 * 4 * tokens * spec.hidden_size, budget, usage.resident,
             usage.anonymous)  # fmt: skip
    cells = (name, str(spec.num_hidden_layers), *map(format_size, sizes), f"{usage.seconds:.0f} s")
    return f"| {' | '.join(cells)} |"


def made(shape: str, layers: int, folder: Path) -> tuple[Path, Path]:
    """A bundle of a random checkpoint, and the checkpoint."""
    config = with_layers(SHAPES[shape], layers)
    needed = 2 * sum(tensor.nbytes for tensor in stored_tensors(config))
    if shutil.disk_usage(folder).free < needed:
        raise InputError(f"{folder} needs {format_size(needed)} of room for {shape}; give --work")
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    make_checkpoint(config, checkpoint)
    target = find_target("cpu")
    compile_bundle(
        checkpoint, bundle, target=target, precision=parse_precision([], 64, target), force=True
    )
    os.sync()
    return bundle, checkpoint


def rows(
    shapes: tuple[str, ...], layers: tuple[int, ...], tokens: int, work: Path
) -> Iterator[str]:
    for shape in shapes:
        for count in layers:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                bundle, checkpoint = made(shape, count, Path(folder))
                yield row(shape, bundle, checkpoint, tokens, Path(folder))


@click.command(help="Measure the memory that comparing a bundle with its checkpoint takes.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", multiple=True, default=(2, 4), show_default=True, type=click.IntRange(1))
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", default=1024, show_default=True, type=click.IntRange(512))
@click.option(
    "--work",
    default="build",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="where checkpoints, bundles and hidden states are put for a while",
)
def main(
    shapes: tuple[str, ...],
    layers: tuple[int, ...],
    bundle: Path | None,
    checkpoint: Path | None,
    tokens: int,
    work: Path,
) -> None:
    if (bundle is None) != (checkpoint is None) or (bundle is None) == (not shapes):
        raise click.UsageError("give --shape, or --bundle and --checkpoint")
    try:
        work.mkdir(parents=True, exist_ok=True)
        click.echo(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
        if bundle is not None and checkpoint is not None:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                click.echo(row(checkpoint.name, bundle, checkpoint, tokens, Path(folder)))
            return
        for line in rows(shapes, layers, tokens, work):
            click.echo(line)
    except (OSError, PocketMoEError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
