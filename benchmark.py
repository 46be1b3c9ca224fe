"""What `bench` measures. Imports no torch."""

from __future__ import annotations

import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputError
from .progress import Progress, Silent

if TYPE_CHECKING:
    from .runtime.bundle import Manifest
    from .runtime.session import Session


@dataclass(frozen=True)
class Benchmark:
    """One cold run; times in seconds, speeds in tokens per second.

    time_to_first_token: from the opened bundle to the first token, the prompt included.
    decode_hit_rate, decode_bytes_per_token: of the page cache while new tokens were made.
    limit_tokens_per_second: no faster than memory gives the weights of a token, and storage the
    pages that were missed, at the bandwidths (bytes per second) measured in the same run;
    storage_bandwidth is None where nothing was read. prompt: where its tokens came from, "text" or
    "random ids". lossy, skipped_experts, the engines: see Stats.
    """

    bundle: str
    prompt: str
    prompt_tokens: int
    new_tokens: int
    threads: int
    expert_engine: str
    backbone_engine: str
    open_seconds: float
    time_to_first_token: float
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    limit_tokens_per_second: float
    memory_bandwidth: float
    storage_bandwidth: float | None
    hit_rate: float
    decode_hit_rate: float
    decode_bytes_per_token: float
    bytes_read: int
    cache_slots: int
    num_pages: int
    budget_bytes: int | None
    peak_rss_bytes: int
    lossy: tuple[str, ...]
    skipped_experts: int


_SILENT = Silent()
_BUFFER_BYTES = 256 << 20  # beyond every cache of a CPU
_REPEATS = 3


def run_benchmark(
    bundle: Path,
    *,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None = None,
    memory_budget: int | None = None,
    context: int | None = None,
    kernels: str = "auto",
    active_experts: int | None = None,
    skip_cold: float = 0.0,
    progress: Progress = _SILENT,
) -> Benchmark:
    """Opens the bundle, reads a prompt and decodes greedily; an end-of-text token does not stop it.

    Raises:
        InputError: the tokens do not fit the context.
    """
    from .runtime.session import open_bundle

    opening = time.perf_counter()
    with open_bundle(
        bundle, memory_budget=memory_budget, threads=threads, context=context, kernels=kernels,
        active_experts=active_experts, skip_cold=skip_cold,
    ) as session:  # fmt: skip
        opened = time.perf_counter()
        if prompt_tokens + new_tokens > session.context:
            raise InputError(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the "
                f"context of {session.context}; give smaller numbers"
            )
        prompt, source = _prompt(session, prompt_tokens)
        progress.stage("prompt", prompt_tokens)
        start = time.perf_counter()
        token = int(session.forward(prompt, last_only=True)[-1].argmax())
        first = time.perf_counter()
        before = session.stats
        progress.stage("decode", new_tokens - 1)
        decode = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = int(session.forward([token], last_only=True)[-1].argmax())
            progress.advance(1)
        end = time.perf_counter()
        stats = session.stats
        manifest = session.manifest
    steps = new_tokens - 1
    missed = (stats.bytes_read - before.bytes_read) / steps if steps else 0.0
    skipped = (stats.skipped_experts - before.skipped_experts) / steps if steps else 0.0
    resident = token_bytes(manifest, active_experts) - skipped * manifest.page_bytes
    bandwidth = measure_memory(stats.threads, memory_budget)
    storage = stats.read_bytes_per_second or None
    seconds = max(resident / bandwidth, missed / storage if storage else 0.0)
    hits = stats.page_hits - before.page_hits
    requests = hits + stats.page_misses - before.page_misses
    return Benchmark(
        bundle=str(bundle),
        prompt=source,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=stats.threads,
        expert_engine=stats.expert_engine,
        backbone_engine=stats.backbone_engine,
        open_seconds=opened - opening,
        time_to_first_token=first - start,
        prompt_tokens_per_second=prompt_tokens / (first - start),
        decode_tokens_per_second=steps / (end - decode),
        limit_tokens_per_second=1 / seconds,
        memory_bandwidth=bandwidth,
        storage_bandwidth=storage,
        hit_rate=stats.hit_rate,
        decode_hit_rate=hits / requests if requests else 1.0,
        decode_bytes_per_token=missed,
        bytes_read=stats.bytes_read,
        cache_slots=stats.cache_slots,
        num_pages=stats.num_pages,
        budget_bytes=stats.budget_bytes,
        peak_rss_bytes=stats.peak_rss_bytes,
        lossy=stats.lossy,
        skipped_experts=stats.skipped_experts,
    )


def token_bytes(manifest: Manifest, active_experts: int | None = None) -> int:
    """Weights that one token reads: the backbone, and k pages of each MoE layer, or fewer where
    fewer experts are active."""
    layers = manifest.spec.layers
    pages = sum(
        pages.format.nbytes * min(router.top_k, active_experts or router.top_k)
        for pages in manifest.experts
        if (router := layers[pages.layer].router) is not None
    )
    return manifest.backbone_bytes + pages


def measure_memory(threads: int, memory_budget: int | None = None) -> float:
    """Bytes per second at which `threads` read memory together, in a share of the budget."""
    nbytes = min(_BUFFER_BYTES, (memory_budget or _BUFFER_BYTES * 4) // 4)
    parts = np.array_split(np.ones(max(1, nbytes // 8), np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, nbytes / (time.perf_counter() - start))
    return best


def _prompt(session: Session, length: int) -> tuple[list[int], str]:
    """`length` tokens of Python's own sources, or random ones where they cannot be had."""
    if session.tokenizer is not None:
        source = Path(sysconfig.get_paths()["stdlib"]) / "argparse.py"
        if source.is_file():
            ids = session.encode(source.read_text(encoding="utf-8")[: 16 * length])
            if len(ids) >= length:
                return ids[:length], "text"
    random = np.random.default_rng(0)
    ids = random.integers(0, session.manifest.spec.vocab_size, length).tolist()
    return ids, "random ids"
