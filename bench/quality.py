"""What each precision costs: perplexity, KL divergence and top-1 agreement on held-out text.

    python bench/quality.py model/demo [--data held_out.txt]

Without --data the text is what the demo model's training held out: every twentieth file of the
standard library.

Compiles the checkpoint at each precision, runs the text through the bundle and through the
PyTorch module in float32, and prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from tokenizers import Tokenizer

from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.compiler.verify import reference_logits
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.model import corpus
from pocketmoe.model.checkpoint import Checkpoint
from pocketmoe.runtime.evaluate import Evaluation, evaluate
from pocketmoe.runtime.opening import open_bundle
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


def row(precision: str, nbytes: int, result: Evaluation) -> str:
    cells = (
        precision.replace(",", ", "),
        format_size(nbytes),
        f"{result.perplexity:.3f}",
        f"{result.kl_mean:.2e}",
        f"{result.kl_p99:.2e}",
        f"{result.top1_agreement:.2%}",
    )
    return f"| {' | '.join(cells)} |"


def print_table(
    path: Path, data: Path | None, tokens: int, window: int, block: int, precisions: tuple[str, ...]
) -> None:
    """One row per precision, printed as soon as it is known."""
    token_ids = read_tokens(Checkpoint(path), data, tokens)
    reference, target = reference_logits(path), find_target("cpu")
    headed = False
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            parsed = parse_precision([precision], block, target)
            manifest = compile_bundle(path, bundle, target=target, precision=parsed)
            with open_bundle(bundle, context=window) as session:
                result = evaluate(session, token_ids, window, reference)
        if not headed:
            click.echo(
                f"{result.tokens} tokens in windows of {window}, blocks of {block}; the PyTorch "
                f"module in float32 has perplexity {result.reference_perplexity:.3f}.\n\n"
                "| Precision | Bundle | Perplexity | KL, mean | KL, 99 % | Top-1 agreement |\n"
                "|---|---|---|---|---|---|"
            )
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
