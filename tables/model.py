"""The facts that the commands show, as rows of text for a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..analysis.inspection.inspect import BundleFacts, CheckpointFacts, ModelFacts
from ..bundle.gpu_graphs import capability_name
from ..sizes import format_size
from .gpu import backend_rows, gpu_hit_rows, gpu_speed_rows

if TYPE_CHECKING:
    from ..analysis.measuring.benchmark import Benchmark, Limit
    from ..analysis.planning.replay import ReplayRow
    from ..runtime.recording.stats import Stats

Row = tuple[str, ...]


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
        *_bits_rows(facts),
        ("active experts", _several(facts.active_experts) or "none"),
        ("chat template", "yes" if facts.chat_template else "no"),
        ("lossy choices", ", ".join(facts.lossy) or "none"),
        ("toolchain", ", ".join(f"{name} {value}" for name, value in facts.toolchain.items())),
        ("device graphs", str(facts.graphs) if facts.graphs else "none: for CPUs alone"),
        *_engine_rows(facts),
        ("format version", str(facts.version)),
    ]  # fmt: skip


def _bits_rows(facts: BundleFacts) -> list[Row]:
    """How experts are stored, where each is in a format of its own; of layers, each line one."""
    if not facts.pages:
        return []
    asked = f", asked for {facts.bits.asked:g}" if facts.bits is not None else ""
    rows: list[Row] = [("bits", f"{facts.expert_bits:.4g} per expert weight{asked}")]
    if facts.bits is not None:
        for layer, formats in facts.expert_formats.items():
            counts = ", ".join(f"{n} in {name}" for name, n in sorted(formats.items()))
            rows.append((f"layer {layer}", counts))
    return rows


def _engine_rows(facts: BundleFacts) -> list[Row]:
    rows: list[Row] = [("engines", _engines(facts))]
    if facts.graph_context is not None:
        rows.insert(0, ("engine context", f"{facts.graph_context:,} positions"))
    if facts.incomplete_engines:
        rows.append(("incomplete", facts.incomplete_engines))
    return rows


def _engines(facts: BundleFacts) -> str:
    if not facts.engines:
        where = f" on {facts.engines_on}" if facts.engines_on else ""
        return f"none; 'pocketmoe build' makes them{where}" if facts.graphs else "none"
    names = ", ".join(capability_name(item.compute_capability) for item in facts.engines)
    if facts.gpu is None or any(item.here for item in facts.engines):
        return f"for {names}"
    return f"for {names}, and this machine's GPU is {facts.gpu}: 'pocketmoe build' makes its own"


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
    missed = result.decode_bytes_per_token
    return [
        ("prompt", f"{result.prompt_tokens} tokens ({result.prompt}), "
                   f"{result.prompt_tokens_per_second:.1f} tok/s"),
        ("decode", f"{result.new_tokens} tokens, {result.decode_tokens_per_second:.1f} tok/s"),
        ("limit", f"{result.limit_tokens_per_second:.1f} tok/s at {_bandwidths(result, missed)}; "
                  f"{result.limit_reached:.1%} of it reached"),
        ("predicted", f"{result.predicted_tokens_per_second:.1f} tok/s at these page hits, by "
                      f"{result.predicted_from}"),
        ("time to first token", f"{result.time_to_first_token:.3f} s, after "
                                f"{result.open_seconds:.3f} s to open"),
        ("page hits", f"{result.hit_rate:.1%}; while decoding {result.decode_hit_rate:.1%}"),
        ("bytes read", f"{format_size(result.bytes_read)}; while decoding "
                       f"{format_size(round(missed))} per token"),
        ("waited for pages", _waited(result.decode_wait_seconds, result.decode_seconds)),
        ("cache", f"{result.cache_slots} of {result.num_pages} pages"),
        ("experts", result.expert_engine),
        ("backbone", result.backbone_engine),
        *backend_rows(result),
        *gpu_speed_rows(result),
        ("threads", str(result.threads)),
        ("peak memory", _memory(result)),
        *_early_rows(result, result.new_tokens - 1),
        *_lossy_rows(result),
    ]  # fmt: skip


SPEED_COLUMNS = ["memory budget", "decode", "limit", "page hits", "read per token", "peak memory"]


def speed_rows(results: list[Benchmark]) -> list[Row]:
    """A row for each budget that was run."""
    return [
        (
            format_size(result.budget_bytes or 0),
            f"{result.decode_tokens_per_second:.2f} tok/s",
            f"{result.limit_tokens_per_second:.2f} tok/s",
            f"{result.decode_hit_rate:.1%}",
            format_size(round(result.decode_bytes_per_token)),
            format_size(result.peak_rss_bytes),
        )
        for result in results
    ]


def stat_rows(stats: Stats, limit: Limit | None = None) -> list[Row]:
    """Names and values of what `run` has done."""
    first = stats.time_to_first_token
    return [
        ("prompt", f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tok/s"),
        ("time to first token", "none" if first is None else f"{first:.3f} s"),
        ("decode", f"{stats.new_tokens} tokens, {stats.new_tokens_per_second:.1f} tok/s"),
        *_limit_rows(stats, limit),
        ("page hits", f"{stats.hit_rate:.1%} of {stats.page_hits + stats.page_misses}"
                      + _decoding(stats, f"{stats.decode_hit_rate:.1%}")),
        ("bytes read", f"{format_size(stats.bytes_read)} at "
                       f"{format_size(round(stats.read_bytes_per_second))}/s, "
                       f"{'past' if stats.direct_reads else 'through'} the page cache"
                       + _decoding(stats, f"{_per_token(stats)} per token")),
        ("waited for pages", _waited(stats.decode_wait_seconds, stats.decode_seconds)),
        ("cache", f"{stats.cache_slots} of {stats.num_pages} pages, "
                  f"{stats.verified_pages} checked"),
        ("context", f"{stats.context} tokens, chunks of {stats.chunk_tokens}"),
        ("experts", stats.expert_engine),
        ("backbone", stats.backbone_engine),
        *backend_rows(stats),
        *gpu_hit_rows(stats),
        ("threads", str(stats.threads)),
        ("peak memory", _memory(stats)),
        *_early_rows(stats, stats.decode_steps),
        *_lossy_rows(stats),
    ]  # fmt: skip


def _early_rows(figures: Stats | Benchmark, steps: int) -> list[Row]:
    """What was read before a router asked for it, where that was guessed. steps: tokens decoded."""
    if not steps or (figures.guess_accuracy is None and not figures.early_pages):
        return []
    early, right = figures.early_pages, figures.guess_accuracy
    used = f", {figures.early_pages_used / early:.1%} of them used" if early else ""
    accuracy = f"; {right:.1%} of the guesses right" if right is not None else ""
    return [("read early", f"{early / steps:.1f} pages per token{used}{accuracy}")]


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


def _limit_rows(stats: Stats, limit: Limit | None) -> list[Row]:
    if limit is None:
        return []
    reached = stats.new_tokens_per_second / limit.tokens_per_second
    figures = (
        f"{limit.tokens_per_second:.1f} tok/s at {_bandwidths(limit, stats.decode_bytes_read)}"
    )
    return [("limit", f"{figures}; {reached:.1%} of it reached")]


def _decoding(stats: Stats, figure: str) -> str:
    return f"; while decoding {figure}" if stats.decode_steps else ""


def _per_token(stats: Stats) -> str:
    return format_size(round(stats.decode_bytes_read / max(1, stats.decode_steps)))


def _waited(wait: float, seconds: float) -> str:
    """Of the time in which new tokens were made."""
    return f"{wait:.3f} s while decoding, {wait / seconds if seconds else 0:.1%} of that time"


def _bandwidths(limit: Benchmark | Limit, missed: float) -> str:
    """missed: bytes per token, without which storage does not matter."""
    memory = f"{format_size(round(limit.memory_bandwidth))}/s of memory"
    if limit.storage_bandwidth is None or not missed:
        return memory
    return f"{memory} and {format_size(round(limit.storage_bandwidth))}/s of storage"


def _memory(figures: Benchmark | Stats) -> str:
    budget = "no limit" if figures.budget_bytes is None else format_size(figures.budget_bytes)
    return f"{format_size(figures.peak_rss_bytes)} of {budget}{_auto(figures.auto_budget)}"


def _auto(auto: bool) -> str:
    return " (auto: what the machine had free)" if auto else ""
