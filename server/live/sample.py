"""Samples of the model at work, taken a few times a second."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.memory.budget import MemoryPlan
from ...runtime.memory.host_memory import process_memory
from ...runtime.recording.stats import Counters
from ..service import Service
from ..speed import DecodeSpeed

FRESH = 0.1  # seconds for which a sample serves everybody who watches
WINDOW = 3.0  # seconds that recent figures are of


def budget_bounds(plan: MemoryPlan, num_pages: int) -> tuple[int, int]:
    """The smallest budget that works for this process, and the smallest that holds all pages. A
    process that starts anew may need a little more: see MemoryPlan.smallest."""
    pages = num_pages - plan.fewest
    return plan.least, plan.least + pages * plan.page


@dataclass(frozen=True)
class LayerFacts:
    """layers: index and number of experts of each layer with pages. All counts and bits are in
    their order; starts: where each begins, by its index. total: of all experts."""

    layers: Sequence[tuple[int, int]]
    starts: dict[int, int]
    total: int

    @staticmethod
    def of(service: Service) -> LayerFacts:
        layers, starts, total = [], {}, 0
        for pages in service.session.model.manifest.experts:
            layers.append((pages.layer, len(pages.offsets)))
            starts[pages.layer] = total
            total += len(pages.offsets)
        return LayerFacts(layers, starts, total)


@dataclass(frozen=True)
class Sample:
    """time: on the monotonic clock. usage: int64, tokens that went to each expert so far. resident:
    whether each is in memory, as bits, the lowest first; pages: how many are. speed: recent new
    tokens per second of all requests, 0 where there were none. hit_rate: recent, None where no page
    was asked for."""

    time: float
    usage: np.ndarray
    resident: bytes
    pages: int
    counters: Counters
    speed: float
    hit_rate: float | None
    budget: int | None
    slots: int
    running: int
    queued: int
    memory: int

    def differs(self, other: Sample) -> bool:
        """But for the time and the process's memory, which change by themselves."""
        mine, others = vars(self), vars(other)
        names = mine.keys() - {"time", "memory", "usage"}
        return any(mine[name] != others[name] for name in names) or not np.array_equal(
            self.usage, other.usage
        )

    def told(self, before: Sample | None) -> dict[str, Any]:
        """For the page. used: experts and the number of their tokens since then, in turn; None:
        since the beginning."""
        counts = self.usage if before is None else self.usage - before.usage
        found = np.flatnonzero(counts)
        return {
            "first": before is None,
            "seconds": 0.0 if before is None else round(self.time - before.time, 3),
            "used": np.stack([found, counts[found]], axis=1).ravel().tolist(),
            "resident": base64.b64encode(self.resident).decode(),
            "resident_pages": self.pages,
            "hit_rate": round(self.counters.hit_rate, 4),
            "recent_hit_rate": None if self.hit_rate is None else round(self.hit_rate, 4),
            "tokens_per_second": round(self.speed, 2),
            "bytes_read": self.counters.bytes_read,
            "memory_budget": self.budget,
            "slots": self.slots,
            "running": self.running,
            "queued": self.queued,
            "resident_memory": self.memory,
        }


class LiveSampler:
    def __init__(self, service: Service, facts: LayerFacts):
        self._service, self._facts = service, facts
        self._speed = DecodeSpeed(WINDOW)
        self._marks: deque[tuple[float, Counters]] = deque()
        self._last: Sample | None = None

    def take(self) -> Sample:
        now = time.monotonic()
        if self._last is not None and now - self._last.time < FRESH:
            return self._last
        pool, model = self._service.pool, self._service.session.model
        counters = model.counters
        recent = counters - self._before(now, counters)
        tokens = sum(session.stats.new_tokens for session in pool.sessions)
        resident, pages = self._resident()
        self._last = Sample(
            time=now,
            usage=self._usage(),
            resident=resident,
            pages=pages,
            counters=counters,
            speed=self._speed.take(now, tokens, running=pool.running > 0),
            hit_rate=recent.hit_rate if recent.page_hits + recent.page_misses else None,
            budget=model.plan.budget,
            slots=model.plan.slots,
            running=pool.running,
            queued=pool.queued,
            memory=process_memory("VmRSS"),
        )
        return self._last

    def _before(self, now: float, counters: Counters) -> Counters:
        """What they were WINDOW seconds ago, or as near to it as anyone has looked."""
        marks = self._marks
        if marks and marks[-1][0] < now - WINDOW:  # nobody has watched for a while
            marks.clear()
        marks.append((now, counters))
        while len(marks) > 1 and marks[1][0] <= now - WINDOW:
            marks.popleft()
        return marks[0][1]

    def _usage(self) -> np.ndarray:
        usage = self._service.session.model.usage
        rows = [usage[layer, :experts] for layer, experts in self._facts.layers]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _resident(self) -> tuple[bytes, int]:
        starts, keys = self._facts.starts, self._service.session.model.resident()
        held = np.zeros(self._facts.total, np.uint8)
        held[[starts[key.layer] + key.expert for key in keys]] = 1
        return np.packbits(held, bitorder="little").tobytes(), len(keys)
