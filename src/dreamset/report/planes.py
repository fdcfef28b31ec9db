"""Charts over two numeric axes, as SVG: points, lines and boxes at places in the unit of the data.

They are the page's own, for its words stay text, its colours follow the reader's theme, and it needs no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from dreamset.report.figures import MINUS
from dreamset.report.markup import fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WIDTH: Final = 360
_HEIGHT: Final = 210
_LEFT: Final = 40
_BOTTOM: Final = 30
_TOP: Final = 22
_RIGHT: Final = 12
_TICKS: Final = 8
WIDE: Final = _WIDTH - _LEFT - _RIGHT  # between the ends of the x axis


@dataclass(frozen=True)
class Axis:
    """An axis: its name, its ends and its ticks (position, label), in the data's unit; above 0 where ``log``."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def rounded(name: str, values: Iterable[float], unit: str = "") -> Axis:
    """Return an axis between round numbers that holds the values."""
    known = list(values)
    ticks = round_ticks(min(known), max(known))
    return Axis(name, ticks[0], ticks[-1], tuple((tick, plain(tick, unit)) for tick in ticks))


def ranged(name: str, low: float, high: float, log: bool) -> Axis:
    """Return an axis from ``low`` to ``high`` exactly, with ticks at the round numbers between."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    else:
        candidates = round_ticks(low, high)
    inside = [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return Axis(name, low, high, tuple((tick, plain(tick)) for tick in inside), log)


def placed(name: str, labels: Sequence[object]) -> Axis:
    """Return an axis of evenly spaced labels; the first is at 0, the next at 1."""
    return Axis(name, -0.5, len(labels) - 0.5, tuple((i, str(label)) for i, label in enumerate(labels)))


def whole(name: str, numbers: Sequence[int]) -> Axis:
    """Return an axis of whole numbers with room at its ends, and ticks at a few of them."""
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
        """Return the place of a point of the data in the drawing."""
        tall = self.tall - _TOP - _BOTTOM
        return round(_LEFT + WIDE * self.x.at(x), 1), round(_TOP + tall * (1 - self.y.at(y)), 1)

    def dot(self, x: float, y: float, title: str = "", style: str = "", radius: float = 3.5) -> Markup:
        """Return a point; ``title`` appears on pointing at it."""
        return Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>').format(
            *self.spot(x, y), radius, style, _title(title)
        )

    def cross(self, x: float, y: float, title: str, style: str) -> Markup:
        """Return a cross, the mark of a failed trial."""
        across, down = self.spot(x, y)
        return Markup('<path d="M{0},{1}l6,6M{0},{2}l6,-6" class="{3}">{4}</path>').format(
            across - 3, down - 3, down + 3, style, _title(title)
        )

    def line(self, points: Iterable[tuple[float, float]], style: str = "") -> Markup:
        """Return a line through points."""
        spots = " ".join(f"{x},{y}" for x, y in (self.spot(*point) for point in points))
        return Markup('<polyline points="{}" class="{}"></polyline>').format(spots, style)

    def box(
        self, x: tuple[float, float], y: tuple[float, float], style: str, title: str = "", full: float = 1.0
    ) -> Markup:
        """Return a rectangle between two values of each axis; ``full`` is the strength of its colour, 0..1."""
        left, top = self.spot(x[0], y[1])
        right, bottom = self.spot(x[1], y[0])
        return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}" style="--v:{:.2f}">{}</rect>').format(
            left, top, round(max(right - left, 1), 1), round(bottom - top, 1), style, full, _title(title)
        )

    def drawn(self, title: str, style: str, *marks: Markup) -> Markup:
        """Return the chart: the grid, the names, and the marks over them."""
        ends = {"left": _LEFT, "right": _WIDTH - _RIGHT, "bottom": self.tall - _BOTTOM, "width": _WIDTH}
        return fill("charts.plane", plane=self, title=title, style=style, marks=marks, **ends)


def _title(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words) if words else Markup()


def round_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers, the first and the last at or beyond the ends."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    size = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    ticks = [index * size for index in range(first, max(last, first + 1) + 1)]
    assert all(a < b for a, b in pairwise(ticks))
    return ticks


def plain(value: float, unit: str = "") -> str:
    """Return the text of a tick."""
    return f"{value:g}".replace("-", MINUS) + unit if abs(value) > 1e-9 else f"0{unit}"


def stairs(spots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a line that keeps each height until the next spot."""
    return [corner for a, b in zip(spots, [*spots[1:], *spots[-1:]], strict=True) for corner in (a, (b[0], a[1]))]
