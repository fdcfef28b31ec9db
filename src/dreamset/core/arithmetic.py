"""Small sums that several stages do: learning rates, thinned curves, totals with unknown parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def warm_up_cosine(step: int, steps: int, warmup: int, peak: float, *, lead: int = 0) -> float:
    """Return the learning rate of a step: it rises linearly to ``peak``, then falls to 0 as half a cosine.

    Args:
        step: from 0 on.
        steps: of the whole training.
        warmup: steps that the rise takes.
        peak: the highest rate.
        lead: steps of the rise that lie before step 0. With 0 the first step has the rate 0.
    """
    if step < warmup:
        return peak * (step + lead) / (warmup + lead)
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def thinned(losses: Sequence[float], width: int) -> list[dict[str, float]]:
    """Return the mean loss of every ``width`` consecutive steps, each at the last of its steps, counted from 1."""
    parts = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [
        {"step": min(index * width, len(losses)), "loss": round(sum(part) / len(part), 5)}
        for index, part in enumerate(parts, 1)
    ]


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum; None where there are no values, or one of them is None."""
    every = list(values)
    known = [value for value in every if value is not None]
    return sum(known) if known and len(known) == len(every) else None
