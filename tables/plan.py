"""Plans and predictions as rows of text for a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..analysis.planning.locality import ASSUMED
from ..analysis.planning.plan import NOT_MEASURED, predict_run
from ..sizes import format_size

if TYPE_CHECKING:
    from ..analysis.planning.plan import ModelPlan, PlanRow
    from ..bundle.footprint import Footprint
    from ..runtime.recording.stats import Stats
    from ..targets import Target

Row = tuple[str, ...]
_TERMS = ("backbone", "attention", "expert", "wait", "overhead")


def plan_facts(plan: ModelPlan) -> list[Row]:
    """What is the same at every budget."""
    whole, parts = plan.everything, plan.precision
    memory = plan.target_memory_bytes
    hits = plan.hits_from
    if hits == ASSUMED:
        hits += "; --routes FILE replays recorded routes"
    of_gpu = plan.budget_of == "GPU"
    smallest, everything = "smallest budget", "all in memory"
    if of_gpu:
        smallest, everything = "smallest GPU memory", "all in GPU memory"
    return [
        (plan.kind, f"experts {parts.experts}, backbone {parts.backbone}, head {parts.head}, "
                    f"blocks of {parts.block_size}"),
        ("context", f"{plan.context} tokens"),
        ("CUDA and engines" if of_gpu else "process", format_size(whole.process)),
        ("backbone", format_size(whole.backbone)),
        ("KV cache", format_size(whole.kv)),
        ("workspace", format_size(whole.workspace)),
        ("pages", f"{plan.num_pages} in slots of {format_size(whole.page)}, "
                  f"{format_size(plan.num_pages * whole.page)} in all; "
                  f"{format_size(plan.token_page_bytes)} work on a token"),
        (smallest, f"{plan.smallest_budget >> 20}MiB"),
        (everything, format_size(whole.total)),
        ("target's memory", "unknown" if memory is None else format_size(memory)),
        ("page hits", hits),
        ("speed", plan.speed_from),
        *(("assumed", line) for line in plan.assumptions),
    ]  # fmt: skip


def plan_columns(plan: ModelPlan) -> list[str]:
    columns = ["GPU memory" if plan.budget_of == "GPU" else "budget", "pages", "hits"]
    if any(row.speed is not None for row in plan.rows):
        columns += ["tok/s", "limit", "memory ms", f"{plan.missing_from} ms"]
        columns += [f"{name} ms" for name in _TERMS]
        columns.append("full context")
    if any(row.prompt_tokens_per_second is not None for row in plan.rows):
        columns.append("prompt tok/s")
    return columns


def plan_table(plan: ModelPlan) -> list[Row]:
    """A row for each budget: the predicted speed, the limit and its two terms, and what the
    predicted time is made of."""
    return [_plan_row(row, plan, len(plan_columns(plan))) for row in plan.rows]


def _plan_row(row: PlanRow, plan: ModelPlan, columns: int) -> Row:
    budget = f"{row.budget_bytes / 2**20:.0f}MiB"
    if row.memory is None or row.hit_rate is None:
        cells = [budget, "too small"]
    else:
        cells = [budget, f"{row.memory.slots} of {plan.num_pages}", f"{row.hit_rate:.1%}"]
        speed = row.speed
        if speed is not None:
            seconds = [speed.limit_memory_seconds, speed.limit_storage_seconds]
            seconds += [float(getattr(speed, f"{name}_seconds")) for name in _TERMS]
            cells += [_speed(row.tokens_per_second), _speed(row.limit_tokens_per_second)]
            cells += [_milliseconds(value) for value in seconds]
            cells.append(_speed(row.full_context_tokens_per_second))
            if row.prompt_tokens_per_second is not None:
                cells.append(_speed(row.prompt_tokens_per_second))
    return (*cells, *[""] * (columns - len(cells)))


def _milliseconds(seconds: float) -> str:
    """With a digit behind the point, or with two that count where it is less than one."""
    value = 1000 * seconds
    return f"{value:.1f}" if value >= 1 or not value else f"{value:.2g}"


def _speed(tokens: float | None) -> str:
    return "" if tokens is None else f"{tokens:.1f}" if tokens >= 1 else f"{tokens:.3f}"


def prediction_rows(stats: Stats, footprint: Footprint, target: Target | None) -> list[Row]:
    """What new tokens should have taken, beside what `stats` says that they took."""
    if not stats.decode_steps:
        return []
    estimate = predict_run(stats, footprint, target) if target is not None else None
    if target is None or estimate is None:
        return [("predicted", NOT_MEASURED)]
    if target.kind == "gpu" and stats.backend == "cpu":
        return [("predicted", f"nothing: {target.name} is a GPU, and the CPU ran this")]
    speed = f"{estimate.tokens_per_second:.1f} tok/s at these page hits"
    return [("predicted", f"{speed}, by target {target.name}")]
