"""What each precision costs on held-out text: perplexity, KL divergence, routes, layers' errors.

    python bench/quality.py model/demo [--data held_out.txt]

Without --data the text is what the demo model's training held out: every twentieth file of the
standard library.

Runs the text through the checkpoint in float32, layer by layer, compiles it at each precision, runs
the text through the bundle, and prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from tokenizers import Tokenizer

from pocketmoe.calibration.reference import run_reference
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.model import corpus
from pocketmoe.model.checkpoint import Checkpoint
from pocketmoe.runtime.deviation import Deviations
from pocketmoe.runtime.evaluate import Evaluation, evaluate
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.windows import cut_windows
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target

_STRETCH = 512
PRECISIONS = ("fp32", "fp16", "int8", "int4", "experts=int4,backbone=int8,head=int8")


def read_tokens(checkpoint: Checkpoint, data: Path | None, limit: int) -> list[int]:
    """The first `limit` tokens of a text file, or of the files that the demo never saw."""
    if not checkpoint.tokenizer_path.exists():
        raise InputError(f"{checkpoint.tokenizer_path} is missing; the text cannot be tokenized")
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_path))
    if data is None:
        # Evenly spread: the first files of the library are of one kind.
        texts = corpus.read_corpus(corpus.standard_library()).held_out
        ids = corpus.encode(tokenizer, texts).astype(int)
        part = max(1, len(ids) // max(1, limit // _STRETCH))
        stretches = [ids[start : start + _STRETCH] for start in range(0, len(ids), part)]
        return [int(token) for stretch in stretches for token in stretch][:limit]
    try:
        text = data.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{data} is not UTF-8 text ({error})") from error
    return list(tokenizer.encode(text).ids[:limit])


HEADINGS = (
    "Precision", "Bundle", "Perplexity", "Change", "KL, mean", "KL, 99 %", "Top-1 agreement",
    "Changed experts", "Error, last layer",
)  # fmt: skip


class Yardstick:
    """The checkpoint's answers to a text, which any number of its bundles are held against.

    The checkpoint runs once, layer by layer; what does not fit into memory lies in `folder`.
    """

    def __init__(self, checkpoint: Path, token_ids: Sequence[int], window: int, folder: Path):
        self.windows = cut_windows(token_ids, window)
        self._reference = run_reference(Checkpoint(checkpoint), self.windows, folder)

    def measure(self, bundle: Path) -> Evaluation:
        with open_bundle(bundle, context=self.windows.length) as session:
            deviations = Deviations(session.manifest, self._reference.layers, self.windows)
            return evaluate(session, self.windows, self._reference.logits, deviations)


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


def figure(result: Evaluation, name: str, write: Callable[[float], str]) -> str:
    value, interval = getattr(result, name), result.intervals.get(name)
    if value is None:
        return ""
    return write(value) + (f" ({' to '.join(map(write, interval))})" if interval else "")


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


@click.command(help="Print what each precision costs, as a Markdown table.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="held-out text  [default: what the demo's training held out]",
)  # fmt: skip
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(2))
@click.option("--window", default=512, show_default=True, type=click.IntRange(2))
@click.option("--block", default="64", show_default=True, type=click.Choice(["32", "64", "128"]))
@click.option("--precision", multiple=True, default=PRECISIONS, help="instead of all")
def main(
    checkpoint: Path,
    data: Path | None,
    tokens: int,
    window: int,
    block: str,
    precision: tuple[str, ...],
) -> None:
    try:
        print_table(checkpoint, data, tokens, window, int(block), precision)
    except PocketMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
