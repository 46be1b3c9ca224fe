"""The counters of a model, gathered from wherever they are counted."""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle.manifest import Manifest
from .expert_choice import ExpertChoice
from .memory.budget import MemoryPlan
from .memory.host_memory import process_memory
from .recording.clock import Clock
from .recording.stats import Counters, Stats
from .runner import Runner


@dataclass(frozen=True, eq=False)
class RunningModel:
    """What the statistics of a model are gathered from."""

    manifest: Manifest
    plan: MemoryPlan
    threads: int
    runner: Runner
    choice: ExpertChoice


def count(runner: Runner, choice: ExpertChoice) -> Counters:
    pager, figures = runner.pager, runner.figures
    readers = pager.readers
    return Counters(
        page_hits=figures.page_hits + pager.hits,
        page_misses=pager.misses,
        bytes_read=readers.bytes_read,
        read_seconds=readers.read_seconds,
        wait_seconds=pager.wait_seconds,
        skipped_experts=choice.skipped,
        gpu_page_hits=figures.page_hits,
        link_bytes=figures.link_bytes,
    )


def gather_stats(model: RunningModel, clock: Clock, context: int) -> Stats:
    """clock, context: of one session."""
    runner = model.runner
    pager, engines, figures = runner.pager, runner.engines, runner.figures
    return Stats(
        **vars(clock),
        **vars(count(runner, model.choice)),
        verified_pages=pager.readers.verified,
        num_pages=model.manifest.num_pages,
        cache_slots=pager.slots,
        chunk_tokens=model.plan.chunk,
        context=context,
        threads=model.threads,
        expert_engine=engines.experts,
        early_pages=pager.early,
        early_pages_used=pager.early_used,
        guess_accuracy=runner.accuracy,
        backbone_engine=engines.backbone,
        backbone_bytes=engines.backbone_bytes,
        direct_reads=pager.direct,
        lossy=(*model.manifest.lossy, *model.choice.names),
        budget_bytes=model.plan.budget,
        auto_budget=model.plan.auto,
        planned_bytes=model.plan.total,
        peak_rss_bytes=process_memory("VmHWM"),
        backend=engines.backend,
        backend_reason=engines.reason,
        gpu=engines.device,
        gpu_slots=figures.slots,
        gpu_memory_bytes=figures.memory,
    )
