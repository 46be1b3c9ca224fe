"""`/v1/completions`: from a request's body to what is generated."""

from __future__ import annotations

from ..refusals import unsupported, wrong
from ..service import Service
from .completion_answer import CompletionAnswer
from .fields import Fields
from .json_body import parse_object
from .models import check_model
from .options import read_options
from .parameters import (
    BEST_OF,
    COMPLETION_TOKENS,
    ECHO,
    MAX_TOKENS,
    MODEL,
    MOST_CHOICES,
    PROMPT,
    SUFFIX,
    TEXT_LOGPROBS,
)
from .prompts import check_prompt, encode_prompt
from .request import GenerationRequest, check_bias, check_grammar, new_heading
from .response_format import read_format
from .special_kinds import Prompt


def read_completion(service: Service, body: bytes) -> GenerationRequest:
    """Raises RequestError."""
    fields = Fields(parse_object(body, service.most_values))
    check_model(service, fields.read(MODEL))
    prompts = fields.read(PROMPT)
    fields.read(SUFFIX)
    max_tokens = fields.read(MAX_TOKENS) or COMPLETION_TOKENS
    echo, logprobs = fields.read(ECHO), fields.read(TEXT_LOGPROBS)
    best_of = fields.read(BEST_OF)
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
    answer = CompletionAnswer(heading, texts, None if logprobs is None else service.spell)
    return GenerationRequest(options, ids, grammar, answer)


def encode_one(
    service: Service, prompt: Prompt, where: str, *, with_text: bool
) -> tuple[list[int], str]:
    """Token ids, and the text where that is wanted."""
    if isinstance(prompt, list):
        check_prompt(service, prompt, where)
        return prompt, service.session.tokenizer.decode(prompt) if with_text else ""
    ids = encode_prompt(service, prompt, where, add_special_tokens=True)
    return ids, prompt if with_text else ""
