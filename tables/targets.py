"""Devices as rows of text for a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..bundle.gpu_graphs import capability_name
from ..sizes import format_size

if TYPE_CHECKING:
    from ..targets import Target

Row = tuple[str, ...]
TARGET_COLUMNS = ["target", "memory", "bandwidth", "capability", "toolchain"]


def target_table(targets: Sequence[Target]) -> list[Row]:
    """A row for each device."""
    return [
        (
            target.name,
            "" if target.memory_bytes is None else format_size(target.memory_bytes),
            "" if target.memory_bandwidth is None else _decimal(target.memory_bandwidth),
            _engines_for(target),
            target.toolchain,
        )
        for target in targets
    ]


def target_rows(target: Target) -> list[Row]:
    """Every fact of a device, and where it is from; then what it cannot do."""
    rows: list[Row] = []
    for name, value in vars(target).items():
        source = target.sources.get(name, "")
        if name in ("sources", "limits") or (value in (None, ()) and not source):
            continue
        rows.append((name.replace("_", " "), _figure(name, value), source))
        if name == "compute_capability":
            rows.append(("engines for", _engines_for(target), ""))
    return rows + [("limit", limit, "") for limit in target.limits]


def _engines_for(target: Target) -> str:
    """Empty for a CPU."""
    capability = target.compute_capability
    return "" if capability is None else capability_name(capability)


def _decimal(bandwidth: float) -> str:
    """As data sheets write it: in powers of 1000."""
    return f"{bandwidth / 1e9:,.1f} GB/s"


def _figure(name: str, value: object) -> str:
    if value is None:
        return "none" if name == "link" else "unknown"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    if name.endswith(("_bandwidth", "_rate")) and isinstance(value, (int, float)):
        return _decimal(value)
    if name.endswith("_seconds") and isinstance(value, (int, float)):
        return f"{1000 * value:.3f} ms"
    return str(value)
