"""Pictures for a page: heat maps and line charts as SVG, coloured by the page's style sheet.

Everything that is text goes through markupsafe. Classes: `q0` to `q15` are the steps of a scale,
`s0` to `s3` the series of a chart, `none` a cell that is marked as empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

STEPS = 16
# viridis: equal steps look equal, to the colour-blind and in grey too.
_VIRIDIS = ("440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725").split()
_AXIS = 58  # left of a heat map or chart, for its labels
_FOOT = 44  # below


def scale_colours() -> list[str]:
    """`STEPS` colours from dark to light."""
    anchors = [[int(text[i : i + 2], 16) for i in (0, 2, 4)] for text in _VIRIDIS]
    colours = []
    for step in range(STEPS):
        place = step / (STEPS - 1) * (len(anchors) - 1)
        low = min(int(place), len(anchors) - 2)
        share = place - low
        pairs = zip(anchors[low], anchors[low + 1], strict=True)
        colours.append("#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs))
    return colours


@dataclass(frozen=True)
class Cell:
    """step: on the scale; None for an empty one. text: what a pointer shows."""

    step: int | None
    text: str


@dataclass(frozen=True)
class Picture:
    """width: in CSS pixels, that it looks best at; wide: is scrolled rather than made smaller."""

    svg: Markup
    width: int
    wide: bool


@dataclass(frozen=True)
class Scale:
    """Values to steps, evenly or by their logarithm."""

    low: float
    high: float
    log: bool

    def step(self, value: float) -> int:
        return min(STEPS - 1, max(0, int(self._place(value) * STEPS)))

    def value(self, share: float) -> float:
        """At this share of its length."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

    def _place(self, value: float) -> float:
        if self.high <= self.low:
            return 1.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def heat_map(
    title: str, description: str, rows: Sequence[tuple[int, Sequence[Cell]]], columns: str
) -> Picture:
    """rows: the number of a layer, and its cells. columns: what they are."""
    count = max((len(cells) for _, cells in rows), default=1)
    across = max(5.0, min(30.0, math.floor(1000 / count)))
    down = max(8.0, min(22.0, math.floor(480 / max(1, len(rows)))))
    gap = 1 if across >= 7 else 0.5
    width, height = round(_AXIS + across * count + 14), round(8 + down * len(rows) + _FOOT)
    parts = []
    every = math.ceil(15 / down)
    for number, (layer, cells) in enumerate(rows):
        top = 8 + number * down
        if number % every == 0:
            parts.append(_text(_AXIS - 7, top + down / 2 + 4, str(layer), "end"))
        parts += [
            _cell(cell, _AXIS + place * across, top, across - gap, down - gap)
            for place, cell in enumerate(cells)
        ]
    foot = 8 + down * len(rows)
    spacing = next((n for n in (1, 2, 4, 8, 16, 32, 64) if n * across >= 26), 128)
    for place in range(0, count, spacing):
        parts.append(_text(_AXIS + (place + 0.5) * across, foot + 16, str(place), "middle"))
    parts.append(_text(_AXIS + across * count / 2, foot + 36, columns, "middle", "axis"))
    parts.append(_sideways(14, 8 + down * len(rows) / 2, "layer"))
    return Picture(_svg(title, description, width, height, parts), width, True)


def _cell(cell: Cell, left: float, top: float, width: float, height: float) -> Markup:
    box = f"M{left:g} {top:g}h{width:g}v{height:g}h-{width:g}z"
    if cell.step is not None:
        style = f"q{cell.step}"
    else:
        style = "none"
        box += f"l{width:g} {height:g}m0 -{height:g}l-{width:g} {height:g}"
    return Markup('<path class="{}" d="{}"><title>{}</title></path>').format(style, box, cell.text)


@dataclass(frozen=True)
class Series:
    """points: x and y, by rising x. dashed: what is no measurement of this runtime."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """ticks: at least two; the axis goes from the first to the last."""

    label: str
    ticks: Sequence[float]
    show: Callable[[float], str]


def line_chart(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    mark: tuple[float, str] | None = None,
) -> Picture:
    """mark: an x that is pointed out, and its name."""
    width, height, right, top = 600, 360, 30, 36
    foot = height - _FOOT - 6
    left = _AXIS + 12

    def across(value: float) -> float:
        low, high = x.ticks[0], x.ticks[-1]
        return left + (value - low) / (high - low) * (width - right - left)

    def up(value: float) -> float:
        low, high = y.ticks[0], y.ticks[-1]
        return foot - (value - low) / (high - low) * (foot - top)

    parts: list[Markup] = []
    for tick in y.ticks:
        parts.append(_line("grid", left, up(tick), width - right, up(tick)))
        parts.append(_text(left - 9, up(tick) + 5, y.show(tick), "end"))
    for tick in x.ticks:
        parts.append(_line("tick", across(tick), foot, across(tick), foot + 5))
        parts.append(_text(across(tick), foot + 21, x.show(tick), "middle"))
    parts.append(_line("base", left, foot, width - right, foot))
    if mark is not None:
        place = across(mark[0])
        parts.append(_line("mark", place, top, place, foot))
        parts.append(_text(place + 6, top + 12, mark[1], "start", "note"))
    for number, item in enumerate(series):
        parts += _series(number, item, [(across(a), up(b)) for a, b in item.points], x, y)
    parts.append(_text((left + width - right) / 2, height - 6, x.label, "middle", "axis"))
    # Above the axis: beside it there is no room where small screens have it in larger letters.
    parts.append(_text(4, 16, y.label, "start", "axis"))
    return Picture(_svg(title, description, width, height, parts), width, False)


def _series(
    number: int, item: Series, places: list[tuple[float, float]], x: Axis, y: Axis
) -> list[Markup]:
    style = f"s{number}" + (" dashed" if item.dashed else "")
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = [Markup('<path class="line {}" d="{}"/>').format(style, path)]
    for (a, b), (value, height) in zip(places, item.points, strict=True):
        text = f"{item.name}: {y.show(height)} at {x.show(value)}"
        parts.append(
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>')
            .format(style, f"{a:.1f}", f"{b:.1f}", text)
        )  # fmt: skip
    return parts


def nice_ticks(high: float, count: int = 5, low: float = 0.0) -> list[float]:
    """From at most `low` to at least `high` in steps of 1, 2, 2.5 or 5."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def _svg(title: str, description: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    head = Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>'
    ).format(width, height, f"{title}. {description}", title, description)
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", anchor,
        Markup(' class="{}"').format(style) if style else "", escape(text),
    )  # fmt: skip


def _sideways(x: float, y: float, text: str) -> Markup:
    return Markup(
        '<text class="axis" text-anchor="middle" transform="translate({} {}) rotate(-90)">{}</text>'
    ).format(f"{x:.1f}", f"{y:.1f}", text)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(
        style, *(f"{value:.1f}" for value in (x1, y1, x2, y2))
    )
