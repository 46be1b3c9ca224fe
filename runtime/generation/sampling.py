"""The next token, from logits.

What is done to the logits, in this order:

1. logit bias is added, as OpenAI's API documents it;
2. the repetition penalty p (Keskar et al., CTRL, arXiv:1909.05858, section 4.1) on tokens of the
   prompt and of the answer: positive logits are divided by p, negative ones multiplied, as
   transformers and llama.cpp do;
3. frequency and presence penalties, as OpenAI's API documents them, on tokens of the answer alone:
   `logit − count · frequency − (count > 0) · presence`;
4. tokens that the grammar does not allow are left out;
5. temperature; top-k; top-p, of what is left by top-k; min-p, the share of the largest
   probability that a token needs (Nguyen et al., arXiv:2407.01082). At temperature 0 the largest
   logit is taken instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...numeric import is_integer, is_real


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked: the likeliest one at temperature 0, else at random.

    top_k: only the k likeliest (0: all). top_p: of these, only the likeliest that together reach
    this probability. min_p: of these, those with this share of the likeliest one's probability.
    logit_bias: token id → what is added to its logit. The same seed gives the same tokens.

    Raises:
        InputError: a value is out of range, or no number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda value: value >= 0, ", 0 or more")
        check_whole("top-k", self.top_k, 0, "0 (all tokens) or more")
        _check("top-p", self.top_p, lambda value: 0 < value <= 1, ", more than 0 and at most 1")
        _check("min-p", self.min_p, lambda value: 0 <= value <= 1, " from 0 to 1")
        _check(
            "repetition penalty", self.repetition_penalty, lambda value: value > 0, ", more than 0"
        )
        _check("frequency penalty", self.frequency_penalty)
        _check("presence penalty", self.presence_penalty)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, "0 or more")
        bias = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(bias, Mapping):
            raise InputError(f"logit bias must be a mapping from token ids, not {bias!r:.80}")
        for token, value in bias.items():
            check_whole("a token of logit bias", token, 0, "0 or more")
            _check(f"the logit bias of token {token}", value)


def check_whole(name: str, value: object, least: int, what: str) -> None:
    """Raises InputError where `value` is no whole number from `least` on, which `what` tells."""
    if not is_integer(value) or value < least:
        raise InputError(f"{name} must be a whole number, {what}, not {_told(value)}")


def _check(
    name: str,
    value: object,
    fits: Callable[[float], bool] = math.isfinite,
    range_: str = "",
) -> None:
    """range_: what else it must be, as the end of a sentence."""
    number = math.nan
    if is_real(value):
        with suppress(OverflowError):  # a whole number that no float can hold
            number = float(value)
    if not (math.isfinite(number) and fits(number)):
        raise InputError(f"{name} must be a finite number{range_}, not {_told(value)}")


def _told(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"


class Sampler:
    """Draws one token after the other. prompt: ids before the first of them; vocabulary: V.

    Raises:
        InputError: the logit bias of a token that there is not.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, prompt: Iterable[int] = ()):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        bias = dict(sampling.logit_bias or {})
        for token in bias:
            if token >= vocabulary:
                raise InputError(
                    f"a token of logit bias must be from 0 to {vocabulary - 1}, not {token}"
                )
        self._biased = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float64)
        self._repeated = TokenCounts(prompt) if sampling.repetition_penalty != 1 else None
        counts = sampling.frequency_penalty or sampling.presence_penalty
        self._made = TokenCounts() if counts else None

    def add(self, token: int) -> None:
        """`token` is now part of the answer."""
        for tally in (self._repeated, self._made):
            if tally is not None:
                tally.add(token)

    def sample(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> int:
        """logits float32 `[V]` → a token id. allowed: ids in ascending order, one at least."""
        scores = self.adjust(logits)
        if allowed is not None:
            scores = scores[allowed]
        if self.sampling.temperature == 0:
            place = int(scores.argmax())
        else:
            places, weights = self.distribution(scores)
            sums = np.cumsum(weights)
            index = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
            if index == len(sums):  # by rounding: the last one that has any weight
                index = int(np.searchsorted(sums, sums[-1]))
            place = index if places is None else int(places[index])
        return place if allowed is None else int(allowed[place])

    def adjust(self, logits: np.ndarray) -> np.ndarray:
        """Logits with bias and penalties, as new numbers; the same array where there are none."""
        how = self.sampling
        if not len(self._biased) and self._repeated is None and self._made is None:
            return logits
        scores = logits.copy()
        _put(scores, self._biased, scores[self._biased] + self._bias)
        if self._repeated is not None:
            tokens = self._repeated.tokens
            some, penalty = scores[tokens].astype(np.float64), float(how.repetition_penalty)
            with np.errstate(over="ignore"):
                _put(scores, tokens, np.where(some > 0, some / penalty, some * penalty))
        if self._made is not None:
            tokens, counts = self._made.tokens, self._made.counts
            with np.errstate(over="ignore"):
                less = counts * float(how.frequency_penalty) + float(how.presence_penalty)
            _put(scores, tokens, scores[tokens] - less)
        return scores

    def distribution(self, scores: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Places in `scores`, int64 `[n]`, that can be picked, None for all of them; and float64
        `[n]` that their probabilities are proportional to. Of equal ones, the first come first."""
        how, places = self.sampling, None
        if 0 < how.top_k < len(scores):
            places = _largest(scores, int(how.top_k))
            scores = scores[places]
        weights = scores.astype(np.float64)
        weights -= weights.max()
        with np.errstate(over="ignore"):  # minus infinity, of which exp makes 0
            weights /= float(how.temperature)
        np.exp(weights, out=weights)
        if how.top_p < 1:
            kept = _nucleus(weights, float(how.top_p))
            weights = weights[kept]
            places = kept if places is None else places[kept]
        if how.min_p > 0:
            kept = np.flatnonzero(weights >= float(how.min_p))  # the largest is 1
            weights = weights[kept]
            places = kept if places is None else places[kept]
        return places, weights


def _put(scores: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """values: float64, which float32 may not hold."""
    most = np.finfo(np.float32).max
    scores[places] = np.clip(values, -most, most)


class TokenCounts:
    """How often tokens have come: tokens int64 `[n]`, each once, and counts int64 `[n]`."""

    def __init__(self, tokens: Iterable[int] = ()):
        self._places: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.int64)
        for token in tokens:
            self.add(token)

    @property
    def tokens(self) -> np.ndarray:
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._tokens[place] = token
        self._counts[place] += 1


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 `[V]`: log softmax."""
    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= math.log(np.exp(exact).sum())
    return exact


def likeliest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest, the largest first; of equal ones, the first."""
    places = _largest(values, count) if count < len(values) else np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest, ascending, fewer than all; of equal ones, the first."""
    if not count:
        return np.zeros(0, np.int64)
    bound = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: np.ndarray, share: float) -> np.ndarray:
    """Places of the largest, ascending, as few as reach this share of the sum."""
    total = weights.sum()
    # What is below this weighs too little, even all together, for any of it to be wanted; sorting
    # all of a large vocabulary would take longer than all else.
    some = np.flatnonzero(weights > (1 - share) * 0.5 * total / len(weights))
    weights = weights[some]
    ranked = np.sort(weights)[::-1]  # the numbers alone: far quicker than their places
    count = int(np.count_nonzero(np.cumsum(ranked) - ranked < share * total))
    return some[_largest(weights, count)] if count < len(some) else some
