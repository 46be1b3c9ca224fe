"""The vocabulary of a tokenizer as grammars know it.

It is made by llguidance (the extra `structured`), which is imported here alone, and only where
there is a grammar.
"""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...extras import how_to_add
from ..memory.host_memory import give_back_freed


class Vocabulary:
    """tokenizer: a tokenizers.Tokenizer. size: of the model's vocabulary, which may have more
    tokens than the tokenizer. ends: ids of tokens that end a text; where the model has none,
    llguidance takes one of the tokenizer's: see `ends`. tokens: a llguidance.LLTokenizer.

    Raises:
        InputError: llguidance is missing, or cannot use the tokenizer.
    """

    def __init__(self, tokenizer: Any, size: int, ends: tuple[int, ...]):
        if tokenizer.padding is not None or tokenizer.truncation is not None:
            tokenizer = type(tokenizer).from_str(tokenizer.to_str())
            tokenizer.no_padding()
            tokenizer.no_truncation()
        # Its slices, left out, would take half as much memory again and save little time.
        options: dict[str, Any] = {"n_vocab": size, "eos_token": list(ends) or None, "slices": []}
        try:
            self.tokens = need_llguidance().LLTokenizer(tokenizer.to_str(), **options)
        except ValueError as error:
            raise InputError(
                f"llguidance cannot use the bundle's tokenizer ({in_one_line(str(error))}); "
                "generate without a grammar"
            ) from error
        self.size = size
        self.ends: tuple[int, ...] = tuple(self.tokens.eos_tokens)
        give_back_freed()


def need_llguidance() -> Any:
    """The module. Raises InputError where it is missing."""
    try:
        import llguidance
    except ImportError as error:
        raise InputError(
            f"a grammar needs llguidance, which is not installed: {how_to_add('structured')}"
        ) from error
    return llguidance


def in_one_line(text: str) -> str:
    """The words of an error of llguidance that has several lines, without the picture of the place
    and what it tells of its state."""
    return " ".join(text.partition("<state>")[0].split())[:300]
