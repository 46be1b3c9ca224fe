"""The command `pocketmoe`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from . import __version__
from .arguments import (
    ACTIVE_EXPERTS,
    AGAINST,
    BUDGET,
    BUDGETS,
    BUNDLE,
    CONTEXT,
    JSON,
    PLOT,
    POSITIVE,
    RECORD_ROUTES,
    SIZE,
    SKIP_COLD,
    TARGET,
    TRACE,
    FiniteRange,
    decode_argument,
    read_prompt,
)
from .console import (
    ProgressDisplay,
    print_facts,
    print_json,
    print_pieces,
    print_table,
    start_logging,
)
from .entry import CommandLine
from .errors import BundleError
from .sizes import format_size
from .targets import TARGETS, Target, find_target


@click.group(
    cls=CommandLine,
    invoke_without_command=True,
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="pocketmoe %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
@click.pass_context
def main(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """Compile a Mixture-of-Experts model for a device too small for it, and run it there."""
    # ONNX Runtime 1.32 collects usage data unless told otherwise before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    start_logging(verbose=verbose)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@click.argument("path", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@JSON
def inspect(path: Path, as_json: bool) -> None:
    """Show what a model or a bundle is made of."""
    from .inspection import inspect_path
    from .tables import fact_rows, size_rows

    facts = inspect_path(path)
    if as_json:
        print_json(facts)
        return
    print_facts(f"{facts.kind} {path}", fact_rows(facts))
    precisions = [sizes.precision for sizes in facts.model.sizes]
    title = f"bytes per precision (blocks of {facts.model.block_size})"
    print_table(title, ["", *precisions], size_rows(facts.model))


@main.command()
@click.argument("name", required=False)
@JSON
def targets(name: str | None, as_json: bool) -> None:
    """List the devices it knows, or show one."""
    from .tables import target_rows

    if name is None:
        if as_json:
            print_json(TARGETS)
            return
        print_facts("targets", [(target.name, target.description) for target in TARGETS])
        return
    target = find_target(name)
    if as_json:
        print_json(target)
        return
    print_facts(f"target {target.name}", target_rows(target))


@main.command("compile")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", type=TARGET, required=True, help="The device.")
@click.option(
    "-o", "--output", metavar="BUNDLE", type=click.Path(path_type=Path), required=True,
    help="The directory to make.",
)  # fmt: skip
@click.option(
    "--precision", metavar="PRECISION", multiple=True,
    help="int4, int8, fp16 or fp32, or by part.  [default: experts=int4,backbone=int8,head=int8]",
)  # fmt: skip
@click.option(
    "--block", type=click.Choice(["32", "64", "128"]), default="64",
    help="Weights that share one scale, where they are quantized.",
)  # fmt: skip
@click.option(
    "--active-experts", metavar="K", type=POSITIVE,
    help="Use fewer experts per token than the model says (lossy).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists.")
def compile_command(
    checkpoint: Path,
    target: Target,
    output: Path,
    precision: tuple[str, ...],
    block: str,
    active_experts: int | None,
    force: bool,
) -> None:
    """Make a bundle of a checkpoint."""
    from .compiler.precision import parse_precision

    chosen = parse_precision(precision, int(block), target)
    from .compiler.compile import compile_bundle  # takes seconds, so after what is quickly checked

    with ProgressDisplay() as progress:
        manifest = compile_bundle(
            checkpoint, output, target=target, precision=chosen,
            active_experts=active_experts, force=force, progress=progress,
        )  # fmt: skip
    lossy = f"; lossy: {', '.join(manifest.lossy)}" if manifest.lossy else ""
    click.echo(
        f"{output}: {format_size(manifest.total_bytes)}, {manifest.num_pages} experts of up to "
        f"{format_size(manifest.page_bytes)}{lossy}"
    )


@main.command()
@BUNDLE
@AGAINST
@JSON
def verify(bundle: Path, against: Path | None, as_json: bool) -> None:
    """Check a bundle's hashes, and its numbers."""
    from .runtime.bundle import find_damage, read_manifest

    manifest = read_manifest(bundle)
    with ProgressDisplay() as progress:
        progress.stage("hash", manifest.total_bytes)
        damaged = find_damage(bundle, manifest, progress.advance)
        differences = None
        if against is not None and not damaged:
            from .compiler.verify import compare_with_checkpoint

            progress.stage(f"compare with {against}", 0)
            differences = compare_with_checkpoint(bundle, against)
    if as_json:
        print_json({
            "bundle": str(bundle), "files": len(manifest.files), "bytes": manifest.total_bytes,
            "damaged": damaged, "differences": differences,
        })  # fmt: skip
    if damaged:
        raise BundleError(f"{bundle} is damaged: {', '.join(damaged)}; compile the bundle again")
    if as_json:
        return
    size = format_size(manifest.total_bytes)
    click.echo(f"{bundle}: {len(manifest.files)} files, {size}, every hash is right")
    if differences is not None:
        rows = [(d.where, f"{d.relative:.2e}", f"{d.maximum:.2e}") for d in differences]
        print_table(f"difference from {against}", ["", "relative", "largest"], rows)
        wrong = [d.where for d in differences if not math.isfinite(d.relative)]
        if wrong:
            raise BundleError(f"{bundle} computes numbers that are not finite: {wrong[0]}")


@main.command()
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
@CONTEXT
@click.option("--temperature", type=FiniteRange(min=0), default=0.0, help="0 is greedy.")
@click.option(
    "--top-k", type=click.IntRange(min=0), default=0,
    help="Sample from the K likeliest tokens; 0 for all.",
)  # fmt: skip
@click.option(
    "--top-p", type=FiniteRange(0, 1, min_open=True), default=1.0,
    help="Sample from the likeliest tokens that make up this probability.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Makes sampling repeatable.")
@ACTIVE_EXPERTS
@SKIP_COLD
@click.option("--stats", is_flag=True, help="Print speed, hits and memory to stderr.")
@RECORD_ROUTES
@TRACE
def run(
    bundle: Path,
    prompt: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int,
    memory_budget: int | None,
    context: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    active_experts: int | None,
    skip_cold: float,
    stats: bool,
    record_routes: Path | None,
    trace: Path | None,
) -> None:
    """Generate text from a prompt."""
    if prompt is None and not chat:
        raise click.UsageError("Missing option '--prompt'.", click.get_current_context())
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat", click.get_current_context())
    from .benchmark import generation_limit
    from .chat import converse, prepare_chat
    from .runtime.conversation import Conversation
    from .runtime.session import open_bundle
    from .tables import stat_rows

    text = None if prompt is None else read_prompt(prompt)
    if system is not None:
        system = decode_argument(system, "--system")
    if chat:
        prepare_chat(bundle)
    sampling: dict[str, Any] = {
        "max_new_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "seed": seed,
    }  # fmt: skip
    with open_bundle(
        bundle, memory_budget=memory_budget, context=context, active_experts=active_experts,
        skip_cold=skip_cold, record_routes=record_routes, trace=trace,
    ) as session:  # fmt: skip
        conversation = Conversation(session, system=system, **sampling)
        try:
            if text is None:
                converse(conversation)
            elif chat:
                print_pieces(conversation.answer(text))
            else:
                print_pieces(session.generate(text, **sampling))
        finally:
            if stats and (done := session.stats).prompt_tokens:
                session.close()  # measuring wants its memory
                limit = generation_limit(session.manifest, done, active_experts)
                print_facts("stats", stat_rows(done, limit), error=True)


@main.command()
@click.argument("routes", metavar="ROUTES", type=click.Path(path_type=Path))
@click.option(
    "--memory-budget", "budgets", metavar="SIZE", type=SIZE, multiple=True,
    help="Memory for pages alone; may be given several times.  "
    "[default: 1/2 to 8 times a token's pages]",
)  # fmt: skip
@JSON
def replay(routes: Path, budgets: tuple[int, ...], as_json: bool) -> None:
    """Compare cache policies on recorded routes.

    Hit rates while decoding. The optimum knows what comes; no policy can beat it.
    """
    from .runtime.replay import replay_rows, token_bytes, usual_capacities
    from .runtime.routes import read_routes
    from .tables import replay_columns, replay_table

    recorded = read_routes(routes)
    rows = replay_rows(recorded, list(budgets) or usual_capacities(recorded))
    token = token_bytes(recorded)
    if as_json:
        print_json({"routes": str(routes), "token_bytes": token, "rows": rows})
        return
    title = f"page hits in {routes}; one token's pages are {format_size(token)}"
    print_table(title, replay_columns(rows), replay_table(rows))


@main.command("eval")
@BUNDLE
@click.option(
    "--data", metavar="FILE", type=click.Path(path_type=Path), required=True, help="UTF-8 text."
)
@AGAINST
@BUDGET
@ACTIVE_EXPERTS
@SKIP_COLD
@JSON
def eval_command(
    bundle: Path,
    data: Path,
    against: Path | None,
    memory_budget: int | None,
    active_experts: int | None,
    skip_cold: float,
    as_json: bool,
) -> None:
    """Measure the quality on a text.

    Perplexity; with --against, the KL divergence and top-1 agreement too.
    """
    from .evaluation import run_evaluation
    from .tables import evaluation_rows

    with ProgressDisplay("tokens") as progress:
        result = run_evaluation(
            bundle, data, against, progress, memory_budget=memory_budget,
            active_experts=active_experts, skip_cold=skip_cold,
        )  # fmt: skip
    if as_json:
        print_json({"bundle": str(bundle), "data": str(data), **vars(result)})
        return
    print_facts(f"{bundle} on {data}", evaluation_rows(result))


@main.command()
@BUNDLE
@click.option("--prompt-tokens", metavar="N", type=POSITIVE, default=128, help="Tokens to read.")
@click.option("--new-tokens", metavar="N", type=POSITIVE, default=64, help="Tokens to generate.")
@click.option("--threads", metavar="N", type=POSITIVE, help="[default: one per core]")
@BUDGETS
@CONTEXT
@ACTIVE_EXPERTS
@SKIP_COLD
@PLOT
@RECORD_ROUTES
@TRACE
@JSON
def bench(
    bundle: Path,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    budgets: tuple[int, ...],
    context: int | None,
    active_experts: int | None,
    skip_cold: float,
    plot: Path | None,
    record_routes: Path | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, cache hits and memory."""
    from .benchmark import run_benchmark
    from .tables import benchmark_rows

    if plot is not None:
        if record_routes is not None or trace is not None:
            raise click.UsageError(
                "--record-routes and --trace are of one run; --plot makes several",
                click.get_current_context(),
            )
        options: dict[str, Any] = {
            "--prompt-tokens": prompt_tokens, "--new-tokens": new_tokens, "--threads": threads,
            "--context": context, "--active-experts": active_experts, "--skip-cold": skip_cold,
        }  # fmt: skip
        plot_speeds(bundle, plot, budgets, options, as_json=as_json)
        return
    if len(budgets) > 1:
        raise click.UsageError("several --memory-budget need --plot", click.get_current_context())
    with ProgressDisplay("tokens") as progress:
        result = run_benchmark(
            bundle, prompt_tokens=prompt_tokens, new_tokens=new_tokens, threads=threads,
            memory_budget=budgets[0] if budgets else None, context=context,
            active_experts=active_experts, skip_cold=skip_cold, record_routes=record_routes,
            trace=trace, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_facts(f"bench {bundle}", benchmark_rows(result))


def plot_speeds(
    bundle: Path, path: Path, budgets: tuple[int, ...], options: dict[str, Any], *, as_json: bool
) -> None:
    """Runs `bench` at each budget and draws what came of it. options: of `bench`, None for those
    that were not given."""
    from .budget_sweep import run_budgets, usual_budgets
    from .inspection import BundleFacts, inspect_path
    from .speed_plot import check_plot, draw_speed
    from .tables import SPEED_COLUMNS, speed_rows

    check_plot(path)
    facts = inspect_path(bundle)
    if not isinstance(facts, BundleFacts):
        raise BundleError(f"{bundle} is a checkpoint; compile it first")
    chosen = sorted(set(budgets)) or usual_budgets(
        bundle, context=options["--context"], threads=options["--threads"]
    )
    given = [word for name, value in options.items() if value is not None
             for word in (name, str(value))]  # fmt: skip
    with ProgressDisplay() as progress:
        results = run_budgets(bundle, chosen, given, progress)
    draw_speed(path, facts, results)
    if as_json:
        print_json(results)
        return
    print_table(f"bench {bundle}: {path}", SPEED_COLUMNS, speed_rows(results))
