"""A request that was read and checked, and can be generated."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import PocketMoEError
from ...runtime.generation.grammar import Grammar, Matcher
from ...runtime.memory.host_memory import give_back_freed
from ..generating import Turn
from ..refusals import refusal_of, wrong
from ..service import Service
from .answer import Answer, Heading
from .options import Options


@dataclass(frozen=True)
class GenerationRequest:
    """prompts: token ids, each continued `options.choices` times."""

    options: Options
    prompts: Sequence[Sequence[int]]
    grammar: Grammar | None
    answer: Answer

    def turns(self, context: int) -> list[Turn]:
        return [
            Turn(
                number * self.options.choices + choice,
                ids,
                {**self.options.arguments(choice, context - len(ids)), "grammar": self.grammar},
            )
            for number, ids in enumerate(self.prompts)
            for choice in range(self.options.choices)
        ]


def check_bias(service: Service, options: Options) -> None:
    """Raises RequestError where it is of a token that there is not."""
    vocabulary = service.session.manifest.spec.vocab_size
    for token in options.sampling["logit_bias"] or ():
        if token >= vocabulary:
            raise wrong("logit_bias", f"has token {token}; the last one is {vocabulary - 1}")


def check_grammar(service: Service, grammar: Grammar | None, param: str) -> None:
    """Raises RequestError where it cannot be compiled."""
    if grammar is None:
        return
    try:
        Matcher(grammar, service.session.model.vocabulary())
    except PocketMoEError as error:
        raise refusal_of(error, param) from error
    finally:
        give_back_freed()  # of one that is large, what it took


def new_heading(service: Service, kind: str, options: Options) -> Heading:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return Heading(
        identity=f"{prefix}-{secrets.token_hex(14)}",
        kind=kind,
        created=int(time.time()),
        model=service.name,
        fingerprint=service.fingerprint,
        streams_usage=options.include_usage,
    )
