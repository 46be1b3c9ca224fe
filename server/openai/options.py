"""The parameters that chat and text completions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusals import show, unsupported, wrong
from .fields import Fields

MOST_CHOICES = 128
MOST_STOPS = 16
LONGEST_STOP = 1000  # characters
_MOST_TOKENS = 2**31 - 1
_SEED = 2**63


@dataclass(frozen=True)
class Options:
    """choices: answers to one prompt. max_tokens: of an answer; None for as many as fit.
    sampling: arguments of Session.generate. seed: of the first choice; each further one has the
    next. logprobs: how many alternatives are told beside each token; None for no probabilities.
    """

    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    sampling: Mapping[str, Any]
    seed: int | None
    logprobs: int | None

    def arguments(self, choice: int, room: int) -> dict[str, Any]:
        """Of Session.generate, for one of the choices. room: tokens that the context has left; a
        prompt that fills it is followed by one."""
        room = max(1, room)
        wanted = room if self.max_tokens is None else min(room, self.max_tokens)
        seed = None if self.seed is None else (self.seed + choice) % _SEED
        return {
            **self.sampling, "max_new_tokens": wanted, "seed": seed, "logprobs": self.logprobs,
        }  # fmt: skip


def read_options(fields: Fields, max_tokens: int | None, logprobs: int | None) -> Options:
    """Takes what is common; max_tokens and logprobs are read by the caller."""
    accept_harmless(fields)
    stream = fields.boolean("stream")
    include_usage = False
    if "stream_options" in fields:
        if not stream:
            raise wrong("stream_options", "is for streams; set stream to true or leave it out")
        about = fields.inner("stream_options") or Fields({})
        include_usage = about.boolean("include_usage")
        if about.boolean("include_obfuscation"):
            raise unsupported("stream_options.include_obfuscation")
        about.finish()
    choices = fields.whole("n", 1, MOST_CHOICES) or 1
    seed = fields.whole("seed", -_SEED, _SEED - 1)
    sampling = {
        "temperature": fields.number("temperature", 0, 2, 1.0),
        "top_p": fields.number("top_p", 0, 1, 1.0, above=True),
        "min_p": fields.number("min_p", 0, 1, 0.0),
        "top_k": read_top_k(fields),
        "repetition_penalty": fields.number("repetition_penalty", 0, 10, 1.0, above=True),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2, 0.0),
        "presence_penalty": fields.number("presence_penalty", -2, 2, 0.0),
        "logit_bias": read_bias(fields),
        "stop": read_stops(fields),
    }
    return Options(stream, include_usage, choices, max_tokens, sampling, seed, logprobs)


def read_max_tokens(fields: Fields, name: str) -> int | None:
    return fields.whole(name, 1, _MOST_TOKENS)


def read_top_k(fields: Fields) -> int:
    """0 and -1 both stand for all tokens: programs write either."""
    return max(0, fields.whole("top_k", -1, _MOST_TOKENS) or 0)


def read_bias(fields: Fields) -> dict[int, float] | None:
    about = fields.take("logit_bias")
    if about is None:
        return None
    if not isinstance(about, dict):
        raise wrong("logit_bias", f"must be an object, not {show(about)}")
    bias = {}
    for token, value in about.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise wrong("logit_bias", f"has {show(token)} for a token id")
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not -100 <= value <= 100:
            raise wrong("logit_bias", f"must have numbers from -100 to 100, not {show(value)}")
        bias[int(token)] = float(value)
    return bias or None


def read_stops(fields: Fields) -> tuple[str, ...]:
    stop = fields.take("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise wrong("stop", f"must be a string or an array of strings, not {show(stop)}")
    if len(stops) > MOST_STOPS:
        raise wrong("stop", f"must have at most {MOST_STOPS} strings, not {len(stops)}")
    for item in stops:
        if not 1 <= len(item) <= LONGEST_STOP:
            raise wrong(
                "stop", f"must be strings of 1 to {LONGEST_STOP} characters, not {len(item)}"
            )
    return tuple(stops)


def accept_harmless(fields: Fields) -> None:
    """Checks fields that change nothing here: they are about accounts that there are not."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        fields.text(name, 512)
    if fields.boolean("store"):
        raise unsupported("store", "nothing is kept; set it to false")
    fields.choice("service_tier", ("auto", "default"))
    about = fields.inner("metadata")
    if about is not None:
        entries = about.entries()
        if len(entries) > 16 or not all(isinstance(value, str) for value in entries.values()):
            raise wrong("metadata", "must be an object of at most 16 strings")
