"""Writes a random bf16 checkpoint with the shape of a published model.

    python bench/make_checkpoint.py --shape olmoe-1b-7b -o build/olmoe-1b-7b

The weights are drawn from one block of normal numbers (std 0.02), read at another offset and with
another sign for each tensor: quick, and as hard to quantize as independent ones. Norms are 1.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pocketmoe.errors import PocketMoEError
from pocketmoe.model.checkpoint import INDEX_FILE
from pocketmoe.model.families import find_family
from pocketmoe.model.parameters import Shape, parameter_shapes

STD = 0.02
SHARD_BYTES = 4_000_000_000
BLOCK = 16_000_057  # numbers; prime, so that no row length divides it
ONE, SIGN = 0x3F80, 0x8000  # bfloat16

_COMMON: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False, "dtype": "bfloat16"}
SHAPES: dict[str, dict[str, Any]] = {
    # allenai/OLMoE-1B-7B-0924
    "olmoe-1b-7b": {
        **_COMMON, "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "clip_qkv": None,
        "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0, "attention_bias": False, "eos_token_id": 50279, "pad_token_id": 1,
    },
    # mistralai/Mixtral-8x7B-v0.1
    "mixtral-8x7b": {
        **_COMMON, "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
        "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0, "bos_token_id": 1, "eos_token_id": 2,
    },
    # Qwen/Qwen3-30B-A3B
    "qwen3-30b-a3b": {
        **_COMMON, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "use_sliding_window": False, "sliding_window": None, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645,
    },
}  # fmt: skip


class Weights:
    """An endless supply of normal bfloat16 numbers."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        normal = self._random.standard_normal(BLOCK, np.float32) * np.float32(STD)
        # Rounded to the nearest, ties away from zero.
        self._block = ((normal.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)

    def write(self, file: BinaryIO, shape: Shape) -> None:
        """One tensor; a vector is a norm's weight."""
        if len(shape) == 1:
            file.write(np.full(shape, ONE, np.uint16).tobytes())
            return
        left = int(np.prod(shape, dtype=np.int64))
        sign = np.uint16(SIGN * int(self._random.integers(2)))
        start = int(self._random.integers(BLOCK))
        while left:
            part = self._block[start : start + left] ^ sign
            file.write(part.tobytes())
            left -= len(part)
            start = 0


def size_of(shape: Shape) -> int:
    """Bytes of a bf16 tensor."""
    return 2 * int(np.prod(shape, dtype=np.int64))


def split(shapes: dict[str, Shape], limit: int) -> Iterator[dict[str, Shape]]:
    """Consecutive shards of at most `limit` bytes."""
    shard: dict[str, Shape] = {}
    filled = 0
    for name, shape in shapes.items():
        if shard and filled + size_of(shape) > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = shape
        filled += size_of(shape)
    yield shard


def write_shard(path: Path, shapes: dict[str, Shape], weights: Weights, progress: Any) -> None:
    """One safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + size_of(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            weights.write(file, shape)
            progress.update(size_of(shape))
    os.replace(temporary, path)


def byte_tokenizer() -> Tokenizer:
    """One token per byte; any text can be encoded with any vocabulary of 256 or more."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_checkpoint(
    config: dict[str, Any], seed: int, tokenizer: bytes, out: Path, shard_bytes: int
) -> int:
    """Writes the checkpoint into an empty or new directory; returns the weights' bytes."""
    family = find_family(config)
    spec = family.read_config(config)
    shapes = {family.tensor_name(name): shape for name, shape in parameter_shapes(spec).items()}
    total = sum(size_of(shape) for shape in shapes.values())
    out.mkdir(parents=True, exist_ok=True)
    shards = list(split(shapes, shard_bytes))
    weights = Weights(seed)
    weight_map: dict[str, str] = {}
    with click.progressbar(length=total, label="weights", show_pos=False) as progress:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_shard(out / name, shard, weights, progress)
            weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_bytes(tokenizer)
    # Last: without it the directory is no checkpoint.
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return total


@click.command(help="Write a random bf16 checkpoint with the shape of a published model.")
@click.option("--shape", required=True, type=click.Choice(list(SHAPES)))
@click.option("--layers", type=click.IntRange(1), help="fewer or more layers than the model has")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a tokenizer.json to copy; without it, one token per byte",
)
@click.option("--shard-bytes", default=SHARD_BYTES, show_default=True, type=click.IntRange(1))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path))
def main(
    shape: str, layers: int | None, seed: int, tokenizer: Path | None, shard_bytes: int, out: Path
) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"{out} exists and is not an empty directory; remove it")
    config = {**SHAPES[shape], "num_hidden_layers": layers or SHAPES[shape]["num_hidden_layers"]}
    text = tokenizer.read_bytes() if tokenizer else byte_tokenizer().to_str().encode()
    try:
        total = make_checkpoint(config, seed, text, out, shard_bytes)
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {total / 1e9:.1f} GB in {len(list(out.glob('*.safetensors')))} shards")


if __name__ == "__main__":
    main()
