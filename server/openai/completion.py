"""`/v1/completions`: from a request's body to what is generated."""

from __future__ import annotations

from typing import Any

from ..refusals import show, unsupported, wrong
from ..service import Service
from .fields import Fields, parse_object
from .formats import read_format
from .options import MOST_CHOICES, read_max_tokens, read_options
from .prepared import (
    Prepared,
    check_bias,
    check_grammar,
    check_model,
    check_prompt,
    encode_prompt,
    new_heading,
)
from .text_answer import TextAnswer

_MAX_TOKENS = 16  # OpenAI's default
_MOST_ALTERNATIVES = 5


def prepare_completion(service: Service, body: bytes) -> Prepared:
    """Raises RequestError."""
    fields = Fields(parse_object(body, service.most_values))
    check_model(fields, service.name)
    prompts = read_prompts(fields)
    if fields.text("suffix"):
        raise unsupported("suffix")
    max_tokens = read_max_tokens(fields, "max_tokens") or _MAX_TOKENS
    echo = fields.boolean("echo")
    logprobs = fields.whole("logprobs", 0, _MOST_ALTERNATIVES)
    best_of = fields.whole("best_of", 1, MOST_CHOICES)
    options = read_options(fields, max_tokens, logprobs)
    grammar = read_format(fields)
    fields.finish()
    check_bias(service, options)
    if best_of not in (None, options.choices):
        raise unsupported("best_of", "leave it out, or give the same as n")
    if echo and logprobs is not None:
        raise wrong(
            "echo",
            "is not supported together with logprobs; leave one out",
            "unsupported_parameter",
        )
    if len(prompts) * options.choices > MOST_CHOICES:
        raise wrong("n", f"times the number of prompts must be at most {MOST_CHOICES}")
    ids, texts = [], []
    for index, prompt in enumerate(prompts):
        where = f"prompt[{index}]" if len(prompts) > 1 else "prompt"
        encoded, text = encode_one(service, prompt, where, with_text=echo)
        ids.append(encoded)
        texts += [text] * options.choices
    check_grammar(service, grammar, "response_format")
    heading = new_heading(service, "text_completion", options)
    answer = TextAnswer(heading, texts, None if logprobs is None else service.spell)
    return Prepared(options, ids, grammar, answer)


def read_prompts(fields: Fields) -> list[str | list[int]]:
    """One prompt or several, each text or token ids."""
    prompt = fields.need("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise wrong("prompt", f"must be a string, token ids, or an array of either, not "
                              f"{show(prompt)}")  # fmt: skip
    if isinstance(prompt[0], int):
        return [check_ids(prompt)]
    return [
        item if isinstance(item, str) else check_ids(item) for item in prompt[: MOST_CHOICES + 1]
    ]


def check_ids(ids: Any) -> list[int]:
    fits = isinstance(ids, list) and all(type(token) is int for token in ids)
    if not fits or not all(0 <= token < 2**31 for token in ids):
        raise wrong("prompt", "must be text or token ids, whole numbers from 0 on")
    checked: list[int] = ids
    return checked


def encode_one(
    service: Service, prompt: str | list[int], where: str, *, with_text: bool
) -> tuple[list[int], str]:
    """Token ids, and the text where that is wanted."""
    if isinstance(prompt, list):
        check_prompt(service, prompt, where)
        return prompt, service.session.tokenizer.decode(prompt) if with_text else ""
    ids = encode_prompt(service, prompt, where, add_special_tokens=True)
    return ids, prompt if with_text else ""
