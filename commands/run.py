"""`run`: text from a prompt, or a conversation line by line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets import Target
from .arguments import (
    ACTIVE_EXPERTS,
    BUDGET,
    BUNDLE,
    CONTEXT,
    POSITIVE,
    PREDICT,
    PREFETCH,
    RECORD_ROUTES,
    SKIP_COLD,
    TRACE,
    decode_argument,
    gpu_options,
    predicted_by,
    read_prompt,
    sampling_options,
    with_opening,
)
from .console import print_facts, print_pieces

if TYPE_CHECKING:
    from ..runtime.options import OpenOptions


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
@gpu_options
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
@with_opening
def run(
    ctx: click.Context,
    bundle: Path,
    prompt: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int,
    stats: bool,
    target: Target | None,
    sampling: dict[str, Any],
    opening: OpenOptions,
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
    from ..runtime.opening import open_with
    from ..tables.model import stat_rows
    from ..tables.plan import prediction_rows
    from .chat.pipe import converse, prepare_chat

    text = None if prompt is None else read_prompt(prompt)
    if system is not None:
        system = decode_argument(system, "--system")
    if chat:
        prepare_chat(bundle)
    sampling = {"max_new_tokens": max_tokens, **sampling}
    with open_with(bundle, opening) as session:
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
                rows = stat_rows(done, generation_limit(manifest, done, opening.active_experts))
                rows += prediction_rows(done, manifest.footprint, by)
                print_facts("stats", rows, error=True)
