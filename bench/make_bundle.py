"""Writes a bundle with the shape of a published model and random weights, without a checkpoint.

    python bench/make_bundle.py --shape qwen3-30b-a3b --precision int4 -o build/qwen3-30b-a3b

It is a bundle like those of `pocketmoe compile`, by the same functions, but that the experts'
quantized numbers are drawn and not computed (random_source.py): 17 GB in a minute or two, where a
checkpoint would take 61 GB.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pocketmoe.bench.lib.byte_tokenizer import byte_tokenizer
from pocketmoe.bench.lib.random_source import NUMBERS, RandomSource
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bundle.manifest import TOKENIZER, Manifest, Precision, write_manifest
from pocketmoe.commands.console import ProgressDisplay
from pocketmoe.compiler.compile import (
    expert_counts,
    hash_files,
    toolchain,
    write_backbone,
    write_embedding,
    write_graphs,
)
from pocketmoe.compiler.experts.pages import write_expert_layer
from pocketmoe.compiler.footprint import page_formats
from pocketmoe.compiler.graphs.trace import check_attention
from pocketmoe.compiler.output import building, refuse_existing
from pocketmoe.compiler.precision import check_blocks, parse_precision
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.model.families import find_family
from pocketmoe.progress import Progress, Silent
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target

_SILENT = Silent()


def make_bundle(
    config: dict[str, Any],
    out: Path,
    *,
    precision: Precision,
    seed: int = 0,
    tokenizer: bytes | None = None,
    force: bool = False,
    numbers: int = NUMBERS,
    gpu_context: int | None = None,
    progress: Progress = _SILENT,
) -> Manifest:
    """Writes the bundle of a model with this config.json to `out`, where it is once it is whole.

    gpu_context: with graphs for GPUs, for so many tokens.

    tokenizer: a tokenizer.json; without it, one token per byte. numbers: random ones to cut all
    weights from.

    Raises:
        ConfigError: a value is not supported, or a matrix is not made of whole blocks.
        InputError: `out` exists, or the disk has no room for the pages.
    """
    refuse_existing(out, force)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    spec = find_family(plain).read_config(plain)
    check_attention(spec)
    check_blocks(spec, precision)
    formats, counts = page_formats(spec, precision), expert_counts(spec)
    paged = sum(page.nbytes * counts[layer] for layer, page in formats.items())
    source = RandomSource(spec, seed, numbers)
    with building(out, force) as root:
        if shutil.disk_usage(root).free < paged:
            raise InputError(f"{out} needs {format_size(paged)} of room; choose another -o")
        segments, backbone_bytes = write_backbone(root, source, spec, precision, progress)
        graphs = None
        if gpu_context is not None:
            graphs = write_graphs(
                root, source, spec, precision, context=gpu_context, fp32_products=True,
                progress=progress,
            )  # fmt: skip
        progress.stage("experts", paged)
        pages = source.pages(precision)
        experts = tuple(
            write_expert_layer(
                root, layer, [page_format] * counts[layer],
                pages.layer(layer, counts[layer], page_format), progress.advance,
            )
            for layer, page_format in formats.items()
        )  # fmt: skip
        dtype = write_embedding(root, source, precision)
        (root / TOKENIZER).write_bytes(tokenizer or byte_tokenizer().to_str().encode())
        manifest = Manifest(
            spec=spec,
            target="cpu",
            precision=precision,
            embedding_dtype=dtype,
            segments=segments,
            experts=experts,
            backbone_bytes=backbone_bytes,
            toolchain=toolchain(),
            graphs=graphs,
        )
        manifest = replace(manifest, files=hash_files(root, progress))
        write_manifest(root, manifest)
    return manifest


@click.command(help="Write a bundle with the shape of a published model and random weights.")
@click.option("--shape", required=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", type=click.IntRange(1), help="fewer or more layers than the model has")
@click.option(
    "--precision", multiple=True,
    help="as in `pocketmoe compile`  [default: experts=int4,backbone=int8,head=int8]",
)  # fmt: skip
@click.option("--block", default="64", show_default=True, type=click.Choice(["32", "64", "128"]))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a tokenizer.json to copy; without it, one token per byte",
)
@click.option(
    "--gpu-context", type=click.IntRange(1),
    help="write graphs for GPUs too, for so many tokens",
)  # fmt: skip
@click.option("--force", is_flag=True, help="replace the output if it is a bundle")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path))
def main(
    shape: str, layers: int | None, precision: tuple[str, ...], block: str, seed: int,
    tokenizer: Path | None, gpu_context: int | None, force: bool, out: Path,
) -> None:  # fmt: skip
    config = with_layers(SHAPES[shape], layers) if layers else SHAPES[shape]
    began = time.monotonic()
    try:
        parsed = parse_precision(precision, int(block), find_target("cpu"))
        with ProgressDisplay() as progress:
            manifest = make_bundle(
                config, out, precision=parsed, seed=seed, force=force, progress=progress,
                tokenizer=tokenizer.read_bytes() if tokenizer else None, gpu_context=gpu_context,
            )  # fmt: skip
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{out}: {format_size(manifest.total_bytes)}, {manifest.num_pages} experts of "
        f"{format_size(manifest.page_bytes)}, in {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
