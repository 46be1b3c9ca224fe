"""A session: a bundle opened, and what it has seen so far."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InputError
from .async_generation import AsyncGeneration
from .budget import AUTO, MemoryPlan, fit_budget, read_budget
from .bundle import Manifest
from .chat import Message, load_chat_template
from .clock import Clock
from .context import check_tokens
from .generation import Generation, Request, start_generation
from .grammar import Grammar
from .lossy import ExpertChoice
from .prompts import encode_chat, encode_text
from .recording import Recording, is_prompt
from .runner import Cancelled, Observer, Runner
from .stats import Counters, Stats, process_memory


class Session:
    """Runs a bundle; `open_bundle` makes it. Not for use by several threads at once.

    position: tokens seen so far, of at most `context`; seen: their ids. turn: the number of calls
    that have changed what it has seen. tokenizer: a tokenizers.Tokenizer, or None. chat_template: a ChatTemplate, or
    None where the bundle has none.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        plan: MemoryPlan,
        tokenizer: Any,
        context: int,
        threads: int,
        runner: Runner,
        choice: ExpertChoice,
        recording: Recording,
    ):
        self.manifest = manifest
        self.context = context
        self.tokenizer = tokenizer
        self.chat_template = load_chat_template(root, manifest)
        self.plan = plan
        self.turn = 0
        self.seen: list[int] = []
        self._whole = 0  # of those seen, the first that came in whole batches
        self._threads = threads
        self._clock = Clock()
        self._choice = choice
        self._recording = recording
        self._runner = runner
        self._pager = runner.pager
        self._root = root
        self._process = os.getpid()
        self._wanted: MemoryPlan | None = plan  # to be followed when no forward is under way
        self._closed = False
        self._busy = threading.Lock()  # held by a call of `forward`
        self._computing = threading.Lock()  # held while the pager is used
        self._planning = threading.Lock()  # held for `plan` and `_wanted`
        self._follow_plan()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def position(self) -> int:
        self._need_open()
        return self._runner.position

    def reset(self) -> None:
        """Forgets what it has seen; the page cache stays. A generation that was under way ends."""
        self._need_open()
        self._take_busy()
        try:
            self._reset()
        finally:
            self._busy.release()

    def _reset(self) -> None:
        self.turn += 1
        self._runner.reset()
        self.seen, self._whole = [], 0

    @property
    def exact(self) -> bool:
        """Whether numbers do not depend on how tokens are split into calls: where the native
        kernels compute all. Other engines round otherwise for other numbers of tokens."""
        engines = self._runner.engines
        return "native" in engines.experts and "onnxruntime" not in engines.backbone

    def rewind(self, position: int) -> int:
        """Goes back to where `position` tokens had been seen, or further: to where the numbers of
        what follows are those of a session that sees it all at once. Returns where that is."""
        self._need_open()
        self._take_busy()
        try:
            self.turn += 1
            if not self.exact:
                batch = self.plan.batch
                position = min(position, self._whole) // batch * batch
            if position and self._runner.rewind(position):
                del self.seen[position:]
                self._whole = min(self._whole, position)
            else:
                self._reset()
            return self.position
        finally:
            self._busy.release()

    def close(self) -> None:
        """Gives all memory and files back. May be called twice.

        Raises:
            InputError: another thread is in `forward`.
        """
        if self._closed:
            return
        self._take_busy()
        self._closed = True
        with ExitStack() as ends:  # each is done, whatever becomes of those before it
            ends.callback(self._busy.release)
            ends.callback(self._recording.close)
            ends.callback(self._runner.close)

    def _take_busy(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise InputError("the session is in use by another thread; open one for each thread")

    def forward(
        self,
        token_ids: Sequence[int],
        *,
        last_only: bool = False,
        observe: Observer | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """Logits float32 `[T, V]` of `token_ids`, which follow what was seen; last_only: `[1, V]`.

        observe: told each segment's index and outputs, batch by batch; the arrays are valid only
        until it returns. cancelled: asked before each batch; True raises Cancelled.

        Raises:
            InputError: no tokens, or ids that the vocabulary does not have.
            ContextError: they do not fit into the context.
            BundleError: a page cannot be read. Whole batches before it are seen: see `position`.
        """
        self._need_open()
        self._take_busy()
        try:
            self.turn += 1
            return self._forward(token_ids, last_only, observe, cancelled)
        finally:
            self._busy.release()
            if self._wanted is not None:
                self._follow_plan_if_idle()

    def _forward(
        self,
        token_ids: Sequence[int],
        last_only: bool,
        observe: Observer | None,
        cancelled: Callable[[], bool] | None,
    ) -> np.ndarray:
        """`_busy` is held."""
        spec, batch, first = self.manifest.spec, self.plan.batch, self.position
        ids = check_tokens(token_ids, spec, position=first, context=self.context)
        logits = np.empty((1 if last_only else len(ids), spec.vocab_size), np.float32)
        routes, prompt = self._recording.routes, is_prompt(first, len(ids))
        with self._recording.call(first, len(ids), self._pager):
            for start in range(0, len(ids), batch):
                part = ids[start : start + batch]
                wanted = logits if last_only else logits[start : start + batch]
                if cancelled is not None and cancelled():
                    raise Cancelled
                if routes is not None:
                    routes.begin(first + start, prompt=prompt)
                with self._computing:
                    self._runner.run_batch(part, wanted, first + len(ids), observe)
                    self._follow_plan()
                self.seen.extend(part.tolist())
                if first + start == self._whole and len(part) == batch:
                    self._whole += batch
        return logits

    def set_memory_budget(self, budget: int | str | None) -> None:
        """Grows or shrinks the page cache: from now on the whole process keeps to another budget.

        budget: as for `open_bundle`. It may be called at any time and from any thread; while
        another thread is in `forward`, memory is given back after the tokens that go through the
        layers just then, at most plan.batch. Output does not change.

        Raises:
            BudgetError: it is too small; the present one stays.
        """
        self._need_open()
        plan = fit_budget(
            self.plan,
            read_budget(budget),
            num_pages=self.manifest.num_pages,
            context=self.context,
            name=str(self._root),
            auto=budget == AUTO,
        )
        with self._planning:
            self.plan = self._wanted = plan
        self._follow_plan_if_idle()

    def _follow_plan_if_idle(self) -> None:
        if self._computing.acquire(blocking=False):
            try:
                self._follow_plan()
            finally:
                self._computing.release()

    def _follow_plan(self) -> None:
        """Gives the cache the size that was asked for last. `_computing` is held."""
        while (plan := self._wanted) is not None:
            self._runner.follow(plan)
            with self._planning:
                if self._wanted is plan:  # else another was asked for meanwhile
                    self._wanted = None

    def encode(self, text: str) -> list[int]:
        return encode_text(self, text)

    def encode_chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation and of the start of an answer, by the chat template.

        messages: `{"role": ..., "content": ...}` each. variables: what the template knows besides,
        such as `tools` or `enable_thinking`.

        Raises:
            InputError: the bundle has no chat template, or it refuses the conversation.
        """
        return encode_chat(self, messages, variables)

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
        stop: str | Sequence[str] = (),
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
        return start_generation(self, prompt, request, self._clock)

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
        return AsyncGeneration(lambda: start_generation(self, prompt, request, self._clock))

    @property
    def counters(self) -> Counters:
        """As of now. Cheaper than `stats`; two can be subtracted."""
        pager, readers, figures = self._pager, self._pager.readers, self._runner.figures
        return Counters(
            page_hits=figures.page_hits + pager.hits,
            page_misses=pager.misses,
            bytes_read=readers.bytes_read,
            read_seconds=readers.read_seconds,
            wait_seconds=pager.wait_seconds,
            skipped_experts=self._choice.skipped,
            gpu_page_hits=figures.page_hits,
            link_bytes=figures.link_bytes,
        )

    @property
    def stats(self) -> Stats:
        pager, engines, figures = self._pager, self._runner.engines, self._runner.figures
        return Stats(
            **vars(self._clock),
            **vars(self.counters),
            verified_pages=pager.readers.verified,
            num_pages=self.manifest.num_pages,
            cache_slots=pager.slots,
            chunk_tokens=self.plan.chunk,
            context=self.context,
            threads=self._threads,
            expert_engine=engines.experts,
            early_pages=pager.early,
            early_pages_used=pager.early_used,
            guess_accuracy=self._runner.accuracy,
            backbone_engine=engines.backbone,
            backbone_bytes=engines.backbone_bytes,
            direct_reads=pager.direct,
            lossy=(*self.manifest.lossy, *self._choice.names),
            budget_bytes=self.plan.budget,
            auto_budget=self.plan.auto,
            planned_bytes=self.plan.total,
            peak_rss_bytes=process_memory("VmHWM"),
            backend=engines.backend,
            backend_reason=engines.reason,
            gpu=engines.device,
            gpu_slots=figures.slots,
            gpu_memory_bytes=figures.memory,
        )

    def _need_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed; open the bundle again")
        if self._process != os.getpid():
            raise InputError("the session was opened before a fork; open the bundle again here")
