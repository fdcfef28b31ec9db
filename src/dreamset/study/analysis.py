"""What a study says, from its record alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreamset.files import write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def summarise(record: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from a record's trials: ``front`` and ``sentences``."""
    return {"front": front(record["trials"]), "sentences": []}


def front(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the trials that no other beats in both CAS and seconds per image, from the fastest to the slowest.

    Only of finished, feasible trials with two values; empty for a study of CAS alone.
    """
    found = [trial for trial in trials if trial["state"] == "COMPLETE" and trial["feasible"]]
    found = [trial for trial in found if len(trial["values"]) == 2]
    found.sort(key=lambda trial: (trial["values"][1], -trial["values"][0], trial["number"]))
    numbers, highest = [], -math.inf
    for trial in found:
        if trial["values"][0] > highest:
            highest = trial["values"][0]
            numbers.append(trial["number"])
    return numbers


def write_plots(record: Mapping[str, Any], folder: Path) -> None:
    """The trials as CSV."""
    rows = [
        {
            "trial": trial["number"],
            "state": trial["state"].lower(),
            "cas": trial["values"][0] if trial["values"] else None,
        }
        for trial in record["trials"]
    ]
    write_csv(folder / "history.csv", rows, ("trial", "cas", "best", "state"))
