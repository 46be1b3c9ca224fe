"""The commands that run a bundle, and `replay`: what its cache would have done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from ..errors import BundleError
from ..sizes import format_size
from ..targets import Target
from .arguments import (
    ACTIVE_EXPERTS,
    BUDGET,
    BUDGETS,
    BUNDLE,
    CONTEXT,
    JSON,
    PLOT,
    POSITIVE,
    PREDICT,
    PREFETCH,
    RECORD_ROUTES,
    SIZE,
    SKIP_COLD,
    TRACE,
    device_options,
    sampling_options,
)
from .console import ProgressDisplay, print_facts, print_json, print_pieces, print_table
from .prompts import decode_argument, read_prompt
from .targets import predicted_by

_log = logging.getLogger(__name__)


@click.command()
@BUNDLE
@click.option("--prompt", metavar="TEXT", help="'-' reads standard input.")
@click.option(
    "--chat", is_flag=True,
    help="Put the prompt into the model's chat template; without --prompt, hold a conversation, "
    "one line of standard input after the other.",
)  # fmt: skip
@click.option("--system", metavar="TEXT", help="With --chat: what to tell the model first.")
@click.option("--max-tokens", metavar="N", type=POSITIVE, default=256, help="Tokens to generate.")
@BUDGET
@device_options
@CONTEXT
@sampling_options
@PREFETCH
@ACTIVE_EXPERTS
@SKIP_COLD
@click.option("--stats", is_flag=True, help="Print speed, hits and memory to stderr.")
@RECORD_ROUTES
@TRACE
@PREDICT
@click.pass_context
def run(
    ctx: click.Context,
    bundle: Path,
    prompt: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int,
    memory_budget: int | str | None,
    context: int | None,
    prefetch: str,
    active_experts: int | None,
    skip_cold: float,
    stats: bool,
    record_routes: Path | None,
    trace: Path | None,
    target: Target | None,
    sampling: dict[str, Any],
    device: dict[str, Any],
) -> None:
    """Generate text from a prompt."""
    if prompt is None and not chat:
        raise click.UsageError("give a --prompt, or --chat", ctx)
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat", ctx)
    if target is not None and not stats:
        raise click.UsageError("--target needs --stats", ctx)
    from ..analysis.measuring.benchmark import generation_limit
    from ..runtime.context import longer_context
    from ..runtime.conversation import Conversation
    from ..runtime.opening import open_bundle
    from ..tables.model import stat_rows
    from ..tables.plan import prediction_rows
    from .chat.pipe import converse, prepare_chat

    text = None if prompt is None else read_prompt(prompt)
    if system is not None:
        system = decode_argument(system, "--system")
    if chat:
        prepare_chat(bundle)
    sampling = {"max_new_tokens": max_tokens, **sampling}
    with open_bundle(
        bundle, memory_budget=memory_budget, context=context, prefetch=prefetch,
        active_experts=active_experts, skip_cold=skip_cold, record_routes=record_routes,
        trace=trace, **device,
    ) as session:  # fmt: skip
        conversation = Conversation(session, system=system, **sampling)
        try:
            if text is None:
                converse(conversation)
            else:
                print_pieces(
                    conversation.answer(text) if chat else session.generate(text, **sampling)
                )
                if session.position == session.context:
                    _log.warning(
                        "the context of %d tokens is full%s", session.context,
                        longer_context(session.manifest.spec, session.context),
                    )  # fmt: skip
        finally:
            if stats and (done := session.stats).prompt_tokens:
                session.close()  # measuring wants its memory
                manifest, by = session.manifest, predicted_by(ctx, target)
                rows = stat_rows(done, generation_limit(manifest, done, active_experts))
                rows += prediction_rows(done, manifest.footprint, by)
                print_facts("stats", rows, error=True)


@click.command()
@click.argument("routes", metavar="ROUTES", type=click.Path(path_type=Path))
@click.option(
    "--memory-budget", "budgets", metavar="SIZE", type=SIZE, multiple=True,
    help="Memory for pages alone; may be given several times.  "
    "[default: 1/2 to 8 times a token's pages]",
)  # fmt: skip
@JSON
def replay(routes: Path, budgets: tuple[int, ...], as_json: bool) -> None:
    """Compare cache policies on recorded routes: of a route file, or of a calibration record.

    Hit rates while decoding. The optimum knows what comes; no policy can beat it.
    """
    from ..analysis.planning.replay import replay_rows, token_bytes, usual_capacities
    from ..analysis.planning.route_sources import load_routes
    from ..tables.model import replay_columns, replay_table

    source = load_routes(routes)
    recorded = source.routes
    rows = replay_rows(recorded, list(budgets) or usual_capacities(recorded))
    token = token_bytes(recorded)
    if as_json:
        print_json({
            "routes": str(routes), "note": source.note, "token_bytes": token, "rows": rows,
        })  # fmt: skip
        return
    title = f"page hits in {routes}; one token's pages are {format_size(token)}"
    if source.note:
        title += f", taken to be int4; {source.note}"
    print_table(title, replay_columns(rows), replay_table(rows))


@click.command()
@BUNDLE
@click.option("--prompt-tokens", metavar="N", type=POSITIVE, default=128, help="Tokens to read.")
@click.option("--new-tokens", metavar="N", type=POSITIVE, default=64, help="Tokens to generate.")
@click.option("--threads", metavar="N", type=POSITIVE, help="[default: one per core]")
@BUDGETS
@device_options
@CONTEXT
@PREFETCH
@ACTIVE_EXPERTS
@SKIP_COLD
@PLOT
@RECORD_ROUTES
@TRACE
@PREDICT
@JSON
@click.pass_context
def bench(
    ctx: click.Context,
    bundle: Path,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    budgets: tuple[int | str, ...],
    context: int | None,
    prefetch: str,
    active_experts: int | None,
    skip_cold: float,
    plot: Path | None,
    record_routes: Path | None,
    trace: Path | None,
    target: Target | None,
    as_json: bool,
    device: dict[str, Any],
) -> None:
    """Measure speed, cache hits and memory."""
    from ..analysis.measuring.benchmark import run_benchmark
    from ..tables.model import benchmark_rows

    if plot is not None:
        if record_routes is not None or trace is not None:
            raise click.UsageError("--record-routes, --trace: one run; --plot makes several", ctx)
        if device["backend"] not in ("auto", "cpu"):
            raise click.UsageError("--plot is of the CPU backend", ctx)
        options: dict[str, Any] = {
            "--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens, "--threads": threads,
            "--context": context, "--prefetch": prefetch, "--active-experts": active_experts,
            "--skip-cold": skip_cold, "--target": target.name if target is not None else None,
            "--backend": "cpu",
        }  # fmt: skip
        plot_speeds(bundle, plot, budgets, options, as_json=as_json)
        return
    if len(budgets) > 1:
        raise click.UsageError("several --memory-budget need --plot", ctx)
    with ProgressDisplay("tokens") as progress:
        result = run_benchmark(
            bundle, prompt_tokens=prompt_tokens, new_tokens=new_tokens, threads=threads,
            memory_budget=budgets[0] if budgets else None, context=context, prefetch=prefetch,
            active_experts=active_experts, skip_cold=skip_cold, record_routes=record_routes,
            trace=trace, target=predicted_by(ctx, target), progress=progress, device=device,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_facts(f"bench {bundle}", benchmark_rows(result))


def plot_speeds(
    bundle: Path,
    path: Path,
    budgets: tuple[int | str, ...],
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Runs `bench` at each budget and draws what came of it. options: of `bench`, None for those
    that were not given."""
    from ..analysis.inspection.inspect import BundleFacts, inspect_path
    from ..analysis.measuring.budget_sweep import run_budgets, usual_budgets
    from ..analysis.measuring.speed_plot import check_plot, draw_speed
    from ..runtime.memory.budget import read_budget
    from ..tables.model import SPEED_COLUMNS, speed_rows

    check_plot(path)
    facts = inspect_path(bundle)
    if not isinstance(facts, BundleFacts):
        raise BundleError(f"{bundle} is a checkpoint; compile it first")
    sizes = {size for size in map(read_budget, budgets) if size is not None}
    chosen = sorted(sizes) or usual_budgets(bundle, context=options["--context"])
    given = [word for name, value in options.items() if value is not None
             for word in (name, str(value))]  # fmt: skip
    with ProgressDisplay() as progress:
        results = run_budgets(bundle, chosen, given, progress)
    draw_speed(path, facts, results)
    if as_json:
        print_json(results)
        return
    print_table(f"bench {bundle}: {path}", SPEED_COLUMNS, speed_rows(results))
