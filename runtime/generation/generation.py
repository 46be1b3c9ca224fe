"""Prefill of a prompt, then decoding token by token, over a session's `forward`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ...bundle.manifest import Manifest
from ...errors import InputError
from ..context import check_tokens
from ..memory.host_memory import give_back_freed
from ..recording.clock import Clock
from ..recording.stats import Counters
from ..runner import Cancelled
from .grammar import Grammar, Matcher
from .pieces import Piece, PieceMaker
from .prompts import encode_prompt, need_tokenizer
from .sampling import Sampler, Sampling, check_whole
from .stops import check_stops
from .template import ChatTemplate, Message
from .vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Request(Sampling):
    """What is asked of a generation but the prompt; see Session.generate."""

    max_new_tokens: int = 256
    stop: str | Sequence[str] | None = None
    logprobs: int | None = None
    grammar: Grammar | None = None
    cancel: threading.Event | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("max_new_tokens", self.max_new_tokens, 1, "1 or more")
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, "0 or more")
        check_stops(self.stop)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise InputError("grammar must be a Grammar, such as Grammar.regex('[0-9]+')")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise InputError("cancel must be a threading.Event")


class TokenRunner(Protocol):
    """What a generation needs of a session: to run tokens after those that it has seen, and to
    know them. See Session, which is one, for what each does and raises."""

    turn: int

    @property
    def manifest(self) -> Manifest: ...

    @property
    def context(self) -> int: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    @property
    def position(self) -> int: ...

    @property
    def counters(self) -> Counters: ...

    def keep(self, token_ids: Sequence[int]) -> int: ...

    def forward(
        self,
        token_ids: Sequence[int],
        *,
        last_only: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> np.ndarray: ...

    def rest(self) -> None: ...


def start_generation(
    session: TokenRunner,
    prompt: str | Sequence[int] | Sequence[Message],
    request: Request,
    clock: Clock,
    vocabulary: Callable[[], Vocabulary],
) -> Generation:
    """Checks the arguments now, and generates as the iterator is asked; see Session.generate.
    vocabulary: asked for the tokenizer's where the request has a grammar."""
    tokenizer, spec = need_tokenizer(session.tokenizer), session.manifest.spec
    ids = encode_prompt(tokenizer, session.chat_template, prompt)
    ids = check_tokens(ids, spec, position=0, context=session.context).tolist()
    sampler = Sampler(request, spec.vocab_size, ids)
    matcher = None
    if request.grammar is not None:
        matcher = Matcher(request.grammar, vocabulary())
    maker = PieceMaker(tokenizer, check_stops(request.stop), request.logprobs)
    return Generation(session, ids, request, sampler, matcher, maker, clock)


class Generation:
    """An iterator of Pieces. Use one before the next of its session, from one thread at a time;
    `close` may be called from any.

    prompt_tokens: of the prompt; reused_tokens: how many of them were not run again, known with
    the first piece. new_tokens: made so far, one that ends the text included. finish_reason:
    "stop" (a token or a string that ends the text, or a complete grammar), "length"
    (max_new_tokens, or the end of the context) or "cancelled"; None before the end.

    Raises, while it is iterated:
        InputError: the session was used for something else meanwhile.
        BundleError: a page cannot be read.
    """

    def __init__(
        self,
        session: TokenRunner,
        prompt: list[int],
        request: Request,
        sampler: Sampler,
        matcher: Matcher | None,
        maker: PieceMaker,
        clock: Clock,
    ):
        self.prompt_tokens = len(prompt)
        self.reused_tokens = 0
        self.new_tokens = 0
        self.finish_reason: str | None = None
        self._session = session
        self._prompt = prompt
        self._most = int(request.max_new_tokens)
        self._cancel = request.cancel
        self._sampler, self._matcher, self._maker = sampler, matcher, maker
        self._clock = clock
        self._closed = False
        self._running = threading.Lock()  # held while a piece is made
        self._text: list[str] = []
        self._pieces = self._run()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        if self._closed:
            raise StopIteration
        if not self._running.acquire(blocking=False):
            raise InputError("the generation is in use by another thread; give each its own")
        try:
            piece = next(self._pieces)
        finally:
            self._running.release()
        if self._closed:  # while the piece was made
            raise StopIteration
        self._text.append(piece.text)
        self.finish_reason = piece.finish_reason
        if piece.finish_reason is not None:
            self._session.rest()
        return piece

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; no more pieces come. What runs in another thread ends within a token, or within
        a batch of the prompt."""
        self._closed = True
        self._session.rest()
        if self.finish_reason is None:
            self.finish_reason = "cancelled"

    def text(self) -> str:
        """Runs to the end; all of the text, from its beginning."""
        for _ in self:
            pass
        return "".join(self._text)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, such as an alternative in TokenLogprob.top."""
        return self._maker.bytes.of(token_id)

    def _cancelled(self) -> bool:
        return self._closed or (self._cancel is not None and self._cancel.is_set())

    def _run(self) -> Iterator[Piece]:
        maker, matcher, session = self._maker, self._matcher, self._session
        ends = {*session.manifest.spec.eos_token_ids, *(matcher.ends if matcher else ())}
        try:
            logits = self._read_prompt()
            while (token := self._pick(logits)) not in ends:
                piece = maker.push(token, logits)
                if maker.stopped or (matcher is not None and matcher.complete):
                    yield maker.finish("stop", piece)
                    return
                if self.new_tokens == self._most or session.position == session.context:
                    yield maker.finish("length", piece)
                    return
                if piece is not None:
                    yield piece
                logits = self._step(token)
            yield maker.finish("stop")
        except Cancelled:
            yield maker.finish("cancelled")
        finally:
            if matcher is not None:
                del matcher
                self._matcher = None
                give_back_freed()

    def _read_prompt(self) -> np.ndarray:
        """Logits after the prompt."""
        self._started = time.perf_counter()
        if self._cancelled():
            raise Cancelled
        session, clock = self._session, self._clock
        self.reused_tokens = session.keep(self._prompt)
        self._turn = session.turn
        logits = self._forward(self._prompt[self.reused_tokens :])
        clock.prompt_tokens += self.prompt_tokens - self.reused_tokens
        clock.prompt_seconds += time.perf_counter() - self._started
        return logits

    def _step(self, token: int) -> np.ndarray:
        """Logits after one more token."""
        self._begun, self._before = time.perf_counter(), self._session.counters
        return self._forward([token])

    def _forward(self, tokens: Sequence[int]) -> np.ndarray:
        self._need_turn()
        logits = self._session.forward(tokens, last_only=True, cancelled=self._cancelled)
        self._turn += 1
        self._need_turn()
        return logits[0]

    def _need_turn(self) -> None:
        if self._session.turn != self._turn:
            raise InputError(
                "the session was used for something else during this generation; "
                "finish one before the next, or open two sessions"
            )

    def _pick(self, logits: np.ndarray) -> int:
        """The next token. It ends a step, whose time is counted."""
        matcher, clock = self._matcher, self._clock
        token = self._sampler.sample(logits, matcher.allowed() if matcher is not None else None)
        self._sampler.add(token)
        if matcher is not None:
            matcher.add(token)
        self.new_tokens += 1
        now = time.perf_counter()
        if self.new_tokens == 1:
            clock.time_to_first_token = now - self._started
            clock.new_tokens += 1
        else:
            clock.count_step(now - self._begun, self._session.counters - self._before)
        return token
