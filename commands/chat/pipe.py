"""The steps of `run --chat`: before a bundle is opened, and line by line afterwards."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from ...bundle.manifest import read_manifest
from ...errors import InputError
from ...runtime.conversation import Conversation
from ...runtime.generation.template import load_chat_template
from ..arguments import read_turns
from ..console import end_cue, print_cue, print_interrupted, print_pieces


def prepare_chat(bundle: Path) -> None:
    """Compiles the chat template before the bundle is opened, so that the budget counts it.

    Raises:
        InputError: the bundle has none.
    """
    template = load_chat_template(bundle, read_manifest(bundle))
    if template is None:
        raise InputError(f"{bundle} has no chat template; run it without --chat")
    template.prepare()


def converse(conversation: Conversation) -> None:
    """Answers each line of standard input. On a terminal, Ctrl-C ends an answer, and only that."""
    terminal = sys.stdin.isatty()
    for text in read_turns(print_cue):
        try:
            with closing(conversation.answer(text)) as pieces:
                print_pieces(pieces)
        except KeyboardInterrupt:
            if not terminal:
                raise
            print_interrupted()
    if terminal:
        end_cue()
