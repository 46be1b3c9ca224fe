"""Tokens to text, piece by piece."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from ...errors import BundleError, InputError

_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
_LONGEST = 16  # tokens that a character may take, whatever is before it, for all that we know
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


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
    """Token ids of `text`; raises InputError where it is no text, or not valid Unicode.

    Special tokens that the text spells out are always recognized; add_special_tokens: also add
    those that the tokenizer puts around any text, such as the one that begins it.
    """
    if not isinstance(text, str):
        raise InputError(f"text to encode must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text is not valid UTF-8 at character {error.start}") from error
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


class TextStream:
    """Decodes tokens as they come; a character of several tokens is held back until it is whole.

    holds: whether one is. Decoders know their neighbours (some fall back to bytes, some treat the
    first token differently), so tokens since the last but one whole character stay.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._context: list[int] = []  # up to the last token that ended with a whole character
        self._tokens: list[int] = []  # since then
        self._told = 0  # characters of both that were returned
        self.holds = False

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._tokens.append(token)
        text: str = self._tokenizer.decode(self._context + self._tokens)
        whole = text.rstrip(_INCOMPLETE)
        self.holds = len(whole) < len(text)
        if self.holds and len(self._tokens) > _LONGEST:
            # No character, but bytes that are none. At most three can still become one.
            whole = text[: max(len(whole), len(text) - 3)]
        piece = whole[self._told :]
        self._told += len(piece)
        if not self.holds:
            self._context, self._tokens = self._tokens, []
            self._told = len(self._tokenizer.decode(self._context))
        return piece

    def finish(self) -> str:
        """What was held back and will never be completed."""
        piece: str = self._tokenizer.decode(self._context + self._tokens)[self._told :]
        self._context, self._tokens, self._told, self.holds = [], [], 0, False
        return piece


class TokenBytes:
    """The bytes that a token stands for; some are no text by themselves."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._kinds: set[str] | None = None

    def of(self, token: int) -> bytes:
        """Special tokens as they are written, a token that the tokenizer lacks as nothing."""
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._kinds is None:
            self._kinds = _decoder_kinds(self._tokenizer.decoder)
            self._added = set(self._tokenizer.get_added_tokens_decoder())
        if token in self._added:
            return bytes(text, "utf-8", "replace")
        if "ByteLevel" in self._kinds:
            if all(char in _BYTES for char in text):
                return bytes(_BYTES[char] for char in text)
        elif "ByteFallback" in self._kinds and (found := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(found[1], 16)])
        elif self._kinds & {"Metaspace", "Replace"}:
            text = text.replace("\u2581", " ")
        return bytes(text, "utf-8", "replace")


def _decoder_kinds(decoder: Any) -> set[str]:
    """What a tokenizers.decoders.Decoder is made of; tokenizers tells it by its JSON alone."""
    if decoder is None:
        return set()
    kinds, left = set(), [json.loads(decoder.__getstate__())]
    while left:
        part = left.pop()
        kinds.add(str(part.get("type")))
        left += part.get("decoders", ())
    return kinds


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes, as GPT-2 does: those that print as
    themselves, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
