"""Charts without scripts or fonts: intervals as positioned boxes, curves as SVG, matrices as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from dreamset.metrics.verdict import points
from dreamset.report.figures import number, point_interval
from dreamset.report.markup import fill
from dreamset.report.planes import WIDE, Axis, Plane, placed, plain, round_ticks, rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dreamset.metrics.gains import Gain

# The mark of each kind of training images, in every chart.
KINDS: Final = (
    ("hollow", "synthetic images alone"),
    ("full", "with the real shots"),
    ("strong", "with the real shots, all strongly augmented"),
)
_APART: Final = 7.0  # between series at the same x
_DASHES: Final = 5  # patterns in style.css


@dataclass(frozen=True)
class Bar:
    """A row of an interval chart: an estimate with the ends of its interval, in the chart's unit.

    ``aside`` follows the label, and ``ends`` follows the value.
    """

    label: str
    low: float
    middle: float
    high: float
    value: str
    style: str = ""
    aside: str = ""
    ends: str = ""


def gain_bar(gain: Gain, label: str, style: str, outcome: str | None = None) -> Bar:
    """Return the row of a difference, in percentage points; its interval decides the outcome where none is given."""
    low, middle, high = (100 * value for value in (gain.low, gain.difference, gain.high))
    value, ends = points(gain.difference), point_interval(gain)
    return Bar(label, low, middle, high, value, f"{style} {outcome or gain.outcome}", gain.of.classifier, ends)


def intervals(
    bars: Sequence[Bar], unit: str, marks: Mapping[str, float], title: str, span: tuple[float, float] | None = None
) -> Markup:
    """Return a line per bar over a common axis, with vertical lines at ``marks`` (style class: position).

    Charts with the same ``span`` share an axis; by default the span holds the bars.
    """
    lowest, highest = span or (min(bar.low for bar in bars), max(bar.high for bar in bars))
    ticks = round_ticks(min(lowest, *marks.values(), lowest), max(highest, *marks.values(), highest))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    labels = [(tick, plain(tick, unit)) for tick in ticks]
    return fill("charts.intervals", bars=bars, marks=marks, ticks=labels, at=at, title=title)


def curves(lines: Iterable[Sequence[tuple[float, float]]], x_name: str, y_name: str, title: str, style: str) -> Markup:
    """Return curves over a common axis from zero, without the points that are not finite."""
    finite = [[(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for points in lines]
    finite = [points for points in finite if points]
    if not finite:
        return Markup()
    right = max(x for points in finite for x, _ in points) or 1.0
    ticks = tuple((tick, plain(tick)) for tick in round_ticks(0.0, right) if tick <= right * 1.001)
    top = max(y for points in finite for _, y in points) or 1.0
    plane = Plane(Axis(x_name, 0.0, right, ticks), rounded(y_name, (0.0, top)))
    drawn = Markup().join(plane.line(points) for points in finite)
    weight = "thin" if len(finite) > 1 else "thick"
    return plane.drawn(f"{title}: {y_name} by {x_name}", style, Markup('<g class="{}">{}</g>').format(weight, drawn))


@dataclass(frozen=True)
class Line:
    """A series of a step chart: values by x in the chart's unit, and the ends of their intervals where known."""

    style: str
    values: Mapping[int, float]
    ends: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def steps(lines: Sequence[Line], unit: str, x_name: str, y_name: str, title: str) -> Markup:
    """Return a line per series over evenly spaced whole numbers, with dots at its values.

    Series with intervals stand side by side with different dashes, so that equal ones do not hide each other.
    """
    places = sorted({x for series in lines for x in series.values})
    values = [value for series in lines for value in series.values.values()]
    values += [end for series in lines for ends in series.ends.values() for end in ends]
    plane = Plane(placed(x_name, places), rounded(y_name, values, unit))
    beside = any(series.ends for series in lines)
    apart = min(_APART * len(places) / WIDE, 1 / (len(lines) + 1)) if beside else 0.0
    drawn = []
    for place, series in enumerate(lines):
        at = {x: places.index(x) + apart * (place - (len(lines) - 1) / 2) for x in series.values}
        spots = [(at[x], series.values[x]) for x in sorted(series.values)]
        bars = [plane.line([(at[x], low), (at[x], high)], "ends") for x, (low, high) in series.ends.items()]
        dots = [plane.dot(*spot) for spot in spots]
        style = f"thick {series.style}" + (f" dashes-{place % _DASHES}" if beside else "")
        drawn.append(Markup('<g class="{}">{}</g>').format(style, Markup().join([plane.line(spots), *bars, *dots])))
    return plane.drawn(title, "steps-chart", *drawn)


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: Sequence[str], caption: str) -> Markup:
    """Return a heat map of counts: rows are the true classes, columns the predictions in the same order."""
    counts = [[0] * len(classes) for _ in classes]
    for actual, guess in zip(labels, predicted, strict=True):
        counts[actual][guess] += 1
    rows = [
        [(number(count) if count else "", count / (sum(row) or 1), "right" if guess == actual else "wrong")
         for guess, count in enumerate(row)]
        for actual, row in enumerate(counts)
    ]  # fmt: skip
    return fill("charts.confusion", rows=list(zip(classes, rows, strict=True)), caption=caption)


def legend(items: Iterable[tuple[str, str]]) -> Markup:
    """Return names with their colours."""
    return fill("charts.legend", items=items)
