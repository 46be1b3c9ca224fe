"""The rows of a table that say what ran where, and what a GPU held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sizes import format_size

if TYPE_CHECKING:
    from ..analysis.measuring.benchmark import Benchmark
    from ..runtime.recording.stats import Stats


def backend_rows(figures: Stats | Benchmark) -> list[tuple[str, ...]]:
    """What runs the layers and why, and the GPU's part."""
    reason = f": {figures.backend_reason}" if figures.backend_reason else ""
    rows: list[tuple[str, ...]] = [("backend", figures.backend + reason)]
    if figures.gpu:
        rows.append(
            ("GPU", f"{figures.gpu}, {format_size(figures.gpu_memory_bytes)} taken, "
                    f"{figures.gpu_slots} of {figures.num_pages} pages")
        )  # fmt: skip
    return rows


def gpu_hit_rows(stats: Stats) -> list[tuple[str, ...]]:
    """Where pages were found, and what was copied for the others."""
    if not stats.gpu:
        return []
    requests = max(1, stats.page_hits + stats.page_misses)
    host = stats.page_hits - stats.gpu_page_hits
    link = f"{format_size(stats.link_bytes)} over the link"
    if stats.decode_steps:
        per_token = format_size(round(stats.decode_link_bytes / stats.decode_steps))
        link += f"; while decoding {per_token} per token"
    return [
        ("pages found", f"{stats.gpu_page_hits / requests:.1%} on the GPU, {host / requests:.1%} "
                        f"on the host, {stats.page_misses / requests:.1%} on disk"),
        ("copied", link),
    ]  # fmt: skip


def gpu_speed_rows(result: Benchmark) -> list[tuple[str, ...]]:
    """What decoding had copied to the GPU."""
    if not result.gpu:
        return []
    per_token = format_size(round(result.decode_link_bytes_per_token))
    link = result.link_bandwidth
    speed = f" at {format_size(round(link))}/s at most" if link else ""
    return [
        ("GPU page hits", f"{result.decode_gpu_hit_rate:.1%} while decoding"),
        ("copied", f"{per_token} per token{speed}"),
    ]
