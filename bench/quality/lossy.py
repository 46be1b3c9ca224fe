"""Cost and gain of the options that trade quality for speed.

    python bench/quality/lossy.py model/demo [--data held_out.txt]

Compiles the checkpoint at the default precision and decodes held-out text token by token, with a
cache of half the experts, with fewer active experts and with cold ones skipped. Each is compared
with the same bundle without options. Prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from pocketmoe.analysis.evaluation.scores import evaluate
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.bench.quality.quality_reference import read_tokens
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import BLOCK_SIZES, parse_precision
from pocketmoe.errors import PocketMoEError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.session import Session
from pocketmoe.sizes import format_size
from pocketmoe.targets import find_target

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADINGS = (
    "active experts", "skip cold", "perplexity", "KL, mean", "KL, 99 %", "top-1 agreement",
    "pages asked for", "hits", "read per token",
)  # fmt: skip


def open_with_pages(bundle: Path, pages: int, **options: Any) -> Session:
    """A session whose cache has so many pages."""
    session = open_bundle(bundle, prefetch="off", **options)
    plan = session.plan
    session.set_memory_budget(plan.fixed + pages * plan.page)
    return session


def opener(bundle: Path, budget: str | None, cache: float, context: int) -> Callable[..., Session]:
    """Opens sessions that differ in their options alone."""

    def open_session(**options: Any) -> Session:
        if budget is not None:
            return open_bundle(bundle, memory_budget=budget, context=context, **options)
        with open_bundle(bundle, context=context) as session:
            pages = session.manifest.num_pages
        return open_with_pages(bundle, max(1, round(cache * pages)), context=context, **options)

    return open_session


class Recorded:
    """Logits of the model without options, kept in a file: what others are compared with."""

    def __init__(self, session: Session, token_ids: Sequence[int], window: int, folder: Path):
        self._window = window
        shape = (len(token_ids), session.manifest.spec.vocab_size)
        self._logits = np.memmap(folder / "logits", np.float32, "w+", shape=shape)
        for index, token in enumerate(token_ids):
            if index % window == 0:
                session.reset()
            self._logits[index] = session.forward([token])[0]
        session.reset()

    def logits(self, window: int) -> np.ndarray:
        """The reference for an evaluation."""
        return self._logits[window * self._window : (window + 1) * self._window]


def row(session: Session, recorded: Recorded, token_ids: list[int], window: int) -> tuple[str, ...]:
    """The figures of a session that was just opened, but for its options."""
    before = session.stats
    result = evaluate(session, cut_windows(token_ids, window), recorded.logits, step=1)
    stats = session.stats
    hits = stats.page_hits - before.page_hits
    asked = hits + stats.page_misses - before.page_misses
    return (
        f"{result.perplexity:.3f}",
        f"{result.kl_mean:.2e}",
        f"{result.kl_p99:.2e}",
        f"{result.top1_agreement:.2%}",
        f"{asked / len(token_ids):.1f}",
        f"{hits / max(1, asked):.1%}",
        format_size(round((stats.bytes_read - before.bytes_read) / len(token_ids))),
    )


def print_table(
    bundle: Path, token_ids: list[int], window: int, budget: str | None, cache: float, every: bool
) -> None:
    """One line for each choice of options, printed as soon as it is known."""
    open_session = opener(bundle, budget, cache, window)
    with tempfile.TemporaryDirectory() as folder:
        with open_session() as session:
            recorded = Recorded(session, token_ids, window, Path(folder))
            stats, spec = session.stats, session.manifest.spec
        most = max(rule.router.top_k for rule in spec.layers if rule.router and rule.is_moe)
        counts = range(most, 0, -1)
        choices = [(count, 0.0) for count in counts] + [(most, share) for share in SHARES[1:]]
        if every:
            choices = [
                (count, share) for count in counts for share in SHARES if count > 1 or not share
            ]
        click.echo(
            f"{len(token_ids)} tokens, one by one in windows of {window}, a cache of "
            f"{stats.cache_slots} of {stats.num_pages} pages; compared with the same bundle "
            f"without options.\n\n| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}"
        )
        for count, share in choices:
            with open_session(active_experts=count, skip_cold=share) as session:
                cells = row(session, recorded, token_ids, window)
            click.echo(f"| {' | '.join((f'{count} of {most}', f'{share:g}', *cells))} |")


@click.command(help="Print what fewer experts per token cost and save, as a Markdown table.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="held-out text  [default: what the demo's training held out]",
)  # fmt: skip
@click.option("--tokens", default=4096, show_default=True, type=click.IntRange(2))
@click.option("--window", default=512, show_default=True, type=click.IntRange(2))
@click.option("--precision", multiple=True, help="as in `pocketmoe compile`")
@click.option(
    "--block", default="64", show_default=True, type=click.Choice([*map(str, BLOCK_SIZES)])
)
@click.option(
    "--cache", default=0.5, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="share of the experts that the cache holds",
)  # fmt: skip
@click.option("--memory-budget", metavar="SIZE", help="for the whole process, instead of --cache")
@click.option("--all", "every", is_flag=True, help="every combination of the two options")
def main(
    checkpoint: Path, data: Path | None, tokens: int, window: int, precision: tuple[str, ...],
    block: str, cache: float, memory_budget: str | None, every: bool,
) -> None:  # fmt: skip
    try:
        token_ids = read_tokens(Checkpoint(checkpoint), data, tokens)
        target = find_target("cpu")
        parsed = parse_precision(precision, int(block), target)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            compile_bundle(checkpoint, bundle, target=target, precision=parsed)
            print_table(bundle, token_ids, window, memory_budget, cache, every)
    except PocketMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
