"""A plane with two numeric axes, as SVG: points, lines and cells at places in the unit of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dreamset.report.charts import plain, round_ticks
from dreamset.report.markup import Html, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDTH: Final = 360
_HEIGHT: Final = 210
_LEFT: Final = 40
_BOTTOM: Final = 30
_TOP: Final = 22
_RIGHT: Final = 12
_TICKS: Final = 8


@dataclass(frozen=True)
class Axis:
    """A name, the ends in the data's unit, and the ticks (position, label); on a ``log`` axis all are above 0."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """A value's place, 0 at the low end and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def rounded(name: str, values: Iterable[float], unit: str = "") -> Axis:
    """An axis between round numbers that holds the values."""
    known = list(values)
    ticks = round_ticks(min(known), max(known))
    return Axis(name, ticks[0], ticks[-1], tuple((tick, plain(tick, unit)) for tick in ticks))


def ranged(name: str, low: float, high: float, log: bool) -> Axis:
    """An axis from ``low`` to ``high`` exactly, with the round numbers between; ``log`` where it is searched so."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    else:
        candidates = round_ticks(low, high)
    inside = [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return Axis(name, low, high, tuple((tick, plain(tick)) for tick in inside), log)


def placed(name: str, labels: Sequence[object]) -> Axis:
    """An axis of labels, evenly spaced: the first is at 0."""
    return Axis(name, -0.5, len(labels) - 0.5, tuple((i, str(label)) for i, label in enumerate(labels)))


def whole(name: str, numbers: Sequence[int]) -> Axis:
    """An axis of whole numbers with room at its ends, few of which are written."""
    low, high = min(numbers), max(numbers)
    sizes = (size * 10**power for power in range(10) for size in (1, 2, 5))
    step = next(size for size in sizes if high - low <= _TICKS * size)
    ticks = range(-(-low // step) * step, high + 1, step)
    return Axis(name, low - 0.5, high + 0.5, tuple((tick, str(tick)) for tick in ticks))


@dataclass(frozen=True)
class Plane:
    """The frame of a chart; ``tall`` is its height in the unit of its width, which is 360."""

    x: Axis
    y: Axis
    tall: int = _HEIGHT

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data is drawn."""
        wide, tall = _WIDTH - _LEFT - _RIGHT, self.tall - _TOP - _BOTTOM
        return round(_LEFT + wide * self.x.at(x), 1), round(_TOP + tall * (1 - self.y.at(y)), 1)

    def dot(self, x: float, y: float, told: str, class_: str = "", radius: float = 3.5) -> Html:
        """A point; ``told`` is read by pointing at it."""
        across, down = self.spot(x, y)
        return tag("circle", tag("title", told), cx=across, cy=down, r=radius, class_=class_ or None)

    def cross(self, x: float, y: float, told: str, class_: str) -> Html:
        """Two short strokes: what came to nothing."""
        across, down = self.spot(x, y)
        strokes = f"M{across - 3},{down - 3}l6,6M{across - 3},{down + 3}l6,-6"
        return tag("path", tag("title", told), d=strokes, class_=class_)

    def line(self, points: Iterable[tuple[float, float]], class_: str) -> Html:
        """A line through points."""
        return tag(
            "polyline",
            points=" ".join(f"{x},{y}" for x, y in (self.spot(*point) for point in points)),
            class_=class_,
        )

    def box(self, x: tuple[float, float], y: tuple[float, float], told: str | None, **style: object) -> Html:
        """A rectangle between two values of each axis."""
        left, top = self.spot(x[0], y[1])
        right, bottom = self.spot(x[1], y[0])
        wide, tall = round(max(right - left, 1), 1), round(bottom - top, 1)
        return tag("rect", tag("title", told) if told else None, x=left, y=top, width=wide, height=tall, **style)

    def drawn(self, title: str, class_: str, *marks: object) -> Html:
        """The chart: grid and names, and the marks over them."""
        left, right, bottom = _LEFT, _WIDTH - _RIGHT, self.tall - _BOTTOM
        grid = []
        for value, label in self.y.ticks:
            _, y = self.spot(self.x.low, value)
            grid.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            grid.append(tag("text", label, x=left - 6, y=round(y + 3.5, 1), text_anchor="end"))
        for value, label in self.x.ticks:
            x, _ = self.spot(value, self.y.low)
            grid.append(tag("text", label, x=x, y=bottom + 16, text_anchor="middle"))
        names = [
            tag("text", f"{self.x.name} →", x=right, y=self.tall - 2, text_anchor="end", class_="axis-name"),
            tag("text", f"↑ {self.y.name}", x=0, y=10, class_="axis-name") if self.y.name else None,
        ]
        view = f"0 0 {_WIDTH} {self.tall}"
        return tag("svg", tag("title", title), grid, marks, names, viewBox=view, role="img", class_=f"curves {class_}")
