"""The sections of a report's page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..analysis.planning.plan import ModelPlan
from ..calibration.record import CalibrationRecord, LayerRecord
from ..sizes import format_size
from ..tables.plan import plan_columns, plan_table
from .expert_figures import (
    average_bits,
    bits_figure,
    error_figures,
    foreseen_figure,
    usage_figure,
    weight_figure,
)
from .facts import CacheCurve, Report, bits_per_weight, formats_of
from .parts import Figure, Key, Section, Table
from .svg import Axis, Series, line_chart, nice_ticks

_ROUTES = "pocketmoe calibrate CHECKPOINT --data TEXT -o CAL"
_HAS_RECORD = "pocketmoe report BUNDLE --calibration CAL"


def key_figures(report: Report) -> list[tuple[str, str]]:
    """Values and what they are, to begin with."""
    figures = []
    record, manifest, cache = report.record, report.manifest, report.cache
    if record is not None and record.layers:
        layers = record.layers
        figures += [
            (_count([len(i.usage) for i in layers]), f"experts in each of {len(layers)} layers"),
            (_count([item.experts.shape[1] for item in layers]), "of them work on a token"),
            (f"{record.ids.size:,}", "calibration tokens"),
            (f"{sum(len(item.unused) for item in layers):,}", "experts that no token went to"),
        ]  # fmt: skip
    if manifest is not None:
        if record is None:
            figures.append(
                (f"{manifest.num_pages:,}", f"experts in {len(manifest.experts)} layers")
            )
        figures += [
            (format_size(manifest.total_bytes), "the bundle's files"),
            (f"{average_bits(manifest):.3g}", "bits per weight of the experts"),
        ]
    if cache is not None:
        half = next(p for p in cache.points if 2 * p.slots >= cache.num_pages)
        share = half.slots / cache.num_pages
        figures.append((f"{half.runtime:.1%}", f"page hits with {share:.0%} of the pages cached"))
    return figures


def sections(report: Report) -> list[Section]:
    return [
        _usage(report.record),
        _stored(report),
        _errors(report),
        _cache(report.cache),
        _speed(report),
        _tables(report),
    ]


def _usage(record: CalibrationRecord | None) -> Section:
    heading = "How experts are used"
    if record is None:
        return Section("usage", heading, missing=f"A calibration record has it: {_HAS_RECORD}")
    if not record.layers:
        return Section("usage", heading, missing="The model has no experts in pages.")
    figures = [usage_figure(record), weight_figure(record), foreseen_figure(record)]
    unused = [
        (str(item.layer), f"{len(item.unused):,}", _ranges(item.unused))
        for item in record.layers
        if item.unused
    ]
    tables = [Table("experts that no token went to", ["layer", "count", "experts"], unused)]
    return Section(
        "usage", heading, figures=[f for f in figures if f is not None],
        tables=tables if unused else (),
    )  # fmt: skip


def _stored(report: Report) -> Section:
    heading = "How experts are stored"
    figure = bits_figure(report.manifest) if report.manifest is not None else None
    if figure is None:
        missing = f"A bundle has it: {_HAS_RECORD}"
        return Section("bits", heading, missing=missing)
    return Section("bits", heading, figures=[figure])


def _errors(report: Report) -> Section:
    figures = error_figures(report.errors)
    missing = "" if figures else (
        "A bundle that was compiled with a calibration has it: pocketmoe compile CHECKPOINT "
        "--target T --calibration CAL -o BUNDLE"
    )  # fmt: skip
    return Section("errors", "What quantizing costs", figures=figures, missing=missing)


def _cache(cache: CacheCurve | None) -> Section:
    heading = "What a cache of pages would hit"
    if cache is None:
        return Section("cache", heading, missing=f"Recorded routes tell: {_ROUTES}")
    total = cache.num_pages
    names = ("runtime's policy", "optimum (Belady)", "least recently used", "even routing")
    values = [(p.runtime, p.optimum, p.lru, p.even) for p in cache.points]
    series = [
        Series(
            name,
            [
                (p.slots / total, value[place])
                for p, value in zip(cache.points, values, strict=True)
            ],
            dashed=place > 0,
        )
        for place, name in enumerate(names)
    ]
    pages = "int4 pages, as nothing is compiled yet" if cache.assumed else "slots for any page"
    figure = Figure(
        "Hit rate against cache size",
        f"Page requests that a cache serves while decoding: {cache.note}. No policy can beat the "
        "optimum, which knows what comes. Even routing is what a model without locality would get.",
        line_chart(
            "Hit rate against cache size",
            f"{values[0][0]:.1%} at {cache.points[0].slots} pages; see the table",
            Axis(f"share of {total:,} pages in the cache", [0, 0.2, 0.4, 0.6, 0.8, 1.0],
                 lambda v: f"{v:.0%}"),
            Axis("hit rate", [0, 0.2, 0.4, 0.6, 0.8, 1.0], lambda v: f"{v:.0%}"),
            series,
            mark=(cache.token_slots / total, "one token's pages"),
        ),
        keys=_keys(series),
        table=Table(
            f"hit rates; sizes are of {pages}, {format_size(cache.page_bytes)} each",
            ["pages", "share", "size", *names],
            [
                (f"{p.slots:,}", f"{p.slots / total:.0%}", format_size(p.slots * cache.page_bytes),
                 *(f"{value:.1%}" for value in rates))
                for p, rates in zip(cache.points, values, strict=True)
            ],
        ),
    )  # fmt: skip
    return Section("cache", heading, figures=[figure])


def _speed(report: Report) -> Section:
    heading = "How fast it will be"
    plan = report.plan
    if plan is None:
        if report.manifest is None:
            missing = f"A bundle has what it takes: {_HAS_RECORD} --target NAME"
        else:
            missing = (
                f"No prediction: {report.no_plan}. 'pocketmoe targets --measure' measures this "
                "machine; --target NAME takes another one."
            )
        return Section("speed", heading, missing=missing)
    table = Table("by budget; ms are of one token", plan_columns(plan), plan_table(plan))
    figure = _speed_figure(plan)
    text = f"Context {plan.context:,} tokens; page hits {plan.hits_from}."
    notes = f" Assumed: {'; '.join(plan.assumptions)}." if plan.assumptions else ""
    return Section(
        "speed", heading, text + notes, figures=[] if figure is None else [figure], tables=[table]
    )


def _speed_figure(plan: ModelPlan) -> Figure | None:
    rows = [
        (float(row.budget_bytes), row.tokens_per_second, row.limit_tokens_per_second)
        for row in plan.rows
        if row.tokens_per_second is not None and row.limit_tokens_per_second is not None
    ]
    if len(rows) < 2:
        return None
    series = [
        Series("predicted", [(budget, speed) for budget, speed, _ in rows]),
        Series("limit of memory and storage", [(b, limit) for b, _, limit in rows], dashed=True),
    ]
    unit, name = (2**30, "GiB") if rows[-1][0] >= 4 * 2**30 else (2**20, "MiB")
    ticks = [tick * unit for tick in nice_ticks(rows[-1][0] / unit, 5, rows[0][0] / unit)]
    what = "GPU memory" if plan.budget_of == "GPU" else "memory budget"
    highest = max(limit for _, _, limit in rows)
    return Figure(
        f"Predicted speed against {what}",
        f"Decoding on target {plan.target}, after a short prompt, beside what its memory and "
        "storage allow.",
        line_chart(
            f"Predicted speed against {what}",
            f"from {rows[0][1]:.3g} to {rows[-1][1]:.3g} tokens per second; see the table",
            Axis(f"{what} [{name}]", ticks, lambda v: f"{v / unit:.4g}"),
            Axis("tokens per second", nice_ticks(highest), lambda v: f"{v:.4g}"),
            series,
        ),
        keys=_keys(series),
    )  # fmt: skip


def _tables(report: Report) -> Section:
    record, manifest = report.record, report.manifest
    tables = []
    if record is not None:
        tables.append(Table("calibration", ["", "value"], _provenance(record)))
    if manifest is not None:
        parts = manifest.precision
        tables.append(Table("bundle", ["", "value"], [
            ("path", report.path),
            ("family", manifest.spec.family),
            ("target", manifest.target),
            ("precision", f"experts {parts.experts}, backbone {parts.backbone}, head {parts.head}, "
                          f"blocks of {parts.block_size}"),
            ("files", f"{len(manifest.files):,}, {format_size(manifest.total_bytes)}"),
            ("backbone", format_size(manifest.backbone_bytes)),
            ("pages", f"{manifest.num_pages:,}, {format_size(manifest.expert_bytes)} in all"),
            ("lossy choices", ", ".join(manifest.lossy) or "none"),
            ("made with", ", ".join(f"{n} {v}" for n, v in manifest.toolchain.items())),
        ]))  # fmt: skip
    tables.append(_layers(report))
    return Section("tables", "Tables", tables=tables)


def _provenance(record: CalibrationRecord) -> Sequence[tuple[str, str]]:
    found = record.provenance
    return [
        ("family", found.family),
        ("text", found.source),
        ("tokens", f"{found.tokens:,}: {record.ids.shape[0]:,} sequences of {found.seq_len:,}"),
        ("seed", str(found.seed)),
        ("statistics of", "all tokens, for every expert" if found.all_experts
                          else "each expert's own tokens"),
        ("hash of the model", found.model),
        ("hash of the tokenizer", found.tokenizer or "none"),
        ("hash of the tokens", found.text),
        ("made with", f"pocketmoe {found.pocketmoe}"),
    ]  # fmt: skip


def _layers(report: Report) -> Table:
    """A row for each paged layer, of what is known."""
    rows: dict[int, list[str]] = {}
    columns = ["layer"]
    if report.record is not None:
        columns += "experts|unused|rarest|median|busiest|as if even|foreseen".split("|")
        for item in report.record.layers:
            rows[item.layer] = [str(item.layer), *_layer_cells(item)]
    if report.manifest is not None:
        columns += ["bits per weight", "page"]
        for pages in report.manifest.experts:
            one = formats_of(pages)
            bits = sum(map(bits_per_weight, one)) / max(1, len(one))  # experts of one size
            cells = [f"{bits:.3f}", format_size(max(page.nbytes for page in one))]
            rows.setdefault(pages.layer, [str(pages.layer)]).extend(cells)
    title = "layers"
    if report.record is not None:
        title += "; rarest, median and busiest expert in tokens; as if even: so many experts, "
        title += "equally used, would be as uneven"
    return Table(title, columns, [rows[layer] for layer in sorted(rows)])


def _layer_cells(item: LayerRecord) -> list[str]:
    shares = item.usage / max(1, item.usage.sum())
    present = shares[shares > 0]
    even = math.exp(-float((present * np.log(present)).sum())) if present.size else 0.0
    busiest = int(item.usage.argmax())
    return [
        str(len(item.usage)), str(len(item.unused)), f"{int(item.usage.min()):,}",
        f"{float(np.median(item.usage)):,.0f}", f"{int(item.usage[busiest]):,} (expert {busiest})",
        f"{even:.1f}", "" if item.foreseen is None else f"{item.foreseen:.1%}",
    ]  # fmt: skip


def _keys(series: Sequence[Series]) -> list[Key]:
    return [
        Key(f"s{number}" + (" dashed" if item.dashed else ""), "line", item.name)
        for number, item in enumerate(series)
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as `1, 4 to 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)


def _count(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
