"""From a prompt to text, token by token, over a session's `forward`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import ContextError, InputError
from .chat import Message
from .context import check_tokens, longer_context
from .sampling import Sampler
from .text import TextStream, encode

if TYPE_CHECKING:
    from .session import Session
    from .stats import Counters


@dataclass
class Clock:
    """What a session's generations have taken so far; see Stats."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    time_to_first_token: float | None = None
    decode_page_hits: int = 0
    decode_page_misses: int = 0
    decode_bytes_read: int = 0
    decode_read_seconds: float = 0.0
    decode_wait_seconds: float = 0.0
    decode_skipped_experts: int = 0
    decode_gpu_page_hits: int = 0
    decode_link_bytes: int = 0

    def count_step(self, seconds: float, done: Counters) -> None:
        """Adds a new token that was run through the model."""
        self.new_tokens += 1
        self.decode_steps += 1
        self.decode_seconds += seconds
        self.decode_page_hits += done.page_hits
        self.decode_page_misses += done.page_misses
        self.decode_bytes_read += done.bytes_read
        self.decode_read_seconds += done.read_seconds
        self.decode_wait_seconds += done.wait_seconds
        self.decode_skipped_experts += done.skipped_experts
        self.decode_gpu_page_hits += done.gpu_page_hits
        self.decode_link_bytes += done.link_bytes


def encode_text(session: Session, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`; InputError where the bundle has no tokenizer, or `text` is not valid."""
    return encode(_tokenizer(session), text, add_special_tokens=add_special_tokens)


def encode_chat(
    session: Session, messages: Sequence[Message], variables: Mapping[str, Any]
) -> list[int]:
    """Token ids of a conversation and of the start of an answer, by the chat template.

    Raises:
        InputError: the bundle has no chat template, or it refuses the conversation.
    """
    if session.chat_template is None:
        raise InputError("the bundle has no chat template; give text instead of messages")
    text = session.chat_template.render(messages, **variables)
    return encode_text(session, text, add_special_tokens=False)


def encode_prompt(
    session: Session, prompt: str | Sequence[int] | Sequence[Message]
) -> Sequence[int]:
    if isinstance(prompt, str):
        return encode_text(session, prompt)
    if len(prompt) and isinstance(prompt[0], Mapping):
        return encode_chat(session, cast("Sequence[Message]", prompt), {})
    return cast("Sequence[int]", prompt)


def start_generation(
    session: Session,
    prompt: str | Sequence[int] | Sequence[Message],
    sampler: Sampler,
    max_new_tokens: int,
    clock: Clock,
) -> Iterator[str]:
    """Checks the arguments now, and generates as the iterator is asked; see Session.generate."""
    if max_new_tokens < 1:
        raise InputError(f"number of new tokens must be 1 or more, not {max_new_tokens}")
    stream = TextStream(_tokenizer(session))
    ids = encode_prompt(session, prompt)
    ids = check_tokens(ids, session.manifest.spec, position=0, context=session.context).tolist()
    return _generate(session, ids, sampler, stream, max_new_tokens, clock)


def _generate(
    session: Session,
    ids: Sequence[int],
    sampler: Sampler,
    stream: TextStream,
    max_new_tokens: int,
    clock: Clock,
) -> Iterator[str]:
    spec, context = session.manifest.spec, session.context
    started = time.perf_counter()
    session.reset()
    turn = session.turn + 1
    logits = session.forward(ids, last_only=True)
    clock.prompt_tokens += len(ids)
    clock.prompt_seconds += time.perf_counter() - started
    token = sampler.sample(logits[0])
    clock.time_to_first_token = time.perf_counter() - started
    clock.new_tokens += 1
    for left in reversed(range(max_new_tokens)):
        if token in spec.eos_token_ids:
            break
        if piece := stream.push(token):
            yield piece
        if left:
            begun = time.perf_counter()
            if session.turn != turn:
                raise InputError(
                    "the session was used for something else during this generation; "
                    "finish one before the next, or open two sessions"
                )
            if session.position == context:
                raise ContextError(
                    f"the context of {context} tokens is full; ask for fewer new tokens"
                    + longer_context(spec, context)
                )
            turn += 1
            before = session.counters
            logits = session.forward([token], last_only=True)
            token = sampler.sample(logits[0])
            clock.count_step(time.perf_counter() - begun, session.counters - before)
    if piece := stream.finish():
        yield piece


def _tokenizer(session: Session) -> Any:
    if session.tokenizer is None:
        raise InputError("the bundle has no tokenizer; give token ids to forward() instead")
    return session.tokenizer
