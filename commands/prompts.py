"""Texts of the command line: of an option, of standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from ..errors import InputError
from ..files import decode_utf8


def read_prompt(prompt: str) -> str:
    """The text of `--prompt`; `-` stands for standard input.

    Raises:
        InputError: the text is empty or not UTF-8.
    """
    if prompt == "-":
        text = decode_utf8(sys.stdin.buffer.read(), "standard input")
    else:
        text = decode_argument(prompt, "--prompt")
    if not text:
        raise InputError("the prompt is empty; give at least one character")
    return text


def read_turns(cue: Callable[[], None]) -> Iterator[str]:
    """The lines of standard input that are not blank; on a terminal, `cue` asks for each.

    Raises:
        InputError: a line is not UTF-8.
    """
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            cue()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        text = decode_utf8(line, "standard input").rstrip("\r\n")
        if text.strip():
            yield text


def decode_argument(text: str, option: str) -> str:
    """The text of an option; raises InputError where it was not UTF-8."""
    # Python hides the bytes of an argument that it could not decode in lone surrogates.
    return decode_utf8(text.encode("utf-8", "surrogateescape"), option)
