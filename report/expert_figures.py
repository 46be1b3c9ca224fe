"""Heat maps of a report: how experts are used, how they are stored, how far off they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..bundle.manifest import Manifest
from ..bundle.pages import PageFormat
from ..calibration.record import CalibrationRecord
from .facts import LayerError, bits_per_weight, format_name, formats_of
from .parts import Figure, Key, Table
from .svg import STEPS, Axis, Cell, Scale, Series, heat_map, line_chart, nice_ticks

_UNUSED = Key("none", "none", "no token")


def usage_figure(record: CalibrationRecord) -> Figure:
    """Tokens of each expert."""
    highest = max((int(item.usage.max()) for item in record.layers), default=1)
    used = [int(n) for item in record.layers for n in item.usage if n]
    scale = Scale(min(used, default=1), max(2, highest), log=True)
    rows = []
    for item in record.layers:
        tokens = len(item.experts)
        rows.append((item.layer, [
            Cell(
                scale.step(float(count)) if count else None,
                f"layer {item.layer}, expert {expert}: {count:,} tokens ({count / tokens:.2%})",
            )
            for expert, count in enumerate(item.usage.tolist())
        ]))  # fmt: skip
    unused = sum(len(item.unused) for item in record.layers)
    return Figure(
        "Tokens of each expert",
        "How many tokens were routed to each expert, on a logarithmic scale.",
        heat_map(
            "Tokens of each expert",
            f"{len(rows)} layers; from {scale.low:,} to {highest:,} tokens; "
            f"{unused} experts unused",
            rows, "expert",
        ),
        keys=(_UNUSED,) if unused else (),
        scale=(f"{scale.low:,}", f"{highest:,} tokens"),
        table=_matrix("tokens of each expert", [
            (item.layer, [f"{count:,}" for count in item.usage.tolist()]) for item in record.layers
        ]),
    )  # fmt: skip


def weight_figure(record: CalibrationRecord) -> Figure:
    """Each expert's share of what its layer's router gave out."""
    shares = [item.weight_sums / max(item.weight_sums.sum(), 1e-30) for item in record.layers]
    used = np.concatenate([s[i.usage > 0] for s, i in zip(shares, record.layers, strict=True)])
    positive = used[used > 0]
    # A few experts that are next to unused would leave the others no colours.
    low = float(np.quantile(positive, 0.01)) if positive.size else 0.5
    high = float(positive.max()) if positive.size else 1.0
    scale = Scale(low, high, log=True)
    rows = []
    for item, share in zip(record.layers, shares, strict=True):
        cells = []
        for expert, (mass, count) in enumerate(zip(share, item.usage.tolist(), strict=True)):
            text = f"layer {item.layer}, expert {expert}: {mass:.2%} of the weight"
            if count:
                text += f", {item.weight_sums[expert] / count:.3f} on average"
            cells.append(Cell(scale.step(max(mass, low)) if count else None, text))
        rows.append((item.layer, cells))
    return Figure(
        "Router weight of each expert",
        "Each expert's share of the weights that its layer's router gave to all tokens, on a "
        "logarithmic scale.",
        heat_map(
            "Router weight of each expert",
            f"{len(rows)} layers; at most {100 * high:.3g}% of a layer's weight", rows, "expert",
        ),
        keys=(_UNUSED,) if any(item.unused for item in record.layers) else (),
        scale=(f"up to {100 * low:.2g}%", f"{100 * high:.3g}% of the layer's"),
        table=_matrix("share of the router's weight, in %", [
            (item.layer, [f"{100 * mass:.2f}" for mass in share])
            for item, share in zip(record.layers, shares, strict=True)
        ]),
    )  # fmt: skip


def foreseen_figure(record: CalibrationRecord) -> Figure | None:
    """None where no layer was foreseen."""
    points = [(float(i.layer), i.foreseen) for i in record.layers if i.foreseen is not None]
    if not points:
        return None
    last = max(layer for layer, _ in points)
    mean = sum(share for _, share in points) / len(points)
    return Figure(
        "Routing foreseen a layer early",
        "The share of a layer's choices that its router already names from the residual stream "
        f"before the previous layer's experts have run: {mean:.1%} on average. It is what reading "
        "pages early goes by.",
        line_chart(
            "Routing foreseen a layer early", f"{len(points)} layers, {mean:.1%} on average",
            _layer_axis(points[0][0], last),
            Axis("choices foreseen", [0, 0.2, 0.4, 0.6, 0.8, 1.0], lambda v: f"{v:.0%}"),
            [Series("foreseen", points)],
        ),
        table=Table(
            "routing foreseen", ["layer", "foreseen"],
            [(f"{layer:.0f}", f"{share:.1%}") for layer, share in points], long=True,
        ),
    )  # fmt: skip


def bits_figure(manifest: Manifest) -> Figure | None:
    """None where nothing is paged."""
    pages = {item.layer: formats_of(item) for item in manifest.experts}
    bits = _formats(pages.values())
    if not bits:
        return None
    names = list(bits)
    spread = max(1, len(names) - 1)
    steps = {
        name: round((STEPS - 1) * number / spread) if len(names) > 1 else STEPS // 2
        for number, name in enumerate(names)
    }
    rows = [
        (layer, [
            Cell(
                steps[format_name(page)],
                f"layer {layer}, expert {expert}: {format_name(page)}, "
                f"{bits_per_weight(page):.3g} bits",
            )
            for expert, page in enumerate(found)
        ])
        for layer, found in pages.items()
    ]  # fmt: skip
    mean = average_bits(manifest)
    return Figure(
        "Bits of each expert",
        f"How each expert is stored; {mean:.3f} bits per weight on average, block scales counted.",
        heat_map("Bits of each expert", f"{mean:.3f} bits per weight on average", rows, "expert"),
        keys=[Key(f"q{steps[n]}", "box", f"{n} ({bits[n]:.4g} bits)") for n in names],
        table=Table(
            "formats", ["format", "bits per weight", "experts"],
            [
                (n, f"{bits[n]:.4g}",
                 f"{sum(format_name(p) == n for found in pages.values() for p in found):,}")
                for n in names
            ],
        ),
    )  # fmt: skip


def average_bits(manifest: Manifest) -> float:
    """Per weight of all experts; 0 where there are none."""
    stored = weights = 0.0
    for layer in manifest.experts:
        for page in formats_of(layer):
            size = 3.0 * page.hidden_size * page.intermediate_size
            stored += size * bits_per_weight(page)
            weights += size
    return stored / weights if weights else 0.0


def _formats(layers: Iterable[Sequence[PageFormat]]) -> dict[str, float]:
    found = {format_name(page): bits_per_weight(page) for pages in layers for page in set(pages)}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def error_figures(errors: Sequence[LayerError]) -> list[Figure]:
    """By layer, and by expert; none where nothing was measured."""
    known = [value for item in errors for value in item.experts if value is not None and value > 0]
    if not known:
        return []
    scale = Scale(min(known), max(known), log=True)
    rows = [
        (item.layer, [
            Cell(
                None if value is None else scale.step(max(value, scale.low)),
                f"layer {item.layer}, expert {expert}: "
                + ("not measured" if value is None else f"relative error {value:.4f}"),
            )
            for expert, value in enumerate(item.experts)
        ])
        for item in errors
    ]  # fmt: skip
    lacking = any(value is None for item in errors for value in item.experts)
    by_expert = Figure(
        "Error of each expert",
        "How far each expert's output is from the checkpoint's, relative to it, on a logarithmic "
        "scale.",
        heat_map("Error of each expert",
                 f"relative errors from {scale.low:.3g} to {scale.high:.3g}", rows, "expert"),
        keys=(Key("none", "none", "not measured"),) if lacking else (),
        scale=(f"{scale.low:.3g}", f"{scale.high:.3g}"),
        table=_matrix("relative error of each expert", [
            (item.layer, ["" if v is None else f"{v:.4f}" for v in item.experts])
            for item in errors
        ]),
    )  # fmt: skip
    return [_layer_errors(errors), by_expert]


def _layer_errors(errors: Sequence[LayerError]) -> Figure:
    mean, worst, hidden, rows = [], [], [], []
    for item in errors:
        found = [value for value in item.experts if value is not None]
        cells = [str(item.layer), "", "", ""]
        if found:
            mean.append((float(item.layer), sum(found) / len(found)))
            worst.append((float(item.layer), max(found)))
            cells[1:3] = f"{mean[-1][1]:.4f}", f"{worst[-1][1]:.4f}"
        if item.hidden is not None:
            hidden.append((float(item.layer), item.hidden))
            cells[3] = f"{item.hidden:.4f}"
        rows.append(cells)
    series = [Series("experts, mean", mean), Series("worst expert", worst, dashed=True)]
    if hidden:
        series.append(Series("hidden state after the layer", hidden))
    highest = max(value for item in series for _, value in item.points)
    return Figure(
        "Error of each layer",
        "Relative to the checkpoint's numbers; the hidden state's error is what all layers up to "
        "there have added up to.",
        line_chart(
            "Error of each layer", f"{len(errors)} layers, at most {highest:.3g}",
            _layer_axis(errors[0].layer, errors[-1].layer),
            Axis("relative error", nice_ticks(highest), lambda v: f"{v:.3g}"), series,
        ),
        keys=[Key(f"s{n}" + (" dashed" if item.dashed else ""), "line", item.name)
              for n, item in enumerate(series)],
        table=Table("errors by layer", ["layer", "experts, mean", "worst expert", "hidden state"],
                    rows, long=True),
    )  # fmt: skip


def _layer_axis(first: float, last: float) -> Axis:
    """Whole layers alone, at most about 8 of them named."""
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if (last - first) / n <= 8)
    begin, end = math.floor(first / step), max(math.ceil(last / step), math.floor(first / step) + 1)
    return Axis("layer", [n * step for n in range(begin, end + 1)], lambda v: f"{v:.0f}")


def _matrix(title: str, rows: Sequence[tuple[int, Sequence[str]]]) -> Table:
    """A row for each layer, a column for each expert."""
    count = max((len(cells) for _, cells in rows), default=0)
    return Table(
        title, ["layer", *map(str, range(count))],
        [[str(layer), *cells, *[""] * (count - len(cells))] for layer, cells in rows], long=True,
    )  # fmt: skip
