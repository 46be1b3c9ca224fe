"""Statistics of a session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What the pager and the lossy options have counted since the model was opened. One may be
    subtracted from another: what came between them.

    Attributes:
        page_hits: page requests that the cache answered.
        page_misses: page requests that read from the disk.
        bytes_read: bytes of these reads.
        read_seconds: time in which pages were read.
        wait_seconds: the part of it in which there was nothing else to do.
        skipped_experts: how often a token went without an expert because of `skip_cold`.
        gpu_page_hits: page requests that the GPU's memory answered; they are page_hits too.
        link_bytes: bytes that were copied to the GPU.
    """

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
    """What was counted since the session was opened. Times are in seconds.

    Where sessions of a model run at once, the decode_* figures but decode_steps and decode_seconds
    are those of whatever ran in the same batches.

    Attributes:
        prompt_tokens: tokens of prompts that `generate` has run; those reused are left out.
        prompt_seconds: what that took.
        new_tokens: tokens that `generate` has made.
        decode_steps: those of them that were run through the model again.
        decode_seconds: what that took.
        time_to_first_token: of the latest prompt; None before there was one.
        decode_page_hits: page_hits of these steps.
        decode_page_misses: page_misses of these steps.
        decode_bytes_read: bytes_read of these steps.
        decode_read_seconds: read_seconds of these steps.
        decode_wait_seconds: wait_seconds of these steps.
        decode_skipped_experts: skipped_experts of these steps.
        page_hits: page requests that the cache answered.
        page_misses: page requests that read from the disk.
        bytes_read: bytes of these reads.
        read_seconds: time in which pages were read.
        wait_seconds: the part of it in which there was nothing else to do.
        early_pages: pages read before the router asked for them.
        early_pages_used: those of them that it did ask for.
        guess_accuracy: the share of recent guesses that were right; None where nothing is guessed.
        verified_pages: pages whose hash was checked.
        num_pages: pages of the bundle.
        cache_slots: pages that the cache can hold.
        chunk_tokens: tokens that a graph gets at once.
        context: the most tokens that the session can see.
        threads: threads that compute.
        expert_engine: "onnxruntime", or "native" and its instruction set.
        backbone_engine: as expert_engine; where both run segments, how many each.
        backbone_bytes: the backbone's weights in memory.
        direct_reads: whether reads go past the system's page cache.
        lossy: what changes the output, in the bundle and by the session's options.
        skipped_experts: how often a token went without an expert because of `skip_cold`.
        budget_bytes: the memory budget; None for no limit.
        auto_budget: whether it was made of what the machine had free.
        planned_bytes: what the plan adds up to.
        peak_rss_bytes: the largest resident memory of the process so far.
        decode_gpu_page_hits: gpu_page_hits of decode_steps.
        decode_link_bytes: link_bytes of decode_steps.
        gpu_page_hits: page requests that the GPU's memory answered; they are page_hits too.
        link_bytes: bytes that were copied to the GPU.
        backend: what runs the layers.
        backend_reason: why.
        gpu: the GPU's name; empty on the host.
        gpu_slots: pages that the GPU's memory can hold.
        gpu_memory_bytes: what the session takes of the GPU's memory.
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
        """0 before there was a prompt."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def new_tokens_per_second(self) -> float:
        """Decode steps per second; 0 before there was one."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def read_bytes_per_second(self) -> float:
        """Of the time in which pages were read; 0 where none were."""
        return self.bytes_read / self.read_seconds if self.read_seconds else 0.0
