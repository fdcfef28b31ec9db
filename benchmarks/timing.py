"""Ladders of variants, timed in turns within one process, as ratios to the lowest rung."""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Rung:
    """A variant of a task: the rung below with one lever more.

    ``seconds`` runs it once, per unit of work; ``operations`` are the U-Net's in a unit, 0 where it has none.
    """

    lever: str
    seconds: Callable[[], float]
    operations: float = 0.0


@dataclass(frozen=True)
class Ladder:
    """A task from the plain loop (first rung) to dreamset's own code (last)."""

    task: str
    unit: str
    rungs: Sequence[Rung]


def clock() -> float:
    """Seconds, once the device has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def climb(ladder: Ladder, repeat: int, matmul: float = math.inf) -> dict[str, Any]:
    """Time every rung ``repeat`` times, in turns: A B C A B C.

    Args:
        ladder: a task.
        repeat: how often.
        matmul: operations per second that the machine does in a matrix product.
    """
    taken: list[list[float]] = [[] for _ in ladder.rungs]
    peaks = [0] * len(ladder.rungs)
    for _ in range(repeat):
        for index, rung in enumerate(ladder.rungs):
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            taken[index].append(rung.seconds())
            if torch.cuda.is_available():
                peaks[index] = max(peaks[index], torch.cuda.max_memory_allocated())
    return summarise(ladder, taken, peaks, matmul)


def summarise(
    ladder: Ladder, taken: Sequence[Sequence[float]], peaks: Sequence[int], matmul: float = math.inf
) -> dict[str, Any]:
    """Medians as rates, their ratios to the first rung and to the rung below, shares of ``matmul``, and memory."""
    medians = [statistics.median(mine) for mine in taken]
    rows = []
    for index, (rung, mine, median) in enumerate(zip(ladder.rungs, taken, medians, strict=True)):
        row: dict[str, Any] = {
            "lever": rung.lever,
            "per_second": 1 / median,
            "slowest": 1 / max(mine),
            "fastest": 1 / min(mine),
            "times_plain": medians[0] / median,
            "times_row_above": medians[index - 1] / median if index else 1.0,
        }
        if rung.operations:
            row |= {"tflops": rung.operations / median / 1e12, "share_of_matmul": rung.operations / median / matmul}
        if peaks[index]:
            row["peak_gib"] = peaks[index] / 2**30
        rows.append({key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()})
    return {"task": ladder.task, "unit": ladder.unit, "repetitions": len(taken[0]), "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """A ladder's result as a table."""
    head = [f"{result['unit']} per second, median of {result['repetitions']}"]
    head += ["rate", "slowest to fastest", "x plain", "x row above"]
    extra = {"tflops": "U-Net TFLOP/s", "share_of_matmul": "of a matmul's", "peak_gib": "peak GiB"}
    extra = {key: title for key, title in extra.items() if any(key in row for row in result["rows"])}
    head += extra.values()
    lines = [f"### {result['task']}", "", _line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in result["rows"]:
        cells = [row["lever"], f"{row['per_second']:.3g}", f"{row['slowest']:.3g} to {row['fastest']:.3g}"]
        cells += [f"{row['times_plain']:.2f}", f"{row['times_row_above']:.2f}"]
        cells += [f"{row[key]:{'.0%' if key == 'share_of_matmul' else '.3g'}}" if key in row else "" for key in extra]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
