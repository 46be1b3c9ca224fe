"""Writes a random checkpoint with the shape and the encoding of a published model.

    python bench/make_checkpoint.py --shape olmoe-1b-7b -o build/olmoe-1b-7b
    python bench/make_checkpoint.py --shape deepseek-v3 --hollow -o build/deepseek-v3

The weights are drawn from one block of normal numbers (std 0.02), read at another offset and with
another sign for each tensor: quick, and as hard to quantize as independent ones. Norms are 1.
Hollow files have the right headers and sizes and hold zeros that take no room on the disk.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pocketmoe.bench.lib.byte_tokenizer import byte_tokenizer
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.lib.stored_tensors import PlannedTensor, RandomWeights, stored_tensors
from pocketmoe.errors import PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import INDEX_FILE

SHARD_BYTES = 4_250_000_000  # makes 163 of DeepSeek-V3, as published


def split(tensors: list[PlannedTensor], limit: int) -> Iterator[list[PlannedTensor]]:
    """Consecutive shards of at most `limit` bytes."""
    shard: list[PlannedTensor] = []
    filled = 0
    for tensor in tensors:
        if shard and filled + tensor.nbytes > limit:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += tensor.nbytes
    yield shard


def write_shard(
    path: Path, tensors: list[PlannedTensor], weights: RandomWeights | None, progress: Any
) -> None:
    """One safetensors file, tensor by tensor; a hollow one without weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if weights is None:
            file.truncate(file.tell() + offset)
            progress.update(offset)
        else:
            for tensor in tensors:
                weights.write(file, tensor)
                progress.update(tensor.nbytes)
    os.replace(temporary, path)


def make_checkpoint(
    config: dict[str, Any],
    out: Path,
    *,
    seed: int = 0,
    tokenizer: bytes | None = None,
    shard_bytes: int = SHARD_BYTES,
    hollow: bool = False,
) -> int:
    """Writes the checkpoint into an empty or new directory; returns the weights' bytes.

    tokenizer: a tokenizer.json; without it, one token per byte.
    """
    tensors = stored_tensors(config)
    total = sum(tensor.nbytes for tensor in tensors)
    out.mkdir(parents=True, exist_ok=True)
    shards = list(split(tensors, shard_bytes))
    weights = None if hollow else RandomWeights(seed)
    weight_map: dict[str, str] = {}
    with click.progressbar(
        length=total,
        label="weights",
        show_pos=False,
        update_min_steps=total // 200,
        file=sys.stderr,
    ) as progress:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_shard(out / name, shard, weights, progress)
            weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_bytes(tokenizer or byte_tokenizer().to_str().encode())
    # Last: without it the directory is no checkpoint.
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return total


@click.command(help="Write a random checkpoint with the shape of a published model.")
@click.option("--shape", required=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", type=click.IntRange(1), help="fewer or more layers than the model has")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a tokenizer.json to copy; without it, one token per byte",
)
@click.option("--shard-bytes", default=SHARD_BYTES, show_default=True, type=click.IntRange(1))
@click.option("--hollow", is_flag=True, help="headers and sizes alone, as sparse files")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path))
def main(
    shape: str, layers: int | None, seed: int, tokenizer: Path | None, shard_bytes: int,
    hollow: bool, out: Path,
) -> None:  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"{out} exists and is not an empty directory; remove it")
    config = with_layers(SHAPES[shape], layers) if layers else SHAPES[shape]
    text = tokenizer.read_bytes() if tokenizer else None
    try:
        total = make_checkpoint(
            config, out, seed=seed, tokenizer=text, shard_bytes=shard_bytes, hollow=hollow
        )
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {total / 1e9:.1f} GB in {len(list(out.glob('*.safetensors')))} shards")


if __name__ == "__main__":
    main()
