"""What `bench` measures. Imports no torch."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
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
    from .runtime.stats import Stats


@dataclass(frozen=True)
class Limit:
    """No faster than memory gives the weights of a token, and storage the pages that were missed.

    The bandwidths, in bytes per second, are of the same run: of storage, while at least one read
    was under way, hashing not counted; None where nothing was read.
    """

    tokens_per_second: float
    memory_bandwidth: float
    storage_bandwidth: float | None


@dataclass(frozen=True)
class Benchmark:
    """One cold run; times in seconds, speeds in tokens per second.

    time_to_first_token: from the opened bundle to the first token, the prompt included.
    decode_*: while new tokens were made; decode_wait_seconds: of it, in which nothing could be done
    before a page came. limit_tokens_per_second and the bandwidths: see Limit; limit_reached: the
    share of it. prompt: where its tokens came from, "text" or "random ids". lossy, skipped_experts:
    see Stats.
    """

    bundle: str
    prompt: str
    prompt_tokens: int
    new_tokens: int
    threads: int
    expert_engine: str
    open_seconds: float
    time_to_first_token: float
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    limit_tokens_per_second: float
    limit_reached: float
    memory_bandwidth: float
    storage_bandwidth: float | None
    hit_rate: float
    decode_hit_rate: float
    decode_bytes_per_token: float
    decode_seconds: float
    decode_wait_seconds: float
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
    record_routes: Path | None = None,
    trace: Path | None = None,
    progress: Progress = _SILENT,
) -> Benchmark:
    """Opens the bundle, reads a prompt and decodes greedily; an end-of-text token does not stop it.

    record_routes, trace: files to make, see open_bundle.

    Raises:
        InputError: the tokens do not fit the context, or a file cannot be made.
    """
    from .runtime.session import open_bundle

    opening = time.perf_counter()
    with open_bundle(
        bundle, memory_budget=memory_budget, threads=threads, context=context, kernels=kernels,
        active_experts=active_experts, skip_cold=skip_cold, record_routes=record_routes,
        trace=trace,
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
        before = session.counters
        progress.stage("decode", new_tokens - 1)
        decode = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = int(session.forward([token], last_only=True)[-1].argmax())
            progress.advance(1)
        end = time.perf_counter()
        decoding = session.counters - before
        stats = session.stats
        manifest = session.manifest
    steps = new_tokens - 1
    missed = decoding.bytes_read / max(1, steps)
    limit = measure_limit(
        manifest, stats, missed_bytes=missed,
        skipped=decoding.skipped_experts / max(1, steps), active_experts=active_experts,
    )  # fmt: skip
    speed = steps / (end - decode)
    return Benchmark(
        bundle=str(bundle),
        prompt=source,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=stats.threads,
        expert_engine=stats.expert_engine,
        open_seconds=opened - opening,
        time_to_first_token=first - start,
        prompt_tokens_per_second=prompt_tokens / (first - start),
        decode_tokens_per_second=speed,
        limit_tokens_per_second=limit.tokens_per_second,
        limit_reached=speed / limit.tokens_per_second,
        memory_bandwidth=limit.memory_bandwidth,
        storage_bandwidth=limit.storage_bandwidth,
        hit_rate=stats.hit_rate,
        decode_hit_rate=decoding.hit_rate,
        decode_bytes_per_token=missed,
        decode_seconds=end - decode,
        decode_wait_seconds=decoding.wait_seconds,
        bytes_read=stats.bytes_read,
        cache_slots=stats.cache_slots,
        num_pages=stats.num_pages,
        budget_bytes=stats.budget_bytes,
        peak_rss_bytes=stats.peak_rss_bytes,
        lossy=stats.lossy,
        skipped_experts=stats.skipped_experts,
    )


def measure_limit(
    manifest: Manifest,
    stats: Stats,
    *,
    missed_bytes: float,
    skipped: float,
    active_experts: int | None = None,
) -> Limit:
    """The limit of a session's decoding, once it is closed: measuring takes memory of the budget.

    missed_bytes: read per token; skipped: experts that a token went without because of `skip_cold`.
    """
    resident = token_bytes(manifest, active_experts) - skipped * manifest.page_bytes
    bandwidth = measure_memory(stats.threads, stats.budget_bytes)
    storage = stats.read_bytes_per_second or None
    seconds = max(resident / bandwidth, missed_bytes / storage if storage else 0.0)
    return Limit(1 / seconds, bandwidth, storage)


def generation_limit(
    manifest: Manifest, stats: Stats, active_experts: int | None = None
) -> Limit | None:
    """As measure_limit, of what `generate` has decoded; None where that is nothing."""
    steps = stats.decode_steps
    if not steps:
        return None
    return measure_limit(
        manifest, stats, missed_bytes=stats.decode_bytes_read / steps,
        skipped=stats.decode_skipped_experts / steps, active_experts=active_experts,
    )  # fmt: skip


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
    from .runtime.native.kernels import NativeKernels
    from .runtime.native.library import available

    nbytes = min(_BUFFER_BYTES, (memory_budget or _BUFFER_BYTES * 4) // 4)
    data = np.ones(max(1, nbytes // 128) * 128, np.uint8)
    if available():
        kernels = NativeKernels(threads)
        return data.nbytes / _best(lambda: kernels.read(data))
    parts = np.array_split(data.view(np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return data.nbytes / _best(lambda: list(pool.map(np.sum, parts)))


def _best(run: Callable[[], object]) -> float:
    """The shortest time of a few runs, in seconds."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


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
