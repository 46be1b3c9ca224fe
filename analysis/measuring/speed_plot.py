"""A picture of `bench` at several memory budgets: speed, and the limit that the machine sets."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import atomic_file
from ...sizes import format_size
from ..inspection.inspect import BundleFacts
from .benchmark import Benchmark

FORMATS = ("png", "svg", "pdf")
_MEASURED, _LIMIT = "#0b5fa5", "#c1440e"


def check_plot(path: Path) -> None:
    """Whether a picture can be made there, before what it shows is measured.

    Raises:
        InputError: its name has no known ending, or its folder cannot be written to.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise InputError(f"{path} must end in one of .{', .'.join(FORMATS)}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: {path.parent} is no folder to write to")
    import matplotlib.figure  # noqa: F401


def draw_speed(path: Path, facts: BundleFacts, results: Sequence[Benchmark]) -> None:
    """Writes the picture beside its place and renames it. results: by rising budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    unit, name = (1 << 30, "GiB") if _budget(results[-1]) >= 4 << 30 else (1 << 20, "MiB")
    budgets = [_budget(result) / unit for result in results]
    speeds = [result.decode_tokens_per_second for result in results]
    limits = [result.limit_tokens_per_second for result in results]
    axes.plot(
        budgets, limits, "--", color=_LIMIT, marker="_", markersize=9,
        label="limit: a token's weights at memory bandwidth,\n"
        "or its missed pages at storage bandwidth",
    )  # fmt: skip
    axes.plot(budgets, speeds, color=_MEASURED, marker="o", label="measured, with page hits")
    for budget, speed, result in zip(budgets, speeds, results, strict=True):
        text = f"{speed:.3g} tok/s\n{result.decode_hit_rate:.0%} hits"
        axes.annotate(
            text, (budget, speed), xytext=(0, -9), textcoords="offset points", ha="center",
            va="top", fontsize=8.5, color=_MEASURED,
        )  # fmt: skip
    _frame(axes, budgets, [*speeds, *limits])
    axes.set_xlabel(f"memory budget of the whole process [{name}]")
    axes.set_ylabel("decoding [tokens per second]")
    figure.suptitle(_model(facts, results[0]), fontsize=11.5, fontweight="bold")
    axes.set_title(_machine(results), fontsize=8.5, color="#444444")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix.lower().lstrip("."))


def _frame(axes: Any, budgets: Sequence[float], speeds: Sequence[float]) -> None:
    """A scale on which equal distances are equal ratios, so that the share of the limit is seen at
    any speed; with room for the labels below the points and for the legend above them."""
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    width = (budgets[-1] - budgets[0]) or budgets[0]
    axes.set_xlim(budgets[0] - 0.09 * width, budgets[-1] + 0.09 * width)
    low, high = min(speeds), max(speeds)
    room = (2 * high / low) ** 0.2
    axes.set_yscale("log")
    axes.set_ylim(low / room / 1.15, high * room * 1.15)
    axes.yaxis.set_major_locator(
        FixedLocator([step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)])
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _budget(result: Benchmark) -> int:
    assert result.budget_bytes is not None
    return result.budget_bytes


def _model(facts: BundleFacts, result: Benchmark) -> str:
    model, precision = facts.model, facts.precision
    experts = f"experts {precision.experts}, {format_size(facts.expert_bytes)}"
    lossy = f"; lossy: {', '.join(result.lossy)}" if result.lossy else ""
    billions = f"{model.parameters_total / 1e9:.2g} B parameters"
    return f"{Path(result.bundle).name} ({model.family}, {billions}, {experts}{lossy})"


def _machine(results: Sequence[Benchmark]) -> str:
    one = results[0]
    memory = _range([result.memory_bandwidth for result in results])
    storage = _range([result.storage_bandwidth or 0.0 for result in results])
    return (
        f"{_processor()}, {one.threads} threads, experts: {one.expert_engine}; "
        f"memory {memory}, storage {storage}\n"
        f"{one.new_tokens} new tokens after a prompt of {one.prompt_tokens} ({one.prompt}), "
        "each point in a process of its own, from a cold cache"
    )


def _range(bandwidths: Sequence[float]) -> str:
    """From the lowest to the highest of the runs."""
    known = [bandwidth for bandwidth in bandwidths if bandwidth]
    if not known:
        return "not read"
    low, high = min(known) / (1 << 30), max(known) / (1 << 30)
    return f"{low:.3g}–{high:.3g} GiB/s" if f"{low:.3g}" != f"{high:.3g}" else f"{high:.3g} GiB/s"


def _processor() -> str:
    """As the system calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
