"""The metrics of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..runtime.memory.host_memory import process_memory
from ..runtime.session import Session
from .pool import Pool
from .speed import Throughput

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_WINDOW = 10.0  # seconds


class Metrics:
    def __init__(self, session: Session, pool: Pool):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pocketmoe_requests", "Requests that were answered, by route and status.",
            ["route", "status"], registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "pocketmoe_prompt_tokens", "Tokens of prompts, for each answer.",
            registry=self.registry,
        )  # fmt: skip
        self.cached_tokens = Counter(
            "pocketmoe_cached_prompt_tokens", "Tokens of prompts that a session had seen.",
            registry=self.registry,
        )  # fmt: skip
        self.new_tokens = Counter(
            "pocketmoe_new_tokens", "Tokens that were generated.", registry=self.registry
        )
        self.first_token = Histogram(
            "pocketmoe_time_to_first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._speed = Throughput(_WINDOW)
        self.registry.register(_State(session, pool, self._speed))

    def count_new(self, tokens: int) -> None:
        self.new_tokens.inc(tokens)
        self._speed.count(tokens)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """What is read when somebody asks."""

    def __init__(self, session: Session, pool: Pool, speed: Throughput):
        self._session, self._pool, self._speed = session, pool, speed

    def collect(self) -> Iterator[Metric]:
        stats, pool = self._session.stats, self._pool
        gauges = {
            "queue_length": ("Requests that wait, or are being prepared.", pool.queued),
            "running_requests": ("Requests that generate.", pool.running),
            "sessions": ("Requests that can generate at once.", len(pool.sessions)),
            "new_tokens_per_second": ("In the last ten seconds.", self._speed.value),
            "page_hit_rate": ("Share of page requests that the cache answered.", stats.hit_rate),
            "cached_pages": ("Pages that the cache has room for.", stats.cache_slots),
            "pages": ("Pages of the bundle.", stats.num_pages),
            "resident_memory_bytes": ("Of the process.", process_memory("VmRSS")),
            "peak_memory_bytes": ("Of the process.", process_memory("VmHWM")),
            "planned_memory_bytes": ("What the process is to take at most.", stats.planned_bytes),
        }
        if stats.budget_bytes is not None:
            gauges["memory_budget_bytes"] = ("For the whole process.", stats.budget_bytes)
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(f"pocketmoe_{name}", about, value)
        counters = {
            "page_hits": ("Page requests that the cache answered.", stats.page_hits),
            "page_misses": ("Page requests that it did not.", stats.page_misses),
            "paged_bytes": ("Bytes of pages that were read.", stats.bytes_read),
            "page_wait_seconds": ("In which there was nothing to do but wait for pages.",
                                  stats.wait_seconds),
        }  # fmt: skip
        for name, (about, count) in counters.items():
            yield CounterMetricFamily(f"pocketmoe_{name}", about, count)
