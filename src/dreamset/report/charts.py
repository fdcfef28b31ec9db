"""Charts that need neither scripts nor fonts: intervals as positioned boxes, curves as SVG, matrices as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from dreamset.report.markup import Html, number, row, table, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_WIDTH: Final = 360
_HEIGHT: Final = 190
_LEFT: Final = 40
_BOTTOM: Final = 30
_TOP: Final = 10
_RIGHT: Final = 12
_APART: Final = 7.0  # between series at the same x
_DASHES: Final = 5  # patterns in style.css


@dataclass(frozen=True)
class Bar:
    """A row of an interval chart: an estimate with its ends, in the chart's unit; ``class_`` styles it."""

    label: object
    low: float
    middle: float
    high: float
    value: object
    class_: str = ""


def intervals(
    bars: Sequence[Bar], unit: str, marks: Mapping[str, float], name: str, span: tuple[float, float] | None = None
) -> Html:
    """One line per bar over a common axis, with vertical lines at ``marks`` (style class: position).

    ``span`` makes several charts share an axis; by default it holds the bars.
    """
    lowest, highest = span or (min(bar.low for bar in bars), max(bar.high for bar in bars))
    ticks = round_ticks(min(lowest, *marks.values(), lowest), max(highest, *marks.values(), highest))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    lines = [tag("i", class_=f"mark {kind}", style=f"left:{at(value)}") for kind, value in marks.items()]
    made = [
        tag(
            "div",
            tag("span", bar.label, class_="label"),
            tag(
                "span",
                lines,
                tag("i", class_="span", style=f"left:{at(bar.low)};right:calc(100% - {at(bar.high)})"),
                tag("i", class_="dot", style=f"left:{at(bar.middle)}"),
                class_="track",
                aria_hidden="true",
            ),
            tag("span", bar.value, class_="value"),
            class_=f"bar {bar.class_}".strip(),
        )
        for bar in bars
    ]
    # The outer numbers are anchored inwards, so that they do not leave the chart.
    axis = tag(
        "div",
        tag("span", class_="label"),
        tag("span", [tag("b", plain(tick, unit), style=f"left:{at(tick)}") for tick in ticks], class_="track"),
        tag("span", class_="value"),
        class_="bar axis",
        aria_hidden="true",
    )
    return tag("div", made, axis, class_="intervals", role="group", aria_label=name)


def curves(lines: Iterable[Sequence[tuple[float, float]]], x_name: str, y_name: str, title: str, class_: str) -> Html:
    """Curves over a common zero-based axis; points that are not finite are left out."""
    finite = [[(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)] for line in lines]
    finite = [line for line in finite if line]
    if not finite:
        return Html("")
    right = max(x for line in finite for x, _ in line) or 1.0
    y_ticks = round_ticks(0.0, max(y for line in finite for _, y in line) or 1.0)
    x_ticks = [tick for tick in round_ticks(0.0, right) if tick <= right * 1.001]

    def spot(x: float, y: float) -> tuple[float, float]:
        wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + wide * x / right, _TOP + tall * (1 - y / y_ticks[-1])

    grid = []
    for tick in y_ticks:
        _, y = spot(0, tick)
        grid.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        grid.append(tag("text", plain(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for tick in x_ticks:
        x, _ = spot(tick, 0)
        grid.append(tag("text", plain(tick), x=f"{x:.1f}", y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    drawn = [
        tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in (spot(*point) for point in line)))
        for line in finite
    ]
    names = tag("text", f"{x_name} →", x=_WIDTH - _RIGHT, y=_HEIGHT - 2, text_anchor="end", class_="axis-name")
    return tag(
        "svg",
        tag("title", f"{title}: {y_name} by {x_name}"),
        grid,
        names,
        tag("g", drawn, class_="thin" if len(finite) > 1 else "thick"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_=f"curves {class_}",
    )


@dataclass(frozen=True)
class Line:
    """A series of a step chart: a value by x in the chart's unit, with the ends of its interval where known."""

    class_: str
    values: Mapping[int, float]
    ends: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def steps(lines: Sequence[Line], unit: str, x_name: str, y_name: str, title: str) -> Html:
    """A line per series over whole numbers, evenly spaced, with dots at its values.

    Series with intervals stand side by side, each with its own dashes, so that equal ones do not hide each other.
    """
    places = sorted({x for line in lines for x in line.values})
    values = [value for line in lines for value in line.values.values()]
    values += [end for line in lines for ends in line.ends.values() for end in ends]
    ticks = round_ticks(min(values), max(values))
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    apart = min(_APART, wide / len(places) / (len(lines) + 1)) if any(line.ends for line in lines) else 0.0

    def spot(x: int, value: float, index: float = 0.0) -> tuple[str, str]:
        across = (places.index(x) + 0.5) / len(places)
        height = _TOP + tall * (ticks[-1] - value) / (ticks[-1] - ticks[0])
        return f"{_LEFT + wide * across + apart * index:.1f}", f"{height:.1f}"

    grid = []
    for tick in ticks:
        _, y = spot(places[0], tick)
        grid.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        grid.append(tag("text", plain(tick, unit), x=_LEFT - 6, y=f"{float(y) + 4:.1f}", text_anchor="end"))
    for x in places:
        grid.append(tag("text", x, x=spot(x, ticks[0])[0], y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    grid.append(tag("text", f"{x_name} →", x=_WIDTH - _RIGHT, y=_HEIGHT - 2, text_anchor="end", class_="axis-name"))
    grid.append(tag("text", f"↑ {y_name}", x=0, y=-_TOP / 2, class_="axis-name"))
    drawn = []
    for place, line in enumerate(lines):
        index = place - (len(lines) - 1) / 2
        spots = [spot(x, line.values[x], index) for x in sorted(line.values)]
        bars = []
        for x, (low, high) in line.ends.items():
            (at, bottom), (_, top) = spot(x, low, index), spot(x, high, index)
            bars.append(tag("line", x1=at, x2=at, y1=bottom, y2=top, class_="ends"))
        dots = [tag("circle", cx=x, cy=y, r=3.5) for x, y in spots]
        style = f"thick {line.class_}" + (f" dashes-{place % _DASHES}" if apart else "")
        drawn.append(tag("g", tag("polyline", points=" ".join(map(",".join, spots))), bars, dots, class_=style))
    view = f"0 {-2 * _TOP} {_WIDTH} {_HEIGHT + 2 * _TOP}"
    return tag("svg", tag("title", title), grid, drawn, viewBox=view, role="img", class_="curves steps-chart")


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: Sequence[str], caption: object) -> Html:
    """A heat map of counts: rows are the true classes, columns the predictions in the same order."""
    counts = [[0] * len(classes) for _ in classes]
    for actual, guess in zip(labels, predicted, strict=True):
        counts[actual][guess] += 1
    head = [tag("td"), *(tag("th", tag("bdi", name[:3]), scope="col", title=name) for name in classes)]
    rows = []
    for actual, (name, line) in enumerate(zip(classes, counts, strict=True)):
        total = sum(line) or 1
        cells = [
            tag(
                "td",
                number(count) if count else "",
                class_=("right" if guess == actual else "wrong") + (" deep" if count / total > 0.5 else ""),
                style=f"--v:{count / total:.3f}" if count else None,
            )
            for guess, count in enumerate(line)
        ]
        rows.append(row(tag("th", tag("bdi", name), scope="row", title=name), *cells))
    return table(head, rows, caption, "heat")


def legend(items: Iterable[tuple[str, object]]) -> Html:
    """Names with their colours."""
    return tag("p", [tag("span", tag("i", class_=f"key {kind}"), name) for kind, name in items], class_="legend")


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers, three to seven of them, the first and the last at or beyond the ends."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    size = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    ticks = [index * size for index in range(first, max(last, first + 1) + 1)]
    assert all(a < b for a, b in pairwise(ticks))
    return ticks


def plain(value: float, unit: str = "") -> str:
    """A tick's number."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}") + unit if abs(value) > 1e-9 else f"0{unit}"
