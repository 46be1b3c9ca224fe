"""Cost of each precision on held-out text: perplexity, KL divergence, routes, layers' errors.

    python bench/quality/quality.py model/demo [--data held_out.txt]
    python bench/quality/quality.py --peer llama.cpp --llama-python ENV/bin/python \
        --llama-tools FOLDER

Without --data the text is what the demo model's training held out: every twentieth file of the
standard library.

Runs the text through the checkpoint in float32, layer by layer, compiles it at each precision, runs
the text through the bundle, and prints a Markdown table. With --peer it trains a model of its own,
once, and compares with llama.cpp: see bench/peers/peer_quality.py.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import click

from pocketmoe.analysis.evaluation.scores import Evaluation
from pocketmoe.bench.peers import peer_quality
from pocketmoe.bench.peers.llama_cpp_files import LlamaCpp
from pocketmoe.bench.quality.quality_reference import Yardstick, figure, read_tokens
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target

PRECISIONS = ("fp32", "fp16", "int8", "int4", "experts=int4,backbone=int8,head=int8")


HEADINGS = (
    "Precision", "Bundle", "Perplexity", "Change", "KL, mean", "KL, 99 %", "Top-1 agreement",
    "Changed experts", "Error, last layer",
)  # fmt: skip


def row(name: str, nbytes: int, result: Evaluation) -> str:
    """Figures, with their 95 % intervals."""
    cells = (
        name.replace(",", ", "),
        format_size(nbytes),
        f"{result.perplexity:.3f}",
        figure(result, "perplexity_ratio", lambda value: f"{value - 1:+.2%}"),
        figure(result, "kl_mean", lambda value: f"{value:.2e}"),
        figure(result, "kl_p99", lambda value: f"{value:.2e}"),
        figure(result, "top1_agreement", lambda value: f"{value:.2%}"),
        figure(result, "changed_experts", lambda value: f"{value:.2%}"),
        f"{result.layers[-1].input_error:.2%}" if result.layers else "",
    )
    return f"| {' | '.join(cells)} |"


def heading(result: Evaluation, block: int) -> str:
    rule = result.bootstrap
    return (
        f"{result.tokens} tokens in windows of {result.window}, blocks of {block}; the checkpoint "
        f"in float32 has perplexity {figure(result, 'reference_perplexity', '{:.3f}'.format)}. In "
        f"brackets: {rule.confidence:.0%} intervals, {rule.resamples} bootstrap samples of "
        f"{rule.blocks}.\n\n| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}"
    )


def print_table(
    path: Path, data: Path | None, tokens: int, window: int, block: int, precisions: tuple[str, ...]
) -> None:
    """One row per precision, printed as soon as it is known."""
    token_ids = read_tokens(Checkpoint(path), data, tokens)
    target = find_target("cpu")
    headed = False
    with tempfile.TemporaryDirectory() as folder:
        yardstick = Yardstick(path, token_ids, window, Path(folder))
        bundle = Path(folder) / "bundle"
        for precision in precisions:
            parsed = parse_precision([precision], block, target)
            manifest = compile_bundle(path, bundle, target=target, precision=parsed, force=True)
            result = yardstick.measure(bundle)
            if not headed:
                click.echo(heading(result, block))
                headed = True
            click.echo(row(precision, manifest.total_bytes, result))


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(help="Print what each precision costs, as a Markdown table.")
@click.argument("checkpoint", required=False, type=FOLDER)
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="held-out text  [default: what the demo's training held out]",
)  # fmt: skip
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(2))
@click.option("--window", default=512, show_default=True, type=click.IntRange(2))
@click.option("--block", default="64", show_default=True, type=click.Choice(["32", "64", "128"]))
@click.option("--precision", multiple=True, help="instead of all; beside a peer, of the backbone")
@click.option("--peer", type=click.Choice(["llama.cpp"]), help="compare, in place of a checkpoint")
@click.option(
    "--cache", default="build/peer", show_default=True, type=click.Path(path_type=Path),
    help="of the model that is trained for the comparison",
)  # fmt: skip
@click.option("--calibration-tokens", default=65536, show_default=True, type=click.IntRange(1024))
@click.option("--llama-python", default=sys.executable, help="a Python with gguf and llama_cpp")
@click.option(
    "--llama-tools", default=Path("build/llama.cpp/bin"), show_default=True,
    type=click.Path(path_type=Path), help="the folder of llama-imatrix and llama-quantize",
)  # fmt: skip
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="llama.cpp's")
def main(
    checkpoint: Path | None, data: Path | None, tokens: int, window: int, block: str,
    precision: tuple[str, ...], peer: str | None, cache: Path, calibration_tokens: int,
    llama_python: str, llama_tools: Path, threads: int,
) -> None:  # fmt: skip
    try:
        if peer is not None:
            logging.basicConfig(format="%(message)s")
            logging.getLogger("pocketmoe").setLevel(logging.INFO)  # torch says too much
            settings = peer_quality.QualitySettings(
                LlamaCpp(llama_python, llama_tools, threads), cache, tokens, window,
                calibration_tokens, precision or peer_quality.PRECISIONS, int(block),
            )  # fmt: skip
            peer_quality.print_peer_table(settings)
        elif checkpoint is not None:
            print_table(checkpoint, data, tokens, window, int(block), precision or PRECISIONS)
        else:
            raise click.UsageError("give a CHECKPOINT, or --peer llama.cpp")
    except PocketMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
