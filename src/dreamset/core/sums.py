"""Sums of numbers of which some may not be known."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum; None of nothing, and where a part is not known."""
    every = list(values)
    known = [value for value in every if value is not None]
    return sum(known) if known and len(known) == len(every) else None
