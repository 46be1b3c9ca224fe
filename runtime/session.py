"""A session: a bundle opened, and what it has seen so far."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InputError
from ..model.rope import frequencies
from .batching.requests import Seat
from .context import check_tokens, choose_context
from .generation.async_generation import AsyncGeneration
from .generation.generation import Generation, Request, start_generation
from .generation.grammar import Grammar
from .generation.prompts import decode_ids, encode_chat, encode_text
from .generation.template import Message
from .loaded import LoadedModel
from .memory.budget import MemoryPlan
from .recording.clock import Clock
from .recording.stats import Counters, Stats
from .rope_table import BY_LENGTH
from .runner import Observer


class Session:
    """Runs a bundle; `open_bundle` makes it. Not for use by several threads at once, but other
    sessions of the same model may be used meanwhile: what they run at the same time is one batch.

    model: weights, pages and budget, which all its sessions share. position: tokens seen so far, of
    at most `context`; seen: their ids. turn: the number of calls that have changed what it has
    seen. tokenizer: a tokenizers.Tokenizer, or None. chat_template: a ChatTemplate, or None where
    the bundle has none.
    """

    def __init__(self, model: LoadedModel, context: int, seat: Seat):
        self.model = model
        self.manifest = model.manifest
        self.context = context
        self.tokenizer = model.tokenizer
        self.chat_template = model.chat_template
        self.turn = 0
        self._seat = seat
        self._seen: list[int] = []
        self._whole = 0  # of those seen, the first that came in whole batches
        self._rotations: list[tuple[int, object]] = []
        self._clock = Clock()
        self._runner = model.runner
        self._pager = model.runner.pager
        self._closed = False
        self._busy = threading.Lock()  # held by a call of `forward`
        self._dropped = weakref.finalize(self, self.model.drop_seat, seat)
        self._dropped.atexit = False

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def another(self, context: int | None = None) -> Session:
        """Opens another session of the same model: with its own past, of `context` tokens, by
        default as many as this one has. Its keys and values come out of the same memory budget.

        Raises:
            BudgetError: they do not fit into it.
            ContextError, InputError: the model cannot see as much.
        """
        self._need_open()
        seen = self.context
        if context is not None:
            seen = choose_context(context, self.manifest.spec, str(self.model.root))
        seat = self.model.open_seat(seen)
        if seat is None:
            raise InputError("the session is closed; open the bundle again")
        return Session(self.model, seen, seat)

    @property
    def position(self) -> int:
        self._need_open()
        return self._seat.cache.position

    @property
    def seen(self) -> tuple[int, ...]:
        """The ids of the tokens that it has seen, `position` of them."""
        self._need_open()
        return tuple(self._seen)

    @property
    def plan(self) -> MemoryPlan:
        """Where the model's memory goes."""
        return self.model.plan

    def reset(self) -> None:
        """Forgets what it has seen; the page cache stays. A generation that was under way ends."""
        self._need_open()
        with self._use():
            self.turn += 1
            self._rewind(0)

    @property
    def exact(self) -> bool:
        """Whether numbers do not depend on how tokens are split into calls: where the native
        kernels compute all. Other engines round otherwise for other numbers of tokens."""
        engines = self._runner.engines
        return "native" in engines.experts and "onnxruntime" not in engines.backbone

    def rewind(self, position: int) -> int:
        """Forgets the tokens from `position` on; returns how many it has seen now, which is 0 where
        a sliding window no longer holds what `position` sees.

        What follows is as if the tokens before had been run by themselves. Where native kernels run
        the whole model (see Stats.backbone_engine), that is also, to the bit, as if they were run
        in the same call as what follows; elsewhere products of other sizes round differently. See
        `keep` for models that rotate keys by the length of a text.

        Raises:
            InputError: position is not from 0 to `position`.
        """
        self._need_open()
        with self._use():
            if not 0 <= position <= self.position:
                raise InputError(f"position must be from 0 to {self.position}, not {position}")
            self.turn += 1
            return self._rewind(position)

    def keep(self, token_ids: Sequence[int]) -> int:
        """Forgets all but the beginning that a text shares with what was seen; returns how many
        tokens that is. The last token of the text is never kept, as it has to be run for logits.
        The numbers of what follows are those of a session that sees the whole text at once: where
        it is not `exact`, whole batches alone are kept.

        Nothing is kept where keys of the beginning are rotated otherwise in a text of this length
        ("dynamic" and "longrope", beyond the length that the model was first trained for).
        """
        self._need_open()
        with self._use():
            self.turn += 1
            ids, seen = list(token_ids), self._seen
            most = min(len(ids) - 1, len(seen))
            shared = next((i for i in range(most) if ids[i] != seen[i]), max(0, most))
            rotation = self._rotation(len(ids))
            if any(start < shared and other != rotation for start, other in self._rotations):
                shared = 0
            if not self.exact:
                batch = self.plan.batch
                shared = min(shared, self._whole) // batch * batch
            return self._rewind(shared)

    def _rewind(self, position: int) -> int:
        """`_busy` is held."""
        kept = self.model.rewind(self._seat, position)
        del self._seen[kept:]
        self._whole = min(self._whole, kept)
        self._rotations = [item for item in self._rotations if item[0] < kept]
        return kept

    def _rotation(self, length: int) -> object:
        """What keys are rotated by in a text of so many tokens; None where all have the same."""
        rope = self.manifest.spec.rope
        return frequencies(rope, length) if rope.kind in BY_LENGTH else None

    def close(self) -> None:
        """Gives its memory back, and with the last session of the model all files and memory. May
        be called twice.

        Raises:
            InputError: another thread is in `forward`, or an observer of the model calls this.
        """
        if self._closed:
            return
        with self._use("the session runs in another thread; end that first: cancel its generation"):
            try:
                self.model.close_seat(self._seat)
            finally:  # not where it was refused, or interrupted while it waited
                if not self.model.holds(self._seat):
                    self._closed = True
                    self._dropped.detach()

    @contextmanager
    def _use(
        self,
        refusal: str = "the session is in use by another thread or task; open one for each, with "
        "session.another()",
    ) -> Iterator[None]:
        """Around what changes its past.

        Raises:
            InputError: another thread does so.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError(refusal)
        try:
            yield
        finally:
            self._busy.release()

    def forward(
        self,
        token_ids: Sequence[int],
        *,
        last_only: bool = False,
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """Logits float32 `[T, V]` of `token_ids`, which follow what was seen; last_only: `[1, V]`.

        Where threads call this on sessions of one model at the same time, their tokens run as one
        batch; each gets the logits that it would get alone.

        observe: told each segment's index and outputs, batch by batch; the arrays are valid only
        until it returns. Such a call is not joined with others. cancelled: asked before each batch;
        True raises Cancelled.

        Raises:
            InputError: no tokens, or ids that the vocabulary does not have.
            ContextError: they do not fit into the context.
            BundleError: a page cannot be read. Whole batches before it are seen: see `position`.
        """
        self._need_open()
        with self._use():
            self.turn += 1
            spec, first, batch = self.manifest.spec, self.position, self.plan.batch
            ids = check_tokens(token_ids, spec, position=first, context=self.context)
            logits = np.empty((1 if last_only else len(ids), spec.vocab_size), np.float32)
            self._seen += ids.tolist()
            rotation = self._rotation(first + len(ids))
            if not self._rotations or self._rotations[-1][1] != rotation:
                self._rotations.append((first, rotation))
            try:
                self.model.run(self._seat, ids, logits, observe, cancelled)
            finally:
                del self._seen[self._seat.cache.position :]
                if first == self._whole:
                    self._whole += (self._seat.cache.position - first) // batch * batch
            return logits

    def rest(self) -> None:
        """Says that it runs nothing for a while, so that other sessions of the model do not wait
        for its next token. From any thread; a generation says so at its end."""
        self.model.rest(self._seat)

    def set_memory_budget(self, budget: int | str | None) -> None:
        """Grows or shrinks the page cache: from now on the whole process keeps to another budget,
        with all sessions of the model.

        budget: as for `open_bundle`. It may be called at any time and from any thread; while
        another thread is in `forward`, memory is given back after the tokens that go through the
        layers just then, at most plan.batch. Output does not change.

        Raises:
            BudgetError: it is too small; the present one stays.
        """
        self._need_open()
        self.model.set_memory_budget(budget)

    def encode(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; what is no whole character is U+FFFD.

        Raises:
            InputError: the bundle has no tokenizer, or these are no ids of its vocabulary.
        """
        return decode_ids(self.tokenizer, self.manifest.spec, token_ids)

    def encode_chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation and of the start of an answer, by the chat template.

        messages: `{"role": ..., "content": ...}` each. variables: what the template knows besides,
        such as `tools` or `enable_thinking`.

        Raises:
            InputError: the bundle has no chat template, or it refuses the conversation.
        """
        return encode_chat(self.tokenizer, self.chat_template, messages, variables)

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        grammar: Grammar | None = None,
        cancel: threading.Event | None = None,
    ) -> Generation:
        """Continues `prompt`; an iterator of Pieces, which are made as it is asked for them.

        prompt: text, token ids, or the messages of a conversation, which is answered. Where it
        begins as what the session has seen, that is not run again: see Generation.reused_tokens.
        It ends at an end-of-sequence token, at one of the strings in `stop`, which are no part of
        the text, where the grammar is complete, after max_new_tokens, or where the context ends.
        Sampling: see Sampling. logprobs: how many alternatives to tell with each token's log
        probability; None for no log probabilities. grammar: what the text must fit. cancel: once
        it is set, the generation ends within a token, or within a batch of the prompt.

        Raises:
            InputError: at once: an empty prompt, an argument out of range, a grammar that cannot
                be compiled. Later: the session was used for something else meanwhile.
            ContextError: at once: the prompt is longer than the context.
        """
        self._need_open()
        request = Request(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repetition_penalty=repetition_penalty, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, logit_bias=logit_bias, seed=seed, stop=stop,
            logprobs=logprobs, grammar=grammar, cancel=cancel,
        )  # fmt: skip
        return self._start(prompt, request)

    def agenerate(
        self, prompt: str | Sequence[int] | Sequence[Message], **arguments: Any
    ) -> AsyncGeneration:
        """`generate` for asyncio: an asynchronous iterator of Pieces, with the same arguments.

        A thread of its own does the work, so the event loop goes on. Cancelling the task that
        waits for a piece, or `aclose`, ends it within a token.

        Raises:
            TypeError, InputError: at once: there is no such argument, or one is out of range. What
                is wrong with the prompt or the grammar is raised with the first piece.
        """
        self._need_open()
        request = Request(**arguments)
        return AsyncGeneration(lambda: self._start(prompt, request))

    def _start(
        self, prompt: str | Sequence[int] | Sequence[Message], request: Request
    ) -> Generation:
        return start_generation(self, prompt, request, self._clock, self.model.vocabulary)

    @property
    def counters(self) -> Counters:
        """Of the model, as of now. Cheaper than `stats`; two can be subtracted."""
        return self.model.counters

    @property
    def stats(self) -> Stats:
        """What its generations have counted, and what the model has."""
        return self.model.gather_stats(self._clock, self.context)

    def _need_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed; open the bundle again")
        self.model.need_open()
