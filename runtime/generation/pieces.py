"""Pieces of text, each with the tokens that it completes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .sampling import likeliest, log_probabilities
from .stops import StopStrings
from .text import TextStream, TokenBytes


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model's own logits, whatever the sampling.

    Attributes:
        token_id: its id.
        token: its bytes.
        logprob: the natural logarithm of its probability.
        top: ids of the likeliest tokens and their log probabilities, the likeliest first.
    """

    token_id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer: whole characters, and the tokens that end with them.

    Attributes:
        text: empty in the last piece alone, if at all.
        token_ids: tokens whose text ends with this piece: several where a character or what may be
            a stop string spans them, none where the token that it comes from goes on.
        logprobs: one for each of `token_ids`; empty unless asked for.
        finish_reason: of the last piece alone, "stop", "length" or "cancelled".
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class _Waiting(NamedTuple):
    """A token that is in no piece yet. begin, end: where in all text its own begins and ends."""

    id: int
    logprob: TokenLogprob | None
    begin: int
    end: int


class PieceMaker:
    """Makes pieces of tokens. stopped: a stop string was found; what follows is no part of it."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], logprobs: int | None):
        self._stream = TextStream(tokenizer)
        self.bytes = TokenBytes(tokenizer)
        self._stops = StopStrings(stops)
        self._logprobs = logprobs
        self._made = self._told = 0  # characters, with and without those that are held back
        self._rest = ""
        self._waiting: deque[_Waiting] = deque()

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def push(self, token: int, logits: np.ndarray) -> Piece | None:
        """The piece that a token completes, if any. logits: those that it was drawn from."""
        begin, text = self._made, self._stream.push(token)
        self._made += len(text)
        # A character that is not whole yet ends one further on.
        end = self._made + self._stream.holds
        self._waiting.append(_Waiting(token, self._logprob(token, logits), begin, end))
        certain = self._stops.push(text)
        self._told += len(certain)
        if self.stopped:
            self._rest = certain
        if self.stopped or not certain:
            return None
        tokens = []
        while self._waiting and self._waiting[0].end <= self._told:
            tokens.append(self._waiting.popleft())
        return _piece(certain, tokens)

    def finish(self, reason: str, after: Piece | None = None) -> Piece:
        """The last piece: what was held back, or came before a stop string; behind `after`, a piece
        that nobody has seen yet."""
        if not self.stopped:
            self._rest = self._stops.push(self._stream.finish())
            self._told += len(self._rest)
        if self.stopped:
            reason = "stop"
            while self._waiting and self._waiting[-1].begin >= self._told:
                self._waiting.pop()
        else:
            self._rest += self._stops.finish()
        last = _piece(self._rest, list(self._waiting), reason)
        if after is None:
            return last
        return Piece(
            after.text + last.text,
            after.token_ids + last.token_ids,
            after.logprobs + last.logprobs,
            reason,
        )

    def _logprob(self, token: int, logits: np.ndarray) -> TokenLogprob | None:
        if self._logprobs is None:
            return None
        all_of_them = log_probabilities(logits)
        top = tuple(
            (int(other), float(all_of_them[other])) for other in likeliest(logits, self._logprobs)
        )
        return TokenLogprob(token, self.bytes.of(token), float(all_of_them[token]), top)


def _piece(text: str, tokens: Sequence[_Waiting], reason: str | None = None) -> Piece:
    return Piece(
        text,
        tuple(token.id for token in tokens),
        tuple(token.logprob for token in tokens if token.logprob is not None),
        reason,
    )
