"""Accuracies over seeds and their paired differences, from which test images each run got right."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student_t

from dreamset.metrics.scored import groups_of
from dreamset.metrics.statistics import crossed, indicative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.params import Params

HEAD = ("seeds", "CAS", "sd")


def unpacked(record: dict[str, Any], key: str) -> np.ndarray:
    """(images,) float64: 1 where the run ``key`` of a record (``dreamset.sweep.table.record``) was right, else 0."""
    packed = np.frombuffer(bytes.fromhex(record["right"][key]), np.uint8)
    return np.unpackbits(packed, count=record["images"]).astype(np.float64)


def accuracy(records: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and what they are of."""
    scores = [float(unpacked(record, key).mean()) for record in records]
    spread = round(statistics.stdev(scores), 4) if len(scores) > 1 else None
    by_seed = [round(score, 4) for score in scores]
    return {"seeds": len(scores), "cas": round(statistics.fmean(scores), 4), "sd": spread, "by_seed": by_seed}


def difference(
    params: Params, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], of: str, minus: str
) -> dict[str, Any]:
    """The mean difference with its interval over seeds and test images, or their groups.

    Args:
        params: for the resamples and the confidence.
        pairs: for each seed the record that holds ``of``, and the one that holds ``minus``.
        of: a run.
        minus: another.

    Raises:
        ValueError: the two were scored on other images.
    """
    if len({record["labels"] for pair in pairs for record in pair}) != 1:
        raise ValueError("runs that were scored on different images cannot be paired")
    each = np.stack([unpacked(one, of) - unpacked(other, minus) for one, other in pairs])
    found = crossed(each, params.evaluate.bootstrap, params.evaluate.confidence, groups_of(pairs[0][0]))
    ends = {"difference": found.estimate, "low": found.low, "high": found.high}
    return {name: round(value, 4) for name, value in ends.items()} | {
        "by_seed": [round(value, 4) for value in each.mean(1).tolist()],
        "indicative": indicative(len(pairs)),
    }


def interval(gains: Sequence[float]) -> dict[str, float]:
    """The mean over seeds and its 95 % interval by Student's t."""
    mean = statistics.fmean(gains)
    half = float(student_t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return {"difference": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def told(row: dict[str, Any] | None) -> str:
    """A difference in points: "+1.2 (−0.3 to +2.0)"."""
    if row is None:
        return "–"
    middle, low, high = (f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("difference", "low", "high"))
    return f"{middle} ({low} to {high})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all but its first column are to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    return "\n".join(lines) + "\n"
