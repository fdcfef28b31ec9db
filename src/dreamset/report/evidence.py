"""Everything that the report says, read from the results of the other stages; never from the test manifest."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.errors import InputError
from dreamset.files import read_json
from dreamset.splits import read_split
from dreamset.verdict import Gain, over_real

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params
    from dreamset.splits import Split
    from dreamset.workspace import Workspace

REAL: Final = "real"
ZERO_SHOT: Final = "zero_shot"


@dataclass(frozen=True)
class Score:
    """One classifier on the images that it is scored on: the accuracy, its interval, and the record it is from."""

    arm: str
    train_on: str
    classifier: str
    accuracy: float
    low: float
    high: float
    record: dict[str, Any]

    @property
    def key(self) -> str:
        """``arm/train_on/classifier``."""
        return f"{self.arm}/{self.train_on}/{self.classifier}"


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

    def means(self, shots: object, classifier: str) -> dict[tuple[str, str], tuple[float, float | None]]:
        """Mean accuracy over the seeds and its standard deviation, by (arm, train_on)."""
        return {
            (row["recipe"], row["train_on"]): (float(row["accuracy"]), float(row["sd"]) if row.get("sd") else None)
            for row in self.summary
            if (row["shots"], row["classifier"]) == (str(shots), classifier)
        }


@dataclass(frozen=True)
class Evidence:
    """What the stages measured, of the recipes that are active."""

    params: Params
    workspace: Workspace
    split: Split
    evaluation: dict[str, Any]
    scores: dict[str, Score]
    gains: dict[tuple[str, str], Gain]
    records: dict[tuple[str, str], dict[str, Any]]
    guesses: dict[str, Any]
    expected: dict[str, Any]
    sweep: Sweep | None

    @property
    def plain(self) -> list[str]:
        """Active recipes that adapt nothing."""
        return [name for name in self.params.active if self.params.recipes[name].adapter == "none"]

    @property
    def adapted(self) -> list[str]:
        """Active recipes that adapt the generator."""
        return [name for name in self.params.active if name not in self.plain]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The classifiers that every arm trains, the primary one first."""
        first = self.params.primary_classifier
        return first, *(name for name in self.params.train.classifiers if name != first)

    @property
    def real_kinds(self) -> list[str]:
        """The ways of training on the real images alone that were measured with all classifiers."""
        return list(dict.fromkeys(s.train_on for s in self.scores.values() if s.arm == REAL))

    @property
    def confidence(self) -> str:
        """Of every interval, as text."""
        return f"{100 * float(self.evaluation['confidence']):g}%"

    def score(self, arm: str, train_on: str, classifier: str) -> Score | None:
        """One accuracy, where it was measured."""
        return self.scores.get(f"{arm}/{train_on}/{classifier}")

    def gain(self, of: tuple[str, str], minus: tuple[str, str], classifier: str) -> Gain | None:
        """The difference between two (arm, train_on), where it was measured."""
        return self.gains.get((f"{of[0]}/{of[1]}/{classifier}", f"{minus[0]}/{minus[1]}/{classifier}"))

    def over_real(self, recipe: str, classifier: str) -> Gain | None:
        """What a recipe's images add to the real ones, over the best run on these alone."""
        return over_real(self.gains.values(), recipe, classifier)

    def record(self, stage: str, item: str) -> dict[str, Any]:
        """The JSON that a stage left for an item; empty where there is none."""
        return self.records.get((stage, item), {})


def load(params: Params, workspace: Workspace) -> Evidence:
    """Read the results.

    Raises:
        InputError: the evaluation is missing, is not whole, or is of other recipes.
    """
    path = workspace.result("evaluate")
    evaluation = read_json(path, "dreamset evaluate")
    try:
        scores = [_score(record) for record in evaluation["runs"]]
        gains = [
            Gain(row["of"], row["minus"], row["difference"], row["low"], row["high"], row.get("mcnemar_p"))
            for row in evaluation["differences"]
        ]
        known = {score.arm for score in scores}
        for key in ("confidence", "test_images", "bootstrap", "sets", "costs"):
            evaluation[key]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not an evaluation ({error}); run `dreamset evaluate` again.") from error
    missing = [name for name in params.active if name not in known]
    if missing:
        raise InputError(f"{path}: says nothing of {', '.join(missing)}; run `dreamset evaluate` again.")
    shown = {REAL, ZERO_SHOT, *params.active}
    return Evidence(
        params=params,
        workspace=workspace,
        split=read_split(workspace.splits),
        evaluation=evaluation,
        scores={score.key: score for score in scores if score.arm in shown},
        gains={
            (gain.of, gain.minus): gain for gain in gains if {gain.of.split("/")[0], gain.minus.split("/")[0]} <= shown
        },
        records={
            (stage, item): read_json(workspace.result(stage, item), f"dreamset {stage} {item}")
            for stage in ("adapt", "generate", "train")
            for item in (REAL, *params.active)
            if workspace.result(stage, item).is_file()
        },
        guesses=_optional(workspace.plots("evaluate") / "predictions.json", "dreamset evaluate"),
        expected=_optional(workspace.result("expect"), "dreamset expect"),
        sweep=_sweep(workspace.results / "table", params, shown),
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where the file is missing."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not whole CSV ({error}); make it again.") from error


def _score(record: dict[str, Any]) -> Score:
    names = ("arm", "train_on", "classifier", "accuracy", "low", "high")
    return Score(**{name: record[name] for name in names}, record=record)


def _optional(path: Path, made_by: str) -> dict[str, Any]:
    return dict(read_json(path, made_by)) if path.is_file() else {}


def _sweep(folder: Path, params: Params, shown: set[str]) -> Sweep | None:
    """The table over seeds, of the arms that are shown; none where it was made with another setting."""
    found = _optional(folder / "setting.json", "dreamset table")
    rows = {name: row for name, row in found.get("recipes", {}).items() if name in shown}
    # As JSON has it, where tuples are lists.
    if found | {"recipes": rows} != json.loads(json.dumps(params.setting(rows.keys() & params.recipes.keys()))):
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
            if {row["of"].split("/")[0], row["minus"].split("/")[0]} <= shown
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: is not a table of claims ({error}); run `dreamset table` again.") from error
    summary = [row for row in read_csv(folder / "summary.csv") if row.get("recipe") in shown]
    if not claims:
        return None
    return Sweep(
        claims, summary, read_csv(folder / "correlations.csv"), _optional(folder / "cost.json", "dreamset table")
    )


def _ends(row: dict[str, str]) -> tuple[float, float, float]:
    return float(row["difference"]), float(row["low"]), float(row["high"])
