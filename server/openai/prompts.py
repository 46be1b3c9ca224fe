"""Prompts: texts as token ids that fit into the context."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PocketMoEError
from ...runtime.context import check_tokens
from ...runtime.generation.text import encode
from ...runtime.memory.host_memory import give_back_freed
from ..refusals import RequestError, refusal_of
from ..service import Service

_FIRST_CHARACTERS = 8  # of a text, for each token of the context
_SURE = 64  # tokens


def encode_prompt(
    service: Service, text: str, param: str, *, add_special_tokens: bool
) -> list[int]:
    """Token ids of a text.

    One that is far too long is refused by its beginning: a tokenizer takes up to two hundred times
    the text's size, which the memory budget does not count.

    Raises:
        RequestError: it does not fit into the context, or is not valid.
    """
    tokenizer, context = service.session.tokenizer, service.session.context
    check_length(service, len(text), param)
    size = _FIRST_CHARACTERS * (context + 1)
    while size < len(text):
        # Where a text is cut, a few tokens can be others; so many more it takes to be sure.
        if len(encode(tokenizer, text[:size], add_special_tokens=False)) > context + _SURE:
            raise too_long(service, param)
        size *= 4
    try:
        ids = encode(tokenizer, text, add_special_tokens=add_special_tokens)
    except PocketMoEError as error:
        raise refusal_of(error, param) from error
    finally:
        give_back_freed()  # of one that is large, what it took
    check_prompt(service, ids, param)
    return ids


def check_prompt(service: Service, ids: Sequence[int], param: str) -> None:
    """Raises RequestError where it is empty, does not fit, or has unknown tokens."""
    session = service.session
    if len(ids) > session.context:
        raise too_long(service, param, len(ids))
    try:
        check_tokens(ids, session.manifest.spec, position=0, context=session.context)
    except PocketMoEError as error:
        raise refusal_of(error, param) from error
    finally:
        give_back_freed()  # of one that is large, what it took


def check_length(service: Service, characters: int, param: str) -> None:
    """Raises RequestError where so many characters cannot fit, whatever they are."""
    if characters > service.longest_token * service.session.context:
        raise too_long(service, param)


def too_long(service: Service, param: str, count: int | None = None) -> RequestError:
    """count: of its tokens, where it is known."""
    session = service.session
    how_many = "more tokens" if count is None else f"{count} tokens, more"
    larger = session.context < session.manifest.spec.max_context
    remedy = ", or have the server started with a larger --context" if larger else ""
    return RequestError(
        f"{param} has {how_many} than the context of {session.context} tokens; shorten it{remedy}",
        param=param,
        code="context_length_exceeded",
    )
