"""Ladders of variants, timed in turns within one process, as ratios to the lowest rung."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Rung:
    """A variant of a task: the rung below with one lever more. ``seconds`` runs it once, per unit of work."""

    lever: str
    seconds: Callable[[], float]


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


def climb(ladder: Ladder, repeat: int) -> dict[str, Any]:
    """Time every rung ``repeat`` times, in turns: A B C A B C."""
    taken: list[list[float]] = [[] for _ in ladder.rungs]
    for _ in range(repeat):
        for rung, mine in zip(ladder.rungs, taken, strict=True):
            gc.collect()
            mine.append(rung.seconds())
    return summarise(ladder, taken)


def summarise(ladder: Ladder, taken: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Medians as rates, and their ratios to the first rung and to the rung below."""
    medians = [statistics.median(mine) for mine in taken]
    rows = []
    for index, (rung, mine, median) in enumerate(zip(ladder.rungs, taken, medians, strict=True)):
        row = {
            "lever": rung.lever,
            "per_second": 1 / median,
            "slowest": 1 / max(mine),
            "fastest": 1 / min(mine),
            "times_plain": medians[0] / median,
            "times_row_above": medians[index - 1] / median if index else 1.0,
        }
        rows.append({key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()})
    return {"task": ladder.task, "unit": ladder.unit, "repetitions": len(taken[0]), "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """A ladder's result as a table."""
    lines = [
        f"### {result['task']}",
        "",
        f"| {result['unit']} per second, median of {result['repetitions']} | rate | slowest to fastest | x plain "
        "| x row above |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['lever']} | {row['per_second']:.3g} | {row['slowest']:.3g} to {row['fastest']:.3g} "
        f"| {row['times_plain']:.2f} | {row['times_row_above']:.2f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def device_name(device: torch.device) -> str:
    """What was timed: the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()}, {torch.get_num_threads()} threads"


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
