"""The rows of `eval`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..analysis.evaluation.intervals import Interval
    from ..analysis.evaluation.scores import Evaluation

Row = tuple[str, ...]


def _plain(value: float) -> str:
    return f"{value:,.4f}" if value < 1e6 else f"{value:.4g}"


def _small(value: float) -> str:
    return f"{value:.2e}"


def _share(value: float) -> str:
    return f"{value:.2%}"


def _change(value: float) -> str:
    """Of a ratio."""
    return f"{value - 1:+.2%}"


_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("perplexity", "perplexity", _plain),
    ("reference_perplexity", "perplexity, checkpoint", _plain),
    ("perplexity_ratio", "perplexity, change", _change),
    ("kl_mean", "KL divergence, mean", _small),
    ("kl_p99", "KL divergence, 99 %", _small),
    ("top1_agreement", "top-1 agreement", _share),
    ("changed_experts", "changed expert choices", _share),
)
LAYER_COLUMNS = ("layer", "error of the experts' input", "changed expert choices")


def evaluation_rows(result: Evaluation) -> list[Row]:
    """Names, values and intervals."""
    count = f"{result.tokens:,} scored, in {result.windows:,} windows of {result.window}"
    rows: list[Row] = [("tokens", count, "")]
    for name, title, write in _FIGURES:
        value: float | None = getattr(result, name)
        if value is not None:
            rows.append((title, write(value), _between(result.intervals.get(name), write)))
    if result.intervals:
        rule = result.bootstrap
        how = f"{rule.resamples:,} bootstrap samples of {rule.blocks}, seed {rule.seed}"
        rows.append((f"intervals, {rule.confidence:.0%}", how, ""))
    else:
        rows.append(("intervals", "none: one window alone; give a longer text", ""))
    if result.lossy:
        rows.append(("lossy", ", ".join(result.lossy), ""))
    return rows


def layer_rows(result: Evaluation) -> list[Row]:
    return [
        (
            str(item.layer), _share(item.input_error),
            "" if item.changed_experts is None else _share(item.changed_experts),
        )
        for item in result.layers
    ]  # fmt: skip


def _between(interval: Interval | None, write: Callable[[float], str]) -> str:
    return f"{write(interval[0])} to {write(interval[1])}" if interval is not None else ""
