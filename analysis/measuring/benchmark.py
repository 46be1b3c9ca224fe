"""The measurements of `bench`. Imports no torch."""

from __future__ import annotations

import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ...progress import Progress, Silent
from ...runtime.options import OpenOptions
from ...runtime.recording.stats import Counters
from ..planning.limits import MachineSpeed, SpeedEstimate, assumed_speed, estimate_speed
from ..planning.plan import machine_speed, share_not_read
from .machine import measure_memory

if TYPE_CHECKING:
    from ...bundle.manifest import Manifest
    from ...runtime.recording.stats import Stats
    from ...runtime.session import Session
    from ...targets import Target


@dataclass(frozen=True)
class Limit:
    """No faster than memory gives the weights of a token, and storage the pages that were missed;
    with a GPU it is its memory, and the link gives the pages that it did not have.

    The bandwidths, in bytes per second, are of the same run: of storage, while at least one read
    was under way, hashing not counted; None where nothing was read.
    """

    tokens_per_second: float
    memory_bandwidth: float
    storage_bandwidth: float | None
    link_bandwidth: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """One cold run; times in seconds, speeds in tokens per second.

    time_to_first_token: from the opened bundle to the first token, the prompt included.
    decode_*: while new tokens were made; decode_wait_seconds: of it, in which nothing could be done
    before a page came. limit_tokens_per_second and the bandwidths: see Limit; limit_reached: the
    share of it. predicted: a token while decoding, with the bytes that were read for it;
    predicted_from: the figures behind it, a target's or those of this run. prompt: where its tokens
    came from, "text" or "random ids". For the others see Stats.
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
    limit_reached: float
    predicted_tokens_per_second: float
    predicted: SpeedEstimate
    predicted_from: str
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
    auto_budget: bool
    peak_rss_bytes: int
    early_pages: int
    early_pages_used: int
    guess_accuracy: float | None
    lossy: tuple[str, ...]
    skipped_experts: int
    backend: str = "cpu"
    backend_reason: str = ""
    gpu: str = ""
    gpu_slots: int = 0
    gpu_memory_bytes: int = 0
    decode_gpu_hit_rate: float = 0.0
    decode_link_bytes_per_token: float = 0.0
    link_bandwidth: float | None = None


_SILENT = Silent()


def run_benchmark(
    bundle: Path,
    *,
    prompt_tokens: int,
    new_tokens: int,
    opening: OpenOptions,
    target: Target | None = None,
    progress: Progress = _SILENT,
) -> Benchmark:
    """Opens the bundle, reads a prompt and decodes greedily; an end-of-text token does not stop it.

    opening: how the bundle is opened. target: whose figures the prediction is made of, if it was
    measured.

    Raises:
        InputError: the tokens do not fit the context, or a file cannot be made.
    """
    from ...runtime.opening import open_with

    began = time.perf_counter()
    with open_with(bundle, opening) as session:
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
    limit = measure_limit(manifest, stats, max(1, steps), decoding, opening.active_experts)
    tokens_per_second = steps / (end - decode)
    speed, speed_from = _speed(target, limit, needs_storage=missed > 0)
    if target is not None and target.kind == "gpu" and stats.backend == "cpu":
        speed_from += ", a GPU, and the CPU ran this"
    footprint = manifest.footprint.with_active(opening.active_experts)
    predicted = estimate_speed(
        footprint, speed, hit_rate=share_not_read(footprint, missed),
        position=prompt_tokens + new_tokens // 2, prefetches=stats.early_pages > 0,
    )  # fmt: skip
    return Benchmark(
        bundle=str(bundle),
        prompt=source,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=stats.threads,
        expert_engine=stats.expert_engine,
        backbone_engine=stats.backbone_engine,
        open_seconds=opened - began,
        time_to_first_token=first - start,
        prompt_tokens_per_second=prompt_tokens / (first - start),
        decode_tokens_per_second=tokens_per_second,
        limit_tokens_per_second=limit.tokens_per_second,
        limit_reached=tokens_per_second / limit.tokens_per_second,
        predicted_tokens_per_second=predicted.tokens_per_second,
        predicted=predicted,
        predicted_from=speed_from,
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
        auto_budget=stats.auto_budget,
        peak_rss_bytes=stats.peak_rss_bytes,
        early_pages=stats.early_pages,
        early_pages_used=stats.early_pages_used,
        guess_accuracy=stats.guess_accuracy,
        lossy=stats.lossy,
        skipped_experts=stats.skipped_experts,
        backend=stats.backend,
        backend_reason=stats.backend_reason,
        gpu=stats.gpu,
        gpu_slots=stats.gpu_slots,
        gpu_memory_bytes=stats.gpu_memory_bytes,
        decode_gpu_hit_rate=decoding.gpu_hit_rate,
        decode_link_bytes_per_token=decoding.link_bytes / max(1, steps),
        link_bandwidth=limit.link_bandwidth,
    )


def measure_limit(
    manifest: Manifest,
    stats: Stats,
    steps: int,
    decoding: Counters,
    active_experts: int | None = None,
) -> Limit:
    """The limit of a session's decoding, once it is closed: measuring takes memory of the budget.

    decoding: what was counted in so many steps. Where it read nothing, all that the session read
    tells the storage bandwidth.
    """
    footprint = manifest.footprint.with_active(active_experts)
    skipped = decoding.skipped_experts / steps * manifest.page_bytes
    link = None
    if stats.gpu:
        from ...engines.hardware import start_cuda
        from ...runtime.gpu.cuda_device import CudaDevice
        from ...runtime.gpu.speed import measure_device

        speed = measure_device(CudaDevice(start_cuda()))
        bandwidth, link = speed.memory_bandwidth, speed.link_bandwidth
    else:
        bandwidth = measure_memory(stats.threads, stats.budget_bytes)
    storage = stats.read_bytes_per_second or None
    if decoding.bytes_read and decoding.read_seconds:
        storage = decoding.bytes_read / decoding.read_seconds
    missed = decoding.bytes_read / steps
    seconds = max(
        (stats.backbone_bytes + footprint.token_page_bytes - skipped) / bandwidth,
        missed / storage if storage else 0.0,
        decoding.link_bytes / steps / link if link else 0.0,
    )
    return Limit(1 / seconds, bandwidth, storage, link)


def generation_limit(
    manifest: Manifest, stats: Stats, active_experts: int | None = None
) -> Limit | None:
    """As measure_limit, of what `generate` has decoded; None where that is nothing."""
    if not stats.decode_steps:
        return None
    decoding = Counters(
        page_hits=stats.decode_page_hits, page_misses=stats.decode_page_misses,
        bytes_read=stats.decode_bytes_read, read_seconds=stats.decode_read_seconds,
        wait_seconds=stats.decode_wait_seconds, skipped_experts=stats.decode_skipped_experts,
        gpu_page_hits=stats.decode_gpu_page_hits, link_bytes=stats.decode_link_bytes,
    )  # fmt: skip
    return measure_limit(manifest, stats, stats.decode_steps, decoding, active_experts)


def _speed(target: Target | None, limit: Limit, *, needs_storage: bool) -> tuple[MachineSpeed, str]:
    """The target's figures where it has them, else the bandwidths of this run; and which it was."""
    speed = machine_speed(target) if target is not None else None
    if target is None or speed is None or (needs_storage and speed.storage_bandwidth is None):
        assumed = assumed_speed(limit.memory_bandwidth, limit.storage_bandwidth)
        return assumed, "this run's bandwidths"
    return speed, f"target {target.name}"


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
