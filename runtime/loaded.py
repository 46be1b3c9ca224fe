"""A model in memory: weights, engines, page cache and budget, for all sessions that run it."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from ..bundle.pages import ExpertKey
from ..errors import BudgetError, InputError
from .batching.combining import Combiner
from .batching.requests import Seat
from .generation.grammar_memory import GRAMMAR, bytes_kept, bytes_while_made
from .generation.template import load_chat_template
from .generation.vocabulary import Vocabulary, need_llguidance
from .loading import LoadedRunner, LoadRequest
from .memory.budget import AUTO, MemoryPlan, fit_budget, read_budget
from .memory.host_memory import give_back_freed
from .memory.leftover import count_closed
from .model_stats import RunningModel, count, gather_stats
from .recording.clock import Clock
from .recording.stats import Counters, Stats
from .runner import Observer


class LoadedModel:
    """Opened by its first session, and closed with its last. Usable from any thread.

    plan: where the memory goes; `kv` is of all sessions. tokenizer, chat_template: see Session.
    longest: tokens that a session can see at most. shared_as: what a session shares it by; None: it
    is not shared.
    """

    def __init__(
        self,
        request: LoadRequest,
        loaded: LoadedRunner,
        tokenizer: Any,
        shared_as: object = None,
        on_close: Callable[[LoadedModel], None] | None = None,
    ):
        self.root, self.manifest, self.plan = request.root, request.manifest, loaded.plan
        self.choice, self.recording = request.choice, request.recording
        self.runner, self.threads, self.longest = loaded.runner, loaded.threads, loaded.longest
        self.tokenizer, self.shared_as = tokenizer, shared_as
        self.chat_template = load_chat_template(request.root, request.manifest)
        self.process = os.getpid()
        self._on_close = on_close
        self._contexts: dict[object, int] = {}  # of seats, and of what is to be one
        self._wanted: MemoryPlan | None = loaded.plan  # to be followed when no batch is under way
        self._planning = threading.Lock()  # held for `plan`, `_wanted` and `_contexts`
        self._vocabulary: Vocabulary | None = None
        self._vocabulary_bytes = 0  # as they are planned
        self._making = threading.Lock()  # held while it is made
        self._closed = False
        self._dropped: deque[Seat] = deque()  # of sessions that were forgotten, and not closed
        self._combiner = Combiner(
            self.runner, self.plan.chunk, self.plan.batch, self.recording, self._follow_plan
        )

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._contexts)

    @property
    def usage(self) -> np.ndarray:
        """int64 `[layers, experts]`: how many tokens went to each expert so far. A copy."""
        return self.runner.usage.copy()

    def resident(self) -> frozenset[ExpertKey]:
        """Experts whose pages are in memory just now."""
        return self.runner.resident()

    def need_room(self, contexts: list[int]) -> None:
        """Raises BudgetError where sessions of so many tokens do not fit into the budget."""
        with self._planning:
            self._plan_for(contexts, self.plan.budget)

    def open_seat(self, context: int, memory_budget: int | str | None = None) -> Seat | None:
        """A place for another session; None where the last one has been closed meanwhile.
        memory_budget: of all of them from now on, if one is given.

        Raises:
            BudgetError: its keys and values do not fit into the budget beside the others.
        """
        self.reclaim()
        size = read_budget(memory_budget)
        place = object()  # until there is a seat, so that others plan with it, and nobody closes
        with ExitStack() as undo:
            with self._planning:
                if self._closed:
                    return None
                if self._contexts:
                    before = self.plan
                    budget = before.budget if memory_budget is None else size
                    auto = before.auto if memory_budget is None else memory_budget == AUTO
                    plan = self._plan_for([*self._contexts.values(), context], budget)
                    self.plan = self._wanted = replace(plan, auto=auto)
                    undo.callback(self._plan_again)
                    undo.callback(self._go_back_to, before)
                    undo.callback(self._close_if_last)
                self._contexts[place] = context
                undo.callback(self._contexts.pop, place, None)
            with self._combiner.still():
                self._follow_plan()  # before the memory is taken
                seat = Seat(self.runner.open_cache(context))
                with self._planning:
                    del self._contexts[place]
                    self._contexts[seat] = context
                self._combiner.add(seat)
            undo.pop_all()
        return seat

    def drop_seat(self, seat: Seat) -> None:
        """Its session was forgotten without `close`. It takes no lock, as a garbage collector may
        call it anywhere; see reclaim."""
        self._dropped.append(seat)
        warnings.warn(
            f"a session of {self.root} was not closed; use `with`, or close()", ResourceWarning,
            stacklevel=2,
        )  # fmt: skip

    def reclaim(self) -> None:
        """Gives back the memory of sessions that were forgotten; later, where an observer calls."""
        while self._dropped and not self._combiner.leads:
            try:
                seat = self._dropped.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                self._close_seat(seat)
            finally:
                if self.holds(seat):  # an interrupt, while it waited
                    self._dropped.append(seat)

    def close_seat(self, seat: Seat) -> None:
        """Its session is closed; the model too if it was the last. Nothing is done after a fork."""
        self._close_seat(seat)
        self.reclaim()

    def _close_seat(self, seat: Seat) -> None:
        if self.process != os.getpid():
            return
        with self._combiner.still(), ExitStack() as ends:
            if not self.holds(seat):  # it was closed as far as an error let it be
                return
            ends.callback(self._plan_again)
            ends.callback(self._close_if_last)
            ends.callback(self.runner.close_cache, seat.cache)
            self._combiner.remove(seat)
            with self._planning:
                self._contexts.pop(seat, None)

    def holds(self, seat: Seat) -> bool:
        """Whether its session is still to be closed, in this process."""
        return self.process == os.getpid() and seat in self._contexts

    def _close_if_last(self) -> None:
        with self._planning:
            if self._contexts or self._closed:
                return
            self._closed = True
        with ExitStack() as ends:  # each is done, whatever becomes of those before it
            ends.callback(count_closed)
            ends.callback(give_back_freed)
            ends.callback(gc.collect)  # weights hang in circles of segments, steps and buffers
            ends.callback(self.recording.close)
            ends.callback(self.runner.close)
            if self._on_close is not None:
                ends.callback(self._on_close, self)

    def _go_back_to(self, before: MemoryPlan) -> None:
        """Its budget is that of before."""
        with self._planning:
            self.plan = replace(self.plan, budget=before.budget, auto=before.auto)

    def _plan_again(self) -> None:
        """After a session has gone, or could not be opened: its memory goes to pages."""
        with self._planning:
            if self._closed or not self._contexts:
                return
            plan = self._plan_for(list(self._contexts.values()), self.plan.budget)
            self.plan = self._wanted = plan
        self._combiner.if_still(self._follow_plan)

    def _grammar_bytes(self, sessions: int) -> int:
        """What grammars may take: one of each session, once there has been one, and what they need
        to know of the vocabulary."""
        if not self._vocabulary_bytes:
            return 0
        kept = bytes_kept(self.manifest.spec.vocab_size) + sessions * GRAMMAR
        return max(self._vocabulary_bytes, kept)

    def _plan_for(self, contexts: list[int], budget: int | None) -> MemoryPlan:
        """Raises BudgetError where the budget is too small."""
        base = replace(self.plan, grammars=self._grammar_bytes(len(contexts)))
        return fit_budget(
            self.runner.take_caches(base, contexts),
            budget,
            num_pages=self.manifest.num_pages,
            context=sum(contexts),
            sessions=len(contexts),
            name=str(self.root),
            auto=self.plan.auto,
            running=True,
        )

    def run(
        self,
        seat: Seat,
        ids: np.ndarray,
        logits: np.ndarray,
        observe: Observer | None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Runs int64 `[T]` tokens that follow what the seat's sequence has seen, in one batch with
        what other threads ask for at the time; fills logits, `[T, V]`, or `[1, V]` for the last.

        Raises:
            BundleError: a page cannot be read. Whole batches before it are seen.
            Cancelled: `cancelled`, asked before each batch, said so; the same holds.
        """
        if self._dropped:
            self.reclaim()
        pager = self.runner.pager
        with self.recording.call(seat.cache.position, len(ids), lambda: (pager.hits, pager.misses)):
            self._combiner.run(seat, ids, logits, observe, cancelled)
        if self._wanted is not None:
            self._combiner.if_still(self._follow_plan)

    def rewind(self, seat: Seat, position: int) -> int:
        """See Cache.rewind; its next token is not waited for."""
        self._combiner.rest(seat)
        self._combiner.withdraw(seat)  # where interrupts have left it
        if position == 0:
            seat.cache.reset()
            return 0
        return seat.cache.rewind(position)

    def vocabulary(self) -> Vocabulary:
        """For grammars. It is made for the first, in memory that pages give up.

        Raises:
            BudgetError: there is no room for it.
            InputError: llguidance is missing or cannot use the tokenizer, or an observer calls.
        """
        with self._making:
            if self._vocabulary is None:
                need_llguidance()
                spec = self.manifest.spec
                self._reserve_vocabulary(bytes_while_made(spec.vocab_size))
                kept = 0
                try:
                    ends = tuple(spec.eos_token_ids)
                    self._vocabulary = Vocabulary(self.tokenizer, spec.vocab_size, ends)
                    kept = bytes_kept(spec.vocab_size)
                finally:
                    self._reserve_vocabulary(kept)
            return self._vocabulary

    def _reserve_vocabulary(self, size: int) -> None:
        with self._combiner.still():
            with self._planning:
                before, self._vocabulary_bytes = self._vocabulary_bytes, size
                try:
                    plan = self._plan_for(list(self._contexts.values()), self.plan.budget)
                except BudgetError:
                    self._vocabulary_bytes = before
                    raise
                self.plan = self._wanted = plan
            self._follow_plan()

    def rest(self, seat: Seat) -> None:
        """See Session.rest."""
        self._combiner.rest(seat)

    def set_memory_budget(self, budget: int | str | None) -> None:
        """See Session.set_memory_budget."""
        size = read_budget(budget)
        self.reclaim()
        with self._planning:
            contexts = list(self._contexts.values())
            plan = self._plan_for(contexts, size)
            self.plan = self._wanted = replace(plan, auto=budget == AUTO)
        self._combiner.if_still(self._follow_plan)

    def _follow_plan(self) -> None:
        """Gives the cache the size that was asked for last. No batch is under way."""
        while (plan := self._wanted) is not None:
            self.runner.follow(plan)
            with self._planning:
                if self._wanted is plan:  # else another was asked for meanwhile
                    self._wanted = None

    def need_open(self) -> None:
        """Raises InputError in a process that was forked from the one that opened it."""
        if self.process != os.getpid():
            raise InputError("the session was opened before a fork; open the bundle again here")

    @property
    def counters(self) -> Counters:
        """As of now. Cheaper than `stats`; two can be subtracted."""
        return count(self.runner, self.choice)

    @property
    def stats(self) -> Stats:
        """Of all sessions; what generation counts is 0. context: of the longest."""
        return self.gather_stats(Clock(), max(self._contexts.values(), default=0))

    def gather_stats(self, clock: Clock, context: int) -> Stats:
        """clock, context: of one session."""
        facts = RunningModel(self.manifest, self.plan, self.threads, self.runner, self.choice)
        return gather_stats(facts, clock, context)
