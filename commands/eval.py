"""The command that measures the quality of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .arguments import (
    ACTIVE_EXPERTS,
    AGAINST,
    BUDGET,
    BUNDLE,
    JSON,
    SKIP_COLD,
    gpu_options,
    with_opening,
)
from .console import ProgressDisplay, print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..runtime.options import OpenOptions


@click.command("eval")
@BUNDLE
@click.option(
    "--data", metavar="FILE", type=click.Path(path_type=Path), required=True, help="UTF-8 text."
)
@AGAINST
@click.option(
    "--tokens", metavar="N", type=click.IntRange(min=2),
    help="Use about N tokens: windows drawn evenly from the text.  [default: all]",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
    help="Of the windows that --tokens draws, and of the confidence intervals.",
)  # fmt: skip
@click.option(
    "--work", metavar="DIR", type=click.Path(path_type=Path),
    help="With --against: where hidden states go that do not fit into memory.  "
    "[default: the folder for temporary files]",
)  # fmt: skip
@BUDGET
@gpu_options
@ACTIVE_EXPERTS
@SKIP_COLD
@JSON
@click.pass_context
@with_opening
def eval_command(
    ctx: click.Context,
    bundle: Path,
    data: Path,
    against: Path | None,
    tokens: int | None,
    seed: int,
    work: Path | None,
    as_json: bool,
    opening: OpenOptions,
) -> None:
    """Measure the quality on a text.

    Perplexity; with --against also the KL divergence from the checkpoint, top-1 agreement, the
    share of changed expert choices and the error of each layer. The checkpoint runs layer by layer:
    it need not fit into memory.
    """
    if work is not None and against is None:
        raise click.UsageError("--work needs --against", ctx)
    from ..analysis.evaluation.run import run_evaluation
    from ..tables.evaluation import LAYER_COLUMNS, evaluation_rows, layer_rows

    with ProgressDisplay("tokens") as progress:
        result = run_evaluation(
            bundle, data, against, progress, tokens=tokens, seed=seed, work=work, opening=opening
        )
    if as_json:
        print_json({"bundle": str(bundle), "data": str(data), **vars(result)})
        return
    print_facts(f"{bundle} on {data}", evaluation_rows(result))
    if result.layers:
        print_table("by layer", LAYER_COLUMNS, layer_rows(result))
