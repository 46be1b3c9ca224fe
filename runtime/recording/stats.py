"""Statistics of a session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What the pager and the lossy options have counted; see Stats."""

    page_hits: int
    page_misses: int
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    skipped_experts: int
    gpu_page_hits: int = 0
    link_bytes: int = 0

    def __sub__(self, before: Counters) -> Counters:
        return Counters(**{name: now - vars(before)[name] for name, now in vars(self).items()})

    @property
    def hit_rate(self) -> float:
        """Share of page requests that the cache answered; 1 where there were none."""
        requests = self.page_hits + self.page_misses
        return self.page_hits / requests if requests else 1.0

    @property
    def gpu_hit_rate(self) -> float:
        """Share of page requests that were in the GPU's memory; 0 without a GPU."""
        requests = self.page_hits + self.page_misses
        return self.gpu_page_hits / requests if requests else 0.0


@dataclass(frozen=True)
class Stats:
    """Since the session was opened; times in seconds.

    prompt_*, new_*, decode_*: of `generate` alone. decode_steps: new tokens that were run through
    the model again; the other decode_* are theirs, and where sessions of a model run at once, those
    of whatever ran in the same batches. time_to_first_token: of the latest prompt.
    page_*, bytes_read: of the cache. read_seconds: while pages were read; wait_seconds: the part of
    it in which there was nothing else to do. direct_reads: past the page cache.
    early_pages: read before the router asked for them; guess_accuracy: the share of recent guesses
    of what it would ask for that were right, None where nothing is guessed.
    auto_budget: budget_bytes was made of what the machine had free.
    expert_engine, backbone_engine: "onnxruntime", or "native" and its instruction set; where both
    run segments of the backbone, how many. backbone_bytes: its weights in memory. lossy: what
    changes the output, in the bundle and by the session's options. skipped_experts: how often a
    token went without an expert because of `skip_cold`.
    backend: what runs the layers, and backend_reason, why; gpu: the device's name, empty on the
    host. gpu_*: pages in its memory, which are page_hits too; link_bytes: that were copied there.
    """

    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    decode_steps: int
    decode_seconds: float
    time_to_first_token: float | None
    decode_page_hits: int
    decode_page_misses: int
    decode_bytes_read: int
    decode_read_seconds: float
    decode_wait_seconds: float
    decode_skipped_experts: int
    page_hits: int
    page_misses: int
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    early_pages: int
    early_pages_used: int
    guess_accuracy: float | None
    verified_pages: int
    num_pages: int
    cache_slots: int
    chunk_tokens: int
    context: int
    threads: int
    expert_engine: str
    backbone_engine: str
    backbone_bytes: int
    direct_reads: bool
    lossy: tuple[str, ...]
    skipped_experts: int
    budget_bytes: int | None
    auto_budget: bool
    planned_bytes: int
    peak_rss_bytes: int
    decode_gpu_page_hits: int = 0
    decode_link_bytes: int = 0
    gpu_page_hits: int = 0
    link_bytes: int = 0
    backend: str = "cpu"
    backend_reason: str = ""
    gpu: str = ""
    gpu_slots: int = 0
    gpu_memory_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of page requests that the cache answered; 1 where there were none."""
        requests = self.page_hits + self.page_misses
        return self.page_hits / requests if requests else 1.0

    @property
    def decode_hit_rate(self) -> float:
        """As hit_rate, of new tokens alone."""
        requests = self.decode_page_hits + self.decode_page_misses
        return self.decode_page_hits / requests if requests else 1.0

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def new_tokens_per_second(self) -> float:
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def read_bytes_per_second(self) -> float:
        return self.bytes_read / self.read_seconds if self.read_seconds else 0.0
