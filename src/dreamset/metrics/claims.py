"""What ``dreamset table`` has claimed over several seeds, and the verdict that rests on it.

A table counts only where it was made as this run was: by the same setting, code and pretrained weights.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.metrics import verdict
from dreamset.metrics.statistics import indicative
from dreamset.metrics.verdict import Gain, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_SIGN_FLIP: Final = "the sign-flip test over seeds"


@dataclass(frozen=True)
class Claim:
    """A difference over several seeds, at one number of shots; p-values where they were computed."""

    shots: int
    seeds: int
    gain: Gain
    p: float | None
    p_holm: float | None
    primary: bool


@dataclass(frozen=True)
class Sweep:
    """What ``dreamset table`` wrote: the claims, and mean accuracies and correlations as rows of text."""

    claims: list[Claim]
    summary: list[dict[str, str]]
    correlations: list[dict[str, str]]
    cost: dict[str, Any]

    @property
    def seeds(self) -> int:
        """The fewest seeds that a claim rests on."""
        return min((claim.seeds for claim in self.claims), default=0)

    def at(self, shots: object) -> dict[tuple[str, str], Claim]:
        """The claims at this number of shots, by what is compared."""
        return {(claim.gain.of, claim.gain.minus): claim for claim in self.claims if claim.shots == shots}

    def means(self, shots: object, classifier: str) -> dict[tuple[str, str], tuple[float, float | None]]:
        """Mean accuracy over the seeds and its standard deviation, by (arm, train_on)."""
        return {
            (row["recipe"], row["train_on"]): (float(row["accuracy"]), float(row["sd"]) if row.get("sd") else None)
            for row in self.summary
            if (row["shots"], row["classifier"]) == (str(shots), classifier)
        }


@dataclass(frozen=True)
class Pooled:
    """A verdict over ``seeds`` seeds, six or more, and the differences at its number of shots."""

    verdict: Verdict
    seeds: int
    gains: dict[tuple[str, str], Gain]


def pooled(params: Params, sweep: Sweep | None, shots: object, evaluation: dict[str, Any]) -> Pooled | None:
    """The verdict over the seeds of the table; None where it has fewer than six, which decide nothing.

    So few do not show how much seeds differ: intervals over two or three can be far too narrow.

    Args:
        params: for the primary recipe and classifier, and the smallest gain of interest.
        sweep: as ``read`` gives it.
        shots: of the run that the verdict is for.
        evaluation: of that run, for its confidence and what it was scored on.
    """
    claims = sweep.at(shots) if sweep else {}
    best = verdict.over_real(
        (claim.gain for claim in claims.values()), params.primary_recipe, params.primary_classifier
    )
    # Of the claim that is used: a recipe that was added later may have fewer.
    seeds = claims[best.of, best.minus].seeds if best else 0
    if indicative(seeds):
        return None
    over = f"{verdict.basis(evaluation).rstrip(',')}, in the mean of {seeds} seeds,"
    gains = {pair: replace(claim.gain, p=claim.p) for pair, claim in claims.items()}
    found = verdict.judge(params, gains.values(), float(evaluation["confidence"]), over, test=_SIGN_FLIP)
    return Pooled(found, seeds, gains) if found else None


def made(params: Params, root: Path) -> str:
    """Hash of the code and of the pretrained weights that the cells of a table are made with."""
    from dreamset.weights.fingerprint import fingerprint

    return fingerprint(None, root, params.base)


def read(params: Params, workspace: Workspace, shown: Collection[str]) -> Sweep | None:
    """The table over seeds, of the arms that are shown; None where it was made with another setting, code or weights.

    Raises:
        InputError: a file of the table is not whole.
    """
    folder = workspace.results / "table"
    found = _optional(folder / "setting.json")
    code = found.pop("made", None)
    # Of the images of the source, which nobody but prepare and evaluate may read.
    found.pop("data", None)
    rows = {name: row for name, row in found.get("recipes", {}).items() if name in shown}
    # As JSON has it, where tuples are lists.
    if found | {"recipes": rows} != json.loads(json.dumps(params.setting(rows.keys() & params.recipes.keys()))):
        return None
    # Last, for it reads all of the weights.
    if code != made(params, workspace.root):
        return None
    path = folder / "claims.csv"
    try:
        claims = [
            Claim(
                shots=int(row["shots"]),
                seeds=int(row["seeds"]),
                gain=Gain(row["of"], row["minus"], *_ends(row)),
                p=float(row["p"]) if row.get("p") else None,
                p_holm=float(row["p_holm"]) if row.get("p_holm") else None,
                primary=row.get("primary") == "true",
            )
            for row in read_csv(path)
            if {row["of"].split("/")[0], row["minus"].split("/")[0]} <= set(shown)
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is not a table of claims ({error}); run `dreamset table` again.") from error
    summary = [row for row in read_csv(folder / "summary.csv") if row.get("recipe") in shown]
    if not claims:
        return None
    return Sweep(claims, summary, read_csv(folder / "correlations.csv"), _optional(folder / "cost.json"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where the file is missing.

    Raises:
        InputError: it is not whole.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not whole CSV ({error}); make it again.") from error


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path, "dreamset table")) if path.is_file() else {}


def _ends(row: dict[str, str]) -> tuple[float, float, float]:
    return float(row["difference"]), float(row["low"]), float(row["high"])
