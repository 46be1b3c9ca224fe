"""The facts that the commands show, as rows of text for a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .inspection import BundleFacts, CheckpointFacts, ModelFacts
from .sizes import format_size

if TYPE_CHECKING:
    from .benchmark import Benchmark
    from .runtime.evaluate import Evaluation
    from .runtime.replay import ReplayRow
    from .runtime.stats import Stats
    from .targets import Target

Row = tuple[str, ...]


def target_rows(target: Target) -> list[Row]:
    """Every fact of a device, and where it is from."""
    return [
        (name.replace("_", " "), _figure(name, value), target.sources.get(name, ""))
        for name, value in vars(target).items()
        if name != "sources"
    ]


def _figure(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    if name.endswith("_bandwidth") and isinstance(value, (int, float)):
        return f"{format_size(round(value))}/s"
    return str(value)


def fact_rows(facts: CheckpointFacts | BundleFacts) -> list[Row]:
    """Names and values for a table."""
    model = facts.model
    experts = f"{_several(model.experts)} per MoE layer, {_several(model.top_k)} work on a token"
    rows = [
        ("family", model.family),
        ("layers", f"{model.layers}: {model.moe_layers} MoE, {model.dense_layers} dense"
                   f"{', paged' if model.paged_layers > model.moe_layers else ''}; "
                   f"{model.windowed_layers} with a sliding window"),
        ("experts", experts if model.experts else "none"),
        ("parameters", f"{_short(model.parameters_total)} total, "
                       f"{_short(model.parameters_active)} active"),
        ("sizes", f"hidden {model.hidden_size}, vocabulary {model.vocab_size:,}"),
        ("context", f"{model.context:,} tokens"),
        ("KV cache", f"{format_size(model.kv_bytes_per_token)} per token{_latent_part(model)}"
                     f"{_window_part(model.kv_window_bytes)}"),
    ]  # fmt: skip
    if isinstance(facts, BundleFacts):
        return rows + _bundle_rows(facts)
    rows.append(("tokenizer", "yes" if facts.tokenizer else "no tokenizer.json"))
    rows.append(("encoding", facts.encoding or "none"))
    if facts.stored_bytes is None or facts.dtypes is None:
        return [*rows, ("weights", "none here: sizes from config.json alone")]
    files = f"{facts.files} file{'s' if facts.files > 1 else ''}"
    stored = f"{format_size(facts.stored_bytes)} as {', '.join(facts.dtypes)} in {files}"
    return [*rows, ("weights", stored), *(("skipped", line) for line in facts.skipped)]


def _bundle_rows(facts: BundleFacts) -> list[Row]:
    parts = facts.precision
    return [
        ("target", facts.target),
        ("precision", f"experts {parts.experts}, backbone {parts.backbone}, head {parts.head}, "
                      f"blocks of {parts.block_size}; embedding {facts.embedding_dtype}"),
        ("files", f"{facts.files}, {format_size(facts.total_bytes)}"),
        ("backbone", f"{facts.segments} segments, {format_size(facts.backbone_bytes)} loaded"),
        ("pages", f"{facts.pages} of up to {format_size(facts.page_bytes)}, "
                  f"{format_size(facts.expert_bytes)} in all"),
        ("active experts", _several(facts.active_experts) or "none"),
        ("chat template", "yes" if facts.chat_template else "no"),
        ("lossy choices", ", ".join(facts.lossy) or "none"),
        ("toolchain", ", ".join(f"{name} {value}" for name, value in facts.toolchain.items())),
        ("format version", str(facts.version)),
    ]  # fmt: skip


def size_rows(model: ModelFacts) -> list[Row]:
    """A row per part, a column per precision."""
    parts = {
        "embedding": [sizes.embedding for sizes in model.sizes],
        "backbone": [sizes.backbone for sizes in model.sizes],
        "head": [sizes.head for sizes in model.sizes],
        "experts": [sizes.experts for sizes in model.sizes],
        "all": [sizes.total for sizes in model.sizes],
        "one expert page": [sizes.page for sizes in model.sizes],
    }
    return [(name, *map(format_size, values)) for name, values in parts.items()]


def _several(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, values))


def _short(number: int) -> str:
    for scale, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def _latent_part(model: ModelFacts) -> str:
    if model.kv_expanded_bytes_per_token == model.kv_bytes_per_token:
        return ""
    return f", a latent; {format_size(model.kv_expanded_bytes_per_token)} with all heads"


def _window_part(nbytes: int) -> str:
    return f", and {format_size(nbytes)} for the windows" if nbytes else ""


def benchmark_rows(result: Benchmark) -> list[Row]:
    """Names and values for a table."""
    return [
        ("prompt", f"{result.prompt_tokens} tokens ({result.prompt}), "
                   f"{result.prompt_tokens_per_second:.1f} tok/s"),
        ("decode", f"{result.new_tokens} tokens, {result.decode_tokens_per_second:.1f} tok/s"),
        ("limit", f"{result.limit_tokens_per_second:.1f} tok/s at {_bandwidths(result)}; "
                  f"{_reached(result):.1%} of it reached"),
        ("time to first token", f"{result.time_to_first_token:.3f} s, after "
                                f"{result.open_seconds:.3f} s to open"),
        ("page hits", f"{result.hit_rate:.1%}; while decoding {result.decode_hit_rate:.1%}"),
        ("bytes read", f"{format_size(result.bytes_read)}; while decoding "
                       f"{format_size(round(result.decode_bytes_per_token))} per token"),
        ("cache", f"{result.cache_slots} of {result.num_pages} pages"),
        ("experts", result.expert_engine),
        ("backbone", result.backbone_engine),
        ("threads", str(result.threads)),
        ("peak memory", _memory(result.peak_rss_bytes, result.budget_bytes)),
        *_lossy_rows(result),
    ]  # fmt: skip


def stat_rows(stats: Stats) -> list[Row]:
    """Names and values of what `run` has done."""
    first = stats.time_to_first_token
    return [
        ("prompt", f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tok/s"),
        ("time to first token", "none" if first is None else f"{first:.3f} s"),
        ("decode", f"{stats.new_tokens} tokens, {stats.new_tokens_per_second:.1f} tok/s"),
        ("page hits", f"{stats.hit_rate:.1%} of {stats.page_hits + stats.page_misses}"),
        ("bytes read", f"{format_size(stats.bytes_read)} at "
                       f"{format_size(round(stats.read_bytes_per_second))}/s, "
                       f"{'past' if stats.direct_reads else 'through'} the page cache"),
        ("cache", f"{stats.cache_slots} of {stats.num_pages} pages, "
                  f"{stats.verified_pages} checked"),
        ("context", f"{stats.context} tokens, chunks of {stats.chunk_tokens}"),
        ("experts", stats.expert_engine),
        ("backbone", stats.backbone_engine),
        ("threads", str(stats.threads)),
        ("peak memory", _memory(stats.peak_rss_bytes, stats.budget_bytes)),
        *_lossy_rows(stats),
    ]  # fmt: skip


def _lossy_rows(figures: Stats | Benchmark) -> list[Row]:
    """What changes the output, where something does."""
    if not figures.lossy:
        return []
    skipped = figures.skipped_experts
    count = f"; {skipped:,} times an expert was skipped" if skipped else ""
    return [("lossy", ", ".join(figures.lossy) + count)]


def replay_columns(rows: list[ReplayRow]) -> list[str]:
    return ["page cache", *rows[0].hit_rates]


def replay_table(rows: list[ReplayRow]) -> list[Row]:
    """A row for each budget, a column for each policy."""
    return [
        (format_size(row.capacity_bytes), *(f"{rate:.1%}" for rate in row.hit_rates.values()))
        for row in rows
    ]


def evaluation_rows(result: Evaluation) -> list[Row]:
    """Names and values of what `eval` measured."""
    return [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else _number(value))
        for name, value in vars(result).items()
        if value is not None and value != ()
    ]


def _number(value: float) -> str:
    """A count with thousands separated, or a fraction with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _reached(result: Benchmark) -> float:
    return result.decode_tokens_per_second / result.limit_tokens_per_second


def _bandwidths(result: Benchmark) -> str:
    memory = f"{format_size(round(result.memory_bandwidth))}/s of memory"
    if result.storage_bandwidth is None or not result.decode_bytes_per_token:
        return memory
    return f"{memory} and {format_size(round(result.storage_bandwidth))}/s of storage"


def _memory(peak: int, budget: int | None) -> str:
    return f"{format_size(peak)} of {format_size(budget) if budget else 'no limit'}"
