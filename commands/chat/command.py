"""`chat`: a conversation with a bundle, in a terminal or over a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..arguments import (
    ACTIVE_EXPERTS,
    BUDGET,
    BUNDLE,
    CONTEXT,
    POSITIVE,
    PREFETCH,
    SKIP_COLD,
    decode_argument,
    gpu_options,
    sampling_options,
    with_opening,
)
from ..folders import state_folder

if TYPE_CHECKING:
    from ...runtime.options import OpenOptions


@click.command()
@BUNDLE
@click.option("--system", metavar="TEXT", help="What to tell the model first.")
@click.option("--max-tokens", metavar="N", type=POSITIVE, default=1024, help="Tokens of an answer.")
@click.option(
    "--load", metavar="FILE", type=click.Path(path_type=Path),
    help="Go on with a conversation that /save has written.",
)  # fmt: skip
@click.option("--no-history", is_flag=True, help="Keep nothing of what is typed.")
@BUDGET
@gpu_options
@CONTEXT
@sampling_options
@PREFETCH
@ACTIVE_EXPERTS
@SKIP_COLD
@with_opening
def chat(
    bundle: Path,
    system: str | None,
    max_tokens: int,
    load: Path | None,
    no_history: bool,
    sampling: dict[str, Any],
    opening: OpenOptions,
) -> None:
    """Talk with a model: /help there shows what else it does.

    Where a bundle has no chat template, the model goes on with what is typed.
    """
    # All that it needs is loaded before the bundle is, so that the budget counts it.
    from ...bundle.manifest import read_manifest
    from ...runtime.conversation import Conversation
    from ...runtime.generation.template import load_chat_template
    from ...runtime.opening import open_with
    from .line_editor import LineEditor
    from .saved import load_messages
    from .terminal import COMMANDS, TerminalChat

    if system is not None:
        system = decode_argument(system, "--system")
    template = load_chat_template(bundle, read_manifest(bundle))
    if template is not None:
        template.prepare()
    elif system is not None:
        raise click.UsageError(f"--system needs a chat template, which {bundle} lacks")
    messages = load_messages(load) if load is not None else None
    editor = LineEditor(None if no_history else state_folder() / "chat_history", COMMANDS)
    with open_with(bundle, opening) as session:
        conversation = Conversation(session, system=system, max_new_tokens=max_tokens, **sampling)
        if messages is not None:
            conversation.messages = messages
        name = bundle.resolve().name
        TerminalChat(session, conversation, editor, name, sampling["seed"]).run()
