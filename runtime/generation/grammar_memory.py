"""The memory of grammars, and what bounds it."""

from __future__ import annotations

from typing import Any

# Bytes, of byte-level BPE with merges; bench/memory/grammar_memory.py measures them.
_LIBRARY = 10 << 20  # llguidance
_MADE, _KEPT = 1152, 448  # a token of the vocabulary, while that is made and afterwards
GRAMMAR = 4 << 20  # one that is compiled and followed
LONGEST = 128 << 10  # characters: reading a grammar takes 60 bytes for each
# Bytes by which llguidance's units are limited, so that the largest grammars take GRAMMAR:
# `bench/memory/grammar_memory.py --largest` prints what they do take.
_SYMBOL, _FUEL, _STATE = 1640, 220, 512


def bytes_while_made(tokens: int) -> int:
    """tokens: of the vocabulary."""
    return _LIBRARY + tokens * _MADE


def bytes_kept(tokens: int) -> int:
    return _LIBRARY + tokens * _KEPT


def limits(llguidance: Any) -> Any:
    """An LLParserLimits: a grammar that would take more than GRAMMAR is refused."""
    return llguidance.LLParserLimits(
        max_grammar_size=GRAMMAR // _SYMBOL,
        initial_lexer_fuel=GRAMMAR // _FUEL,
        max_lexer_states=GRAMMAR // _STATE,
    )
