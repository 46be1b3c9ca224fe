"""A session: a bundle opened, and what it has seen so far."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ContextError, InputError
from .backbone import Backbone
from .budget import MemoryPlan, plan_memory, read_budget
from .bundle import TOKENIZER, Manifest, check_file, read_manifest
from .chat import Message, load_chat_template
from .context import check_tokens
from .embedding import Embedding
from .experts import choose_kernels, load_engines, route
from .generation import Clock, encode_chat, encode_text, start_generation
from .kv_cache import KvCache
from .lossy import ExpertChoice
from .native.kernels import NativeKernels
from .native_backbone import NativeBackbone
from .pager import Pager
from .sampling import Sampler
from .stats import Stats, process_memory
from .text import load_tokenizer
from .weight_index import index_file, weights_file

DEFAULT_CONTEXT = 4096
_log = logging.getLogger(__name__)

Observer = Callable[[int, dict[str, np.ndarray]], None]


def open_bundle(
    path: str | os.PathLike[str],
    *,
    memory_budget: int | str | None = None,
    threads: int | None = None,
    context: int | None = None,
    verify_pages: bool = True,
    kernels: str = "auto",
    active_experts: int | None = None,
    skip_cold: float = 0.0,
) -> Session:
    """Opens a bundle to run it.

    memory_budget: bytes, or text like "2GiB", for the whole process; None keeps all experts in
    memory. threads: default is all CPUs that the process may use. context: tokens that a session
    can see, by default 4096, or what the model can see if that is less. verify_pages: check the
    hashes of graphs and backbone now, and the hash of each page when it is first read.
    kernels: what computes, "native", "onnxruntime", or "auto": native where it can. Segments of the
    backbone that the native kernels do not know run in ONNX Runtime: see Stats.backbone_engine.
    Lossy, see lossy.py: active_experts, how many of a token's experts are used, the strongest ones;
    skip_cold, below which share of an even split an expert that is not in the cache is left out.

    Raises:
        BundleError, BudgetError, ContextError, InputError: each says what to do.
    """
    root = Path(path)
    budget = read_budget(memory_budget)
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    elif threads < 1:
        raise InputError(f"threads must be 1 or more, not {threads}")
    manifest = read_manifest(root)
    choice = ExpertChoice(manifest.spec, active_experts, skip_cold)
    longest = manifest.spec.max_context
    if context is None:
        context = min(longest, DEFAULT_CONTEXT)
    elif not 1 <= context <= longest:
        raise ContextError(f"context must be from 1 to {longest} tokens for {root}, not {context}")
    tokenizer = load_tokenizer(root / TOKENIZER)
    native = choose_kernels(kernels, manifest, threads)
    segments = NativeBackbone(root, manifest, native)
    if native is None or len(segments.segments) < len(manifest.segments):
        from .ort import set_up  # loads ONNX Runtime, which takes memory

        threads = set_up(threads)
    plan = plan_memory(
        manifest,
        context=context,
        budget=budget,
        process=process_memory("VmRSS"),
        name=str(root),
        kernels=native,
        segments=segments,
    )
    return Session(
        root, manifest, plan, tokenizer, context, threads, verify_pages, native, segments, choice
    )


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
        self._cache = KvCache(manifest.spec, context, plan.batch)
        if verify_pages:
            for segment in manifest.segments:
                check_file(root, manifest, segment.file)
                check_file(root, manifest, weights_file(segment))
                if index_file(segment) in manifest.files:
                    check_file(root, manifest, index_file(segment))
            for layer in manifest.experts:
                check_file(root, manifest, layer.engine)
        self._backbone = Backbone(root, manifest, self._cache, plan.chunk, plan.batch, segments)
        self._engines = load_engines(root, manifest, plan.batch, kernels)
        self._engine = "onnxruntime" if kernels is None else f"native, {kernels.instruction_set}"
        self._backbone_engine = segments.engine
        self._embedding = Embedding(root, manifest)
        self._pager = Pager(root, manifest, plan.slots, verify=verify_pages)
        self._routers = [segment.router_layer for segment in manifest.segments]
        self._closed = False
        self._busy = threading.Lock()
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
        self.turn += 1
        self._cache.reset()

    def close(self) -> None:
        """Gives all memory and files back. May be called twice."""
        if not self._closed:
            self._closed = True
            self._pager.close()
            self._embedding.close()
            del self._backbone, self._engines, self._cache

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
        self.turn += 1
        spec = self.manifest.spec
        ids = check_tokens(token_ids, spec, position=self.position, context=self.context)
        rows = 1 if last_only else len(ids)
        logits = np.empty((rows, spec.vocab_size), np.float32)
        batch, length = self.plan.batch, self.position + len(ids)
        if not self._busy.acquire(blocking=False):
            raise InputError("the session is in use by another thread; open one for each thread")
        try:
            for start in range(0, len(ids), batch):
                part = ids[start : start + batch]
                wanted = logits if last_only else logits[start : start + batch]
                self._run_batch(part, wanted, length, observe)
        finally:
            self._busy.release()
        return logits

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
    def stats(self) -> Stats:
        pager = self._pager
        return Stats(
            **vars(self._clock),
            page_hits=pager.hits,
            page_misses=pager.misses,
            bytes_read=pager.readers.bytes_read,
            read_seconds=pager.readers.read_seconds,
            wait_seconds=pager.wait_seconds,
            verified_pages=pager.readers.verified,
            num_pages=self.manifest.num_pages,
            cache_slots=pager.slots,
            chunk_tokens=self.plan.chunk,
            context=self.context,
            threads=self._threads,
            expert_engine=self._engine,
            backbone_engine=self._backbone_engine,
            direct_reads=pager.direct,
            lossy=(*self.manifest.lossy, *self._choice.names),
            skipped_experts=self._choice.skipped,
            budget_bytes=self.plan.budget,
            planned_bytes=self.plan.total,
            peak_rss_bytes=process_memory("VmHWM"),
        )

    def _run_batch(
        self, ids: np.ndarray, logits: np.ndarray, length: int, observe: Observer | None
    ) -> None:
        backbone, tokens = self._backbone, len(ids)
        self._embedding.read(ids, backbone.begin(tokens, length))
        for index, layer in enumerate(self._routers):
            if layer is None:
                backbone.run_last(tokens, logits)
                if observe is not None:
                    observe(index, {"logits": logits})
                continue
            out = backbone.run(index, tokens)
            if observe is not None:
                observe(index, out)
            weights, experts = self._choice.choose(
                layer,
                out["expert_weights"],
                out["expert_ids"],
                lambda expert, layer=layer: self._pager.holds(layer, expert),  # type: ignore[misc]
            )
            routing = route(weights, experts)
            self._engines[layer].add(
                out["moe_base"],
                out["expert_input"],
                routing,
                lambda in_order, layer=layer, routing=routing: self._pager.visit(  # type: ignore[misc]
                    layer, routing.experts, in_order=in_order
                ),
            )
        self._cache.commit(tokens)

    def _need_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed; open the bundle again")
