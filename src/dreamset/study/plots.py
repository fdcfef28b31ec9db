"""The data of a study's plots, read from its record, ``results/tune/<recipe>.json``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.files import write_csv
from dreamset.study.analysis import images, reached, score
from dreamset.study.choice import is_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

GRID: Final = 16
_FEWEST: Final = 3  # trials that a surface needs
_REACH: Final = math.exp(-2)  # least weight of all trials at a place of the surface: one trial two bandwidths away


def _state(record: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """Return the state of a trial for a plot: ``chosen``, or how it ended."""
    return "chosen" if trial["number"] == record["best_trial"] else str(trial["state"]).lower()


def history(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial: number, state, CAS if it was scored, and the best CAS of a finished trial so far."""
    rows, best = [], None
    for trial in sorted(record["trials"], key=lambda trial: trial["number"]):
        if is_usable(trial):
            best = max(score(trial) or 0.0, best or 0.0)
        rows.append({"trial": trial["number"], "cas": score(trial), "best": best, "state": _state(record, trial)})
    return rows


def rung_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial and rung: images per class, and CAS."""
    return [
        {"images_per_class": images(trial, record["resource"])[int(rung)], "cas": cas}
        | {"trial": trial["number"], "state": _state(record, trial)}
        for trial in record["trials"]
        for rung, cas in sorted(trial["rungs"].items(), key=lambda item: int(item[0]))
    ]


def timeline(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per trial that ended: its worker, start and end, in seconds since the first start."""
    timed = [trial for trial in record["trials"] if trial["started"] is not None and trial["ended"] is not None]
    first = min((trial["started"] for trial in timed), default=0.0)
    return [
        {
            "started": round(trial["started"] - first, 1),
            "ended": round(trial["ended"] - first, 1),
            "trial": trial["number"],
            "worker": trial["worker"],
            "state": _state(record, trial),
        }
        for trial in timed
    ]


def front_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per finished trial of two objectives: seconds per image, CAS, and whether it is on the front."""
    on = set(record["front"])
    return [
        {"seconds_per_image": trial["values"][1], "cas": trial["values"][0], "trial": trial["number"]}
        | {"front": trial["number"] in on, "feasible": trial["feasible"]}
        for trial in record["trials"]
        if trial["state"] == "COMPLETE" and len(trial["values"]) == 2
    ]


def importance_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per knob and per pair of knobs: the share of the variance of CAS; no rows for too few trials."""
    shares = record["importance"]
    rows = [{"share": share, "of": knob} for knob, share in shares.get("main", {}).items()]
    return rows + [{"share": pair["share"], "of": " × ".join(pair["knobs"])} for pair in shares.get("pairs", ())]


def axes(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the two numeric knobs of the contour, guidance and steps first; None without two."""
    numeric = [knob for knob, span in record["space"].items() if "choices" not in span["attributes"]]
    first = [knob for knob in ("guidance", "steps") if knob in numeric]
    ordered = [*first, *(knob for knob in numeric if knob not in first)]
    return (ordered[0], ordered[1]) if len(ordered) > 1 else None


def contour_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per scored trial: its values of the contour's two knobs, CAS and state."""
    names = axes(record)
    return [
        {knob: trial["params"][knob] for knob in names}
        | {"cas": score(trial), "trial": trial["number"], "state": _state(record, trial)}
        for trial in record["trials"]
        if names and reached(trial) and set(names) <= trial["params"].keys()
    ] if names else []  # fmt: skip


def surface(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return CAS over the contour's two knobs, as a kernel-weighted mean of the finished trials (Nadaraya and Watson).

    Trials stopped early were scored on fewer images and do not count. Places without a trial nearby are left out.

    Returns:
        A row per place of a 16 × 16 grid: the values of the two knobs at its centre, and CAS. No rows for fewer than
        three trials.
    """
    import numpy as np

    names = axes(record)
    used = [row for row in contour_rows(record) if row["state"] in ("complete", "chosen")]
    if names is None or len(used) < _FEWEST:
        return []
    spans = [record["space"][knob]["attributes"] for knob in names]
    places = np.stack([_place(span, [row[knob] for row in used]) for span, knob in zip(spans, names, strict=True)], 1)
    cas = np.array([row["cas"] for row in used])
    centres = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    # Scott's rule for points that are uniform over the square.
    width = len(used) ** (-1 / 6) / math.sqrt(12)
    weights = np.exp(-((grid[:, None] - places[None]) ** 2).sum(-1) / (2 * width**2))
    values = [_value(span, grid[:, i]) for i, span in enumerate(spans)]
    return [
        {names[0]: round(x, 6), names[1]: round(y, 6), "cas": round(float(weight @ cas / weight.sum()), 4)}
        for x, y, weight in zip(*(column.tolist() for column in values), weights, strict=True)
        if weight.sum() >= _REACH
    ]


def _place(span: Mapping[str, Any], values: Sequence[float]) -> NDArray[np.float64]:
    """Return values of a knob as places in 0..1 of its range."""
    import numpy as np

    given, ends = np.array(values, np.float64), np.array([span["low"], span["high"]], np.float64)
    if span["log"]:
        given, ends = np.log(given), np.log(ends)
    low, high = ends.tolist()
    return np.asarray((given - low) / ((high - low) or 1.0))


def _value(span: Mapping[str, Any], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of a knob at places in 0..1 of its range."""
    import numpy as np

    if span["log"]:
        return np.exp(math.log(span["low"]) + places * math.log(span["high"] / span["low"]))
    return np.asarray(span["low"] + places * (span["high"] - span["low"]))


def write_plots(record: Mapping[str, Any], folder: Path) -> None:
    """Write the data of the plots of a summarised record as CSV.

    The files are history, rungs, importance and timeline. Contour and surface need two numeric knobs, and the front
    needs two objectives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "history.csv", history(record), ("trial", "cas", "best", "state"))
    write_csv(folder / "rungs.csv", rung_rows(record), ("images_per_class", "cas", "trial", "state"))
    write_csv(folder / "importance.csv", importance_rows(record), ("share", "of"))
    write_csv(folder / "timeline.csv", timeline(record), ("started", "ended", "trial", "worker", "state"))
    names = axes(record)
    if names is not None:
        write_csv(folder / "contour.csv", contour_rows(record), (*names, "cas", "trial", "state"))
        write_csv(folder / "surface.csv", surface(record), (*names, "cas"))
    if any(front_rows(record)):
        columns = ("seconds_per_image", "cas", "trial", "front", "feasible")
        write_csv(folder / "front.csv", front_rows(record), columns)
