"""Numbers, intervals and names of runs as text of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamset.metrics.verdict import points

if TYPE_CHECKING:
    from dreamset.data.runs import Run
    from dreamset.metrics.gains import Gain

MINUS: Final = "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    """Return a share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thin spaces between thousands; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", MINUS)


def p_value(value: float | None) -> str:
    """Return a p-value with two significant digits; a dash for None."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def interval(low: float, high: float) -> str:
    """Return the ends of an interval of shares, in per cent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def spaced(run: Run) -> str:
    """Return the name of a run, as the page's tables write it."""
    return f"{run.arm} · {run.kind} · {run.classifier}"


def point_interval(gain: Gain) -> str:
    """Return the ends of the interval of a difference, in percentage points."""
    return f"{points(gain.low)} to {points(gain.high)}"
