"""Curves of a training, short enough to be kept and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def thinned(losses: Sequence[float], width: int) -> list[dict[str, float]]:
    """Return the mean loss of every ``width`` consecutive steps, each at the last of its steps, counted from 1."""
    parts = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [
        {"step": min(index * width, len(losses)), "loss": round(sum(part) / len(part), 5)}
        for index, part in enumerate(parts, 1)
    ]
