"""The error of experts by method and number of tokens, on tokens held out.

    python bench/quality/expert_methods.py model/demo --data TEXT

For every fourth expert of every other layer: the relative error of its weighted output, root mean
square over experts, int4 in blocks of 32. `own`: GPTQ without the layer's moments.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch

from pocketmoe.bundle.pages import PageFormat
from pocketmoe.calibration.stream import LayerStream
from pocketmoe.calibration.text import read_sequences
from pocketmoe.commands.console import print_table
from pocketmoe.compiler.calibrated import methods as expert_methods
from pocketmoe.compiler.calibrated.methods import (
    METHODS,
    LayerMoments,
    inner_of,
    layer_moments,
    quantize_expert,
)
from pocketmoe.compiler.quantize import quantize_matrix
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.module import GatedFFN
from pocketmoe.runtime.generation.text import load_tokenizer

BLOCK = 32
COUNTS = (16, 64, 128, 512)


@torch.no_grad()
def errors(
    expert: GatedFFN,
    x: torch.Tensor,
    weights: torch.Tensor,
    held_out: tuple[torch.Tensor, torch.Tensor],
    layer: LayerMoments,
    page: PageFormat,
) -> dict[str, float]:
    """Squared relative errors by method."""
    tokens, shares = held_out
    expected = expert(tokens) * shares[:, None]
    found = {}

    def note(name: str, module: GatedFFN) -> None:
        error = module(tokens) * shares[:, None] - expected
        found[name] = float(error.square().sum() / expected.square().sum())

    rounded = copy.deepcopy(expert)
    for part in (rounded.gate, rounded.up, rounded.down):
        exact = quantize_matrix(part.weight.numpy(), 4, BLOCK).dequantized()
        part.weight.copy_(torch.from_numpy(exact))
    note("rounded", rounded)
    for method in METHODS:
        module = copy.deepcopy(expert)
        quantize_expert(module, x, inner_of(module, x), weights, layer, page, method, signed=True)
        note(method, module)
    module, drawn = copy.deepcopy(expert), expert_methods._drawn
    expert_methods._drawn = lambda own, prior, tokens: own
    try:
        quantize_expert(module, x, inner_of(module, x), weights, layer, page, "gptq", signed=True)
    finally:
        expert_methods._drawn = drawn
    note("own", module)
    return found


@click.command(help="Print the error of experts by method and number of tokens.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=32768, show_default=True, type=click.IntRange(1024))
def main(checkpoint: Path, data: Path, tokens: int) -> None:
    source = Checkpoint(checkpoint)
    spec, tokenizer = source.spec, load_tokenizer(source.tokenizer_path)
    text = read_sequences(data, tokenizer, tokens=tokens, seq_len=256, seed=1)
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        stream = LayerStream(source, spec, text.ids, Path(folder))
        stream.embed()
        while stream.layer < spec.num_hidden_layers:
            entered = stream.enter()
            if entered is None:
                continue
            layer = layer_moments(entered.x)
            width = spec.layers[entered.layer].intermediate_size
            page = PageFormat(
                "int4", BLOCK, spec.hidden_size, width, spec.expert_bias, spec.activation
            )
            for expert in range(int(entered.experts.max()) + 1):
                rows, shares = entered.tokens_of(expert)
                module = stream.load_expert(expert)
                with torch.no_grad():
                    out = module(torch.from_numpy(entered.x[rows])).numpy()
                stream.add(rows, out * shares[:, None])
                if expert % 4 or entered.layer % 2:
                    continue
                order = np.random.default_rng(0).permutation(len(rows))
                half = len(rows) // 2
                x, weights = torch.from_numpy(entered.x[rows]), torch.from_numpy(shares)
                held_out = x[order[half:]], weights[order[half:]]
                for count in (count for count in COUNTS if count <= half):
                    part = order[:count]
                    made = errors(module, x[part], weights[part], held_out, layer, page)
                    found[count].append(made)
            stream.leave()
    names = ["rounded", "rtn", "awq", "own", "gptq"]
    table = [
        (
            str(count),
            str(len(rows)),
            *(f"{np.mean([r[n] for r in rows]) ** 0.5:.4f}" for n in names),
        )
        for count, rows in sorted(found.items())
    ]
    print_table("relative error of experts", ["tokens", "experts", *names], table)


if __name__ == "__main__":
    main()
