"""Worth of calibration on held-out text: methods, few tokens, bits per expert, and others'.

    python bench/quality/calibrated_quality.py model/demo

The calibration text is what the demo model was trained on (the standard library's sources, but for
every twentieth file), the text it is judged by is what was held out. Backbone and head are int8,
experts int4 in blocks of 32, unless the row says otherwise. HQQ and k-quant are those of
onnxruntime.quantization, with zero points, so with more bits: their numbers are put into experts in
fp16. Prints a Markdown table, each mean KL beside the one of rounding to nearest, and one of what
each layer's experts add of error by themselves, after calibration on few tokens.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pocketmoe.bench.quality.layer_errors import layer_errors
from pocketmoe.bench.quality.quality_reference import Yardstick, read_tokens
from pocketmoe.calibration.calibrate import calibrate
from pocketmoe.calibration.record import read_record
from pocketmoe.compiler.calibrated.layers import Calibration
from pocketmoe.compiler.calibrated.methods import Method
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import SINGLE_FILE, Checkpoint
from pocketmoe.model.parameters import expert_shapes
from pocketmoe.model.train import corpus
from pocketmoe.targets import find_target

CPU = find_target("cpu")
FEW = 16  # times fewer tokens
BLOCK = 32


def hqq(weight: np.ndarray) -> np.ndarray:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        HQQWeightOnlyQuantConfig,
        HQQWeightOnlyQuantizer,
    )

    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4, axis=1))
    values, scales, zeros = quantizer.quantize_internal(
        torch.from_numpy(weight), bits=4, group_size=BLOCK, round_zero=False, axis=1
    )
    spread = [part.repeat_interleave(BLOCK, dim=1) for part in (scales, zeros)]
    return ((values - spread[1]) * spread[0]).numpy()


def k_quant(weight: np.ndarray) -> np.ndarray:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    values, scales, zeros = quant_tensor_k_quant_cpu(weight, 4, BLOCK)
    return ((values.astype(np.float32) - zeros) * scales).reshape(weight.shape).astype(np.float32)


def with_experts(checkpoint: Path, change: Callable[[np.ndarray], np.ndarray], out: Path) -> Path:
    """A copy of the checkpoint whose experts are changed, in fp32."""
    source = Checkpoint(checkpoint)
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / SINGLE_FILE)
    for name in _expert_matrices(source):
        location = source.family.locate(name)
        if location.expert is not None:
            raise click.ClickException("experts that are stored in one tensor are not changed here")
        weight = tensors[location.name].float().numpy()
        tensors[location.name] = torch.from_numpy(np.ascontiguousarray(change(weight)))
    save_file(tensors, out / SINGLE_FILE)
    return out


def _expert_matrices(source: Checkpoint) -> Iterator[str]:
    spec = source.spec
    for layer in spec.paged_layers:
        router = spec.layers[layer].router
        for expert in range(router.num_experts if router is not None else 0):
            shapes = expert_shapes(spec, layer, expert)
            yield from (name for name, shape in shapes.items() if len(shape) == 2)


class Quality:
    """Compiles rows of the table and holds them against the checkpoint."""

    def __init__(self, checkpoint: Path, ids: list[int], window: int, folder: Path):
        self._checkpoint, self._folder = checkpoint, folder
        self._yardstick = Yardstick(checkpoint, ids, window, folder)
        self._kept: dict[str, Path] = {}
        self._rounded = 0.0
        click.echo("| Experts | bits | tokens | Perplexity | Change | KL, mean | of rounding |")
        click.echo("|---|---|---|---|---|---|---|")

    def row(
        self,
        name: str,
        *,
        bits: str,
        experts: str = "int4",
        block: int = BLOCK,
        record: Path | None = None,
        method: Method = "gptq",
        average: float | None = None,
        checkpoint: Path | None = None,
        keep: str | None = None,
    ) -> None:
        """keep: a name in the table of layers."""
        out = self._folder / (keep or "bundle")
        if keep is not None:
            self._kept[keep] = out
        precision = parse_precision([f"experts={experts},backbone=int8,head=int8"], block, CPU)
        calibration, tokens = None, ""
        if record is not None:
            read = read_record(record)
            calibration, tokens = (
                Calibration(record, read, method, signed=True),
                f"{read.ids.size:,}",
            )
        compile_bundle(
            checkpoint or self._checkpoint, out, target=CPU, precision=precision,
            calibration=calibration, bits=average, force=True,
        )  # fmt: skip
        result = self._yardstick.measure(out)
        kl = float(result.kl_mean or 0.0)
        self._rounded = self._rounded or kl
        change = result.perplexity / float(result.reference_perplexity or 1.0) - 1
        click.echo(
            f"| {name} | {bits} | {tokens} | {result.perplexity:.4f} | {change:+.3%} | {kl:.2e} | "
            f"{kl / self._rounded:.2f} |"
        )

    def layers(self) -> None:
        """A table of the bundles that were kept, held against the first of them."""
        names, work = list(self._kept), self._folder / "layers"
        work.mkdir()
        source = Checkpoint(self._checkpoint)
        found = layer_errors(source, self._yardstick.windows, self._kept, work)
        click.echo(f"\n| Layer | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        for layer, errors in found.items():
            cells = " | ".join(f"{errors[name]:.2%}" for name in names)
            click.echo(f"| {layer} | {cells} |")
        click.echo()
        for name in names[1:]:
            worse = [str(layer) for layer, item in found.items() if item[name] > item[names[0]]]
            said = f"worse on layers {', '.join(worse)}" if worse else "worse on no layer"
            click.echo(f"{name}: {said} than {names[0]}")


@click.command(help="Print what calibration is worth on held-out text.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", default=8192, show_default=True, type=click.IntRange(2))
@click.option("--calibration-tokens", default=65536, show_default=True, type=click.IntRange(1024))
@click.option("--window", default=512, show_default=True, type=click.IntRange(2))
def main(checkpoint: Path, tokens: int, calibration_tokens: int, window: int) -> None:
    try:
        source = Checkpoint(checkpoint)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            text = folder / "training.txt"
            training = corpus.read_corpus(corpus.standard_library()).training
            text.write_text("\n".join(training), encoding="utf-8")
            many, few = folder / "many", folder / "few"
            for out, count in ((many, calibration_tokens), (few, calibration_tokens // FEW)):
                calibrate(checkpoint, text, out, tokens=count, seq_len=min(512, count))
            quality = Quality(checkpoint, read_tokens(source, None, tokens), window, folder)
            quality.row("rounded to nearest", bits="4.5", keep="rounded to nearest")
            quality.row("rtn, weighted clips", bits="4.5", record=many, method="rtn")
            quality.row("awq", bits="4.5", record=many, method="awq")
            quality.row(
                "gptq", bits="4.5", record=many, keep=f"gptq, {calibration_tokens:,} tokens"
            )
            fewer = calibration_tokens // FEW
            quality.row("gptq", bits="4.5", record=few, keep=f"gptq, {fewer:,} tokens")
            for label, change in (("HQQ", hqq), ("k-quant", k_quant)):
                changed = with_experts(checkpoint, change, folder / label)
                quality.row(
                    f"{label}, of onnxruntime", bits="> 4.5", experts="fp16", checkpoint=changed
                )
            quality.row("gptq, blocks of 128", bits="4.125", block=128, record=many)
            quality.row("gptq, blocks of 64", bits="4.25", block=64, record=many)
            quality.row("gptq, --bits 4.25", bits="4.25", block=64, record=many, average=4.25)
            quality.layers()
    except PocketMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
