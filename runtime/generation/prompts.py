"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ...errors import InputError
from ...model.spec import ModelSpec
from ..context import check_tokens
from .template import ChatTemplate, Message
from .text import encode


def encode_text(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`; InputError where the bundle has no tokenizer, or `text` is not valid."""
    return encode(need_tokenizer(tokenizer), text, add_special_tokens=add_special_tokens)


def decode_ids(tokenizer: Any, spec: ModelSpec, token_ids: Sequence[int]) -> str:
    """See Session.decode."""
    need_tokenizer(tokenizer)
    if len(token_ids) == 0:
        return ""
    ids = check_tokens(token_ids, spec, position=0, context=len(token_ids)).tolist()
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def encode_chat(
    tokenizer: Any,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
) -> list[int]:
    """Token ids of a conversation and of the start of an answer, by the chat template.

    Raises:
        InputError: the bundle has no chat template, it refuses the conversation, or a message is
            none.
    """
    check_messages(messages)
    if template is None:
        raise InputError("the bundle has no chat template; give text instead of messages")
    text = template.render(messages, **variables)
    return encode_text(tokenizer, text, add_special_tokens=False)


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InputError where one lacks its role or its content: a template would write "None", or
    nothing. Roles are the template's to know."""
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {place} must be a mapping with a role, such as 'user'")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, (str, list)):
            raise InputError(f"the content of message {place} must be text, not {content!r:.60}")


def encode_prompt(
    tokenizer: Any,
    template: ChatTemplate | None,
    prompt: str | Sequence[int] | Sequence[Message],
) -> Sequence[int]:
    """Raises InputError where it is none of these."""
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt)
    if not isinstance(prompt, (Sequence, np.ndarray)) or isinstance(prompt, (bytes, bytearray)):
        raise InputError(
            f"a prompt is text, token ids, or a list of messages, not {type(prompt).__name__}"
        )
    if len(prompt) and isinstance(prompt[0], Mapping):
        return encode_chat(tokenizer, template, cast("Sequence[Message]", prompt), {})
    return cast("Sequence[int]", prompt)


def need_tokenizer(tokenizer: Any) -> Any:
    """Raises InputError where the bundle has none."""
    if tokenizer is None:
        raise InputError("the bundle has no tokenizer; give token ids to forward() instead")
    return tokenizer
