"""The options that chat and text completions share, as a generation wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..refusals import wrong
from .fields import Fields
from .parameters import (
    CHOICES,
    FREQUENCY_PENALTY,
    INCLUDE_OBFUSCATION,
    INCLUDE_USAGE,
    LOGIT_BIAS,
    MIN_P,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    SEED,
    SEEDS,
    STOP,
    STREAM,
    STREAM_OPTIONS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    UNUSED,
)


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
        seed = None if self.seed is None else (self.seed + choice) % SEEDS
        return {
            **self.sampling, "max_new_tokens": wanted, "seed": seed, "logprobs": self.logprobs,
        }  # fmt: skip


def read_options(fields: Fields, max_tokens: int | None, logprobs: int | None) -> Options:
    """Takes what is common; max_tokens and logprobs are read by the caller."""
    for parameter in UNUSED:
        fields.read(parameter)
    stream = fields.read(STREAM)
    include_usage = False
    if STREAM_OPTIONS in fields and not stream:
        raise wrong("stream_options", "is for streams; set stream to true or leave it out")
    about = fields.read(STREAM_OPTIONS)
    if about is not None:
        include_usage = about.read(INCLUDE_USAGE)
        about.read(INCLUDE_OBFUSCATION)
        about.finish()
    choices = fields.read(CHOICES)
    seed = fields.read(SEED)
    sampling = {
        "temperature": fields.read(TEMPERATURE),
        "top_p": fields.read(TOP_P),
        "min_p": fields.read(MIN_P),
        "top_k": max(0, fields.read(TOP_K)),
        "repetition_penalty": fields.read(REPETITION_PENALTY),
        "frequency_penalty": fields.read(FREQUENCY_PENALTY),
        "presence_penalty": fields.read(PRESENCE_PENALTY),
        "logit_bias": fields.read(LOGIT_BIAS),
        "stop": fields.read(STOP),
    }
    return Options(stream, include_usage, choices, max_tokens, sampling, seed, logprobs)
