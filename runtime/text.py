"""Tokens to text, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from ..errors import BundleError, InputError

_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character (yet)


def load_tokenizer(path: Path) -> Any:
    """A tokenizers.Tokenizer, or None where the bundle has none.

    Raises:
        BundleError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{path} is not a tokenizer ({error}); copy it there again") from error


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`; raises InputError where the text is not valid Unicode.

    Special tokens that the text spells out are always recognized; add_special_tokens: also add
    those that the tokenizer puts around any text, such as the one that begins it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text is not valid UTF-8 at character {error.start}") from error
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


class TextStream:
    """Decodes tokens as they come; a character of several tokens is held back until it is whole."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        held = text.endswith(_INCOMPLETE)
        piece = text[self._told : len(text) - held]
        self._told += len(piece)
        if not held:
            # The last token stays: some decoders treat the first one differently.
            self._tokens = [token]
            self._told = len(self._tokenizer.decode(self._tokens))
        return piece

    def finish(self) -> str:
        """What was held back and will never be completed."""
        piece: str = self._tokenizer.decode(self._tokens)[self._told :]
        self._tokens, self._told = [], 0
        return piece
