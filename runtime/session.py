"""A session: a bundle opened, and what it has seen so far."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InputError
from .backbone import Backbone
from .budget import AUTO, MemoryPlan, fit_budget, read_budget
from .bundle import PREDICTORS, Manifest, check_file
from .chat import Message, load_chat_template
from .context import check_tokens
from .embedding import Embedding
from .experts import load_engines, route
from .generation import Clock, encode_chat, encode_text, start_generation
from .kv_cache import KvCache
from .lossy import ExpertChoice
from .native.kernels import NativeKernels
from .native_backbone import NativeBackbone
from .pager import Loaded, Pager
from .predict import EARLY_PAGES, EARLY_PROMPT_PAGES, WORTHWHILE, Predictor
from .recording import Recording, is_prompt
from .sampling import Sampler
from .stats import Counters, Stats, process_memory
from .weight_index import index_file, weights_file

_log = logging.getLogger(__name__)

Observer = Callable[[int, dict[str, np.ndarray]], None]


class Session:
    """Runs a bundle; `open_bundle` makes it. Not for use by several threads at once.

    position: tokens seen so far, of at most `context`. turn: the number of calls that have changed
    what it has seen. tokenizer: a tokenizers.Tokenizer, or None. chat_template: a ChatTemplate, or
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
        verify_pages: bool,
        kernels: NativeKernels | None,
        segments: NativeBackbone,
        choice: ExpertChoice,
        prefetch: str,
        recording: Recording,
    ):
        self.manifest = manifest
        self.context = context
        self.tokenizer = tokenizer
        self.chat_template = load_chat_template(root, manifest)
        self.plan = plan
        self.turn = 0
        self._threads = threads
        self._clock = Clock()
        self._choice = choice
        self._recording = recording
        self._cache = KvCache(manifest.spec, context, plan.batch)
        if verify_pages:
            for segment in manifest.segments:
                check_file(root, manifest, segment.file)
                check_file(root, manifest, weights_file(segment))
                if index_file(segment) in manifest.files:
                    check_file(root, manifest, index_file(segment))
            if plan.predictor:
                check_file(root, manifest, PREDICTORS)
            for layer in manifest.experts:
                check_file(root, manifest, layer.engine)
        self._backbone = Backbone(root, manifest, self._cache, plan.chunk, plan.batch, segments)
        self._engines = load_engines(root, manifest, plan.batch, kernels)
        self._engine = "onnxruntime" if kernels is None else f"native, {kernels.instruction_set}"
        self._backbone_engine = segments.engine
        self._embedding = Embedding(root, manifest)
        self._pager = Pager(root, manifest, plan.slots, verify=verify_pages, trace=recording.trace)
        self._root = root
        self._process = os.getpid()
        self._predictor: Predictor | None = None
        self._wanted: MemoryPlan | None = plan  # to be followed when no forward is under way
        self._least_accuracy = 0.0 if prefetch == "on" else WORTHWHILE
        self._top_k = {layer.layer: layer.top_k for layer in manifest.footprint.experts}
        self._routers = [segment.router_layer for segment in manifest.segments]
        self._closed = False
        self._busy = threading.Lock()  # held by a call of `forward`
        self._computing = threading.Lock()  # held while the pager is used
        self._planning = threading.Lock()  # held for `plan` and `_wanted`
        self._follow_plan()
        if prefetch == "on" and not plan.predicts:
            _log.warning(
                "prefetch on has no effect: %s",
                "the budget has no room for it" if plan.slots < manifest.num_pages
                else "all pages fit into memory",
            )  # fmt: skip
        if not self._pager.direct:
            _log.info("%s: pages are read through the page cache (no O_DIRECT here)", root)

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
        return self._cache.position

    def reset(self) -> None:
        """Forgets what it has seen; the page cache stays. A generation that was under way ends."""
        self._need_open()
        self._take_busy()
        try:
            self.turn += 1
            self._cache.reset()
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
            ends.callback(self._embedding.close)
            ends.callback(self._pager.close)
            self._predictor = None
            del self._backbone, self._engines, self._cache

    def _take_busy(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise InputError("the session is in use by another thread; open one for each thread")

    def forward(
        self,
        token_ids: Sequence[int],
        *,
        last_only: bool = False,
        observe: Observer | None = None,
    ) -> np.ndarray:
        """Logits float32 `[T, V]` of `token_ids`, which follow what was seen; last_only: `[1, V]`.

        observe: told each segment's index and outputs, batch by batch; the arrays are valid only
        until it returns.

        Raises:
            InputError: no tokens, or ids that the vocabulary does not have.
            ContextError: they do not fit into the context.
            BundleError: a page cannot be read. Whole batches before it are seen: see `position`.
        """
        self._need_open()
        self._take_busy()
        try:
            self.turn += 1
            return self._forward(token_ids, last_only, observe)
        finally:
            self._busy.release()
            if self._wanted is not None:
                self._follow_plan_if_idle()

    def _forward(
        self, token_ids: Sequence[int], last_only: bool, observe: Observer | None
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
                if routes is not None:
                    routes.begin(first + start, prompt=prompt)
                with self._computing:
                    self._run_batch(part, wanted, first + len(ids), observe)
                    self._follow_plan()
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
            if not plan.predicts:
                self._predictor = None
            self._pager.resize(plan.slots)
            if plan.predicts and self._predictor is None:
                self._predictor = Predictor(self._root, self.manifest.spec)
            with self._planning:
                if self._wanted is plan:  # else another was asked for meanwhile
                    self._wanted = None

    def encode(self, text: str) -> list[int]:
        return encode_text(self, text)

    def encode_chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation and of the start of an answer, by the chat template.

        messages: `{"role": ..., "content": ...}` each. variables: what the template knows besides,
        such as `enable_thinking`.

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
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continues `prompt` from an empty context; yields text as it is made.

        prompt: text, token ids, or the messages of a conversation, which is answered.
        It ends at an end-of-sequence token, or after max_new_tokens.

        Raises:
            InputError: an empty prompt, or a sampling argument out of range.
            ContextError: at once for a prompt longer than the context; at the end of the context,
                after the text that fitted.
        """
        self._need_open()
        sampler = Sampler(temperature, top_k, top_p, seed)
        return start_generation(self, prompt, sampler, max_new_tokens, self._clock)

    @property
    def counters(self) -> Counters:
        """As of now. Cheaper than `stats`; two can be subtracted."""
        pager, readers = self._pager, self._pager.readers
        return Counters(
            page_hits=pager.hits,
            page_misses=pager.misses,
            bytes_read=readers.bytes_read,
            read_seconds=readers.read_seconds,
            wait_seconds=pager.wait_seconds,
            skipped_experts=self._choice.skipped,
        )

    @property
    def stats(self) -> Stats:
        pager = self._pager
        return Stats(
            **vars(self._clock),
            **vars(self.counters),
            verified_pages=pager.readers.verified,
            num_pages=self.manifest.num_pages,
            cache_slots=pager.slots,
            chunk_tokens=self.plan.chunk,
            context=self.context,
            threads=self._threads,
            expert_engine=self._engine,
            early_pages=pager.early,
            early_pages_used=pager.early_used,
            guess_accuracy=self._predictor.accuracy if self._predictor is not None else None,
            backbone_engine=self._backbone_engine,
            backbone_bytes=self.plan.backbone,
            direct_reads=pager.direct,
            lossy=(*self.manifest.lossy, *self._choice.names),
            budget_bytes=self.plan.budget,
            auto_budget=self.plan.auto,
            planned_bytes=self.plan.total,
            peak_rss_bytes=process_memory("VmHWM"),
        )

    def _run_batch(
        self, ids: np.ndarray, logits: np.ndarray, length: int, observe: Observer | None
    ) -> None:
        backbone, pager, tokens = self._backbone, self._pager, len(ids)
        routes, trace = self._recording.routes, self._recording.trace
        self._embedding.read(ids, backbone.begin(tokens, length))
        for index, layer in enumerate(self._routers):
            started = time.perf_counter()
            if layer is None:
                backbone.run_last(tokens, logits)
                if trace is not None:
                    trace.span("last layers and head", "backbone", started, tokens=tokens)
                if observe is not None:
                    observe(index, {"logits": logits})
                continue
            out = backbone.run(index, tokens)
            if trace is not None:
                trace.span(f"backbone {layer}", "backbone", started, layer=layer, tokens=tokens)
            if observe is not None:
                observe(index, out)
            if self._predictor is not None and tokens == 1:
                self._predictor.learn(layer, out["expert_ids"][0].tolist())
            weights, experts = self._choice.choose(
                layer,
                out["expert_weights"],
                out["expert_ids"],
                partial(pager.holds, layer),
            )
            if routes is not None:
                routes.add(layer, weights, experts, pager.holds)
            routing = route(weights, experts)
            self._engines[layer].add(
                out["moe_base"],
                out["expert_input"],
                routing,
                partial(self._visit, layer, routing.experts, out["hidden_out"]),
            )
        self._cache.commit(tokens)

    def _visit(
        self, layer: int, experts: list[int], hidden: np.ndarray, in_order: bool
    ) -> Iterator[list[Loaded]]:
        """Has a layer's pages read, and behind them those that the next layer may want."""
        pages = self._pager.visit(layer, experts, in_order=in_order)
        if self._predictor is not None:
            single = len(hidden) == 1
            guess = self._predictor.guess(layer, hidden, self._top_k[layer])
            if guess is not None:
                if single:
                    self._predictor.remember(*guess)
                if self._predictor.accuracy >= self._least_accuracy:
                    most = EARLY_PAGES if single else EARLY_PROMPT_PAGES
                    self._pager.read_early(*guess, most=most)
        return pages

    def _need_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed; open the bundle again")
        if self._process != os.getpid():
            raise InputError("the session was opened before a fork; open the bundle again here")
