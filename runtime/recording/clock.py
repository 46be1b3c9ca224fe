"""The clock of generations: tokens and seconds of prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stats import Counters


@dataclass
class Clock:
    """What a session's generations have taken so far; see Stats."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    time_to_first_token: float | None = None
    decode_page_hits: int = 0
    decode_page_misses: int = 0
    decode_bytes_read: int = 0
    decode_read_seconds: float = 0.0
    decode_wait_seconds: float = 0.0
    decode_skipped_experts: int = 0
    decode_gpu_page_hits: int = 0
    decode_link_bytes: int = 0

    def count_step(self, seconds: float, done: Counters) -> None:
        """Adds a new token that was run through the model."""
        self.new_tokens += 1
        self.decode_steps += 1
        self.decode_seconds += seconds
        self.decode_page_hits += done.page_hits
        self.decode_page_misses += done.page_misses
        self.decode_bytes_read += done.bytes_read
        self.decode_read_seconds += done.read_seconds
        self.decode_wait_seconds += done.wait_seconds
        self.decode_skipped_experts += done.skipped_experts
        self.decode_gpu_page_hits += done.gpu_page_hits
        self.decode_link_bytes += done.link_bytes
