"""Everything that the report says, read from the results of the other stages; never from the test manifest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.data import tuned
from dreamset.data.runs import REAL, ZERO_SHOT
from dreamset.data.splits import read_split
from dreamset.metrics import claims
from dreamset.metrics.machines import differing
from dreamset.metrics.verdict import TOGETHER, Gain, over_real

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.metrics.claims import Table
    from dreamset.params import Params

_OF_A_STUDY: Final = (
    *("best", "best_trial", "space", "resource", "sampler", "pruner", "classifier", "steps", "trials"),
    *("seconds", "importance", "front", "sentences"),
)


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
class Evidence:
    """What the stages measured, of the recipes that are active; ``params`` with what studies chose in their rows."""

    params: Params
    workspace: Workspace
    split: Split
    evaluation: dict[str, Any]
    scores: dict[str, Score]
    gains: dict[tuple[str, str], Gain]
    records: dict[tuple[str, str], dict[str, Any]]
    guesses: dict[str, Any]
    expected: dict[str, Any]
    studies: dict[str, dict[str, Any]]
    table: Table

    @property
    def plain(self) -> list[str]:
        """Active recipes that adaptation is measured against."""
        return [name for name in self.params.active if self.params.recipes[name].is_baseline]

    @property
    def adapted(self) -> list[str]:
        """Active recipes that adapt the generator."""
        return [name for name in self.params.active if self.params.recipes[name].trains]

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

    def others(self, recipe: str) -> list[str]:
        """The recipes that ``recipe`` was compared with: baselines, its row before a study, and what it starts from."""
        pairs = [(gain.of.split("/")[0], gain.minus.split("/")[0]) for gain in self.gains.values()]
        return list(dict.fromkeys(minus for of, minus in pairs if of == recipe and minus != REAL))

    def over_real(self, recipe: str, classifier: str, kind: str) -> Gain | None:
        """What a recipe's images add to the real ones in ``both`` or ``both_strong``, over the best run on these."""
        return over_real(self.gains.values(), recipe, classifier, (kind,))

    def together(self, classifier: str) -> list[str]:
        """The ways of training a classifier on real and synthetic images that were measured, the verdict's first."""
        known = {score.train_on for score in self.scores.values() if score.classifier == classifier}
        return [kind for kind in TOGETHER if kind in known]

    @property
    def machines(self) -> str | None:
        """A sentence on the processors of the stages' work, where these differ."""
        parts = [
            (f"{stage} {item}", machine["device"], int(machine["threads"]))
            for (stage, item), record in self.records.items()
            for part in (record, *record.get("runs", ()))
            for machine in part.get("machines", ())
        ]
        return differing(parts)

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
    arms = {REAL, ZERO_SHOT, *params.active}
    return Evidence(
        params=functools.reduce(
            lambda chosen, name: chosen.with_values(name, tuned.values(params, workspace, name)), params.active, params
        ),
        workspace=workspace,
        split=read_split(workspace.splits),
        evaluation=evaluation,
        scores={score.key: score for score in scores if score.arm in arms},
        gains={
            (gain.of, gain.minus): gain for gain in gains if {gain.of.split("/")[0], gain.minus.split("/")[0]} <= arms
        },
        records={
            (stage, item): read_json(workspace.result(stage, item), f"dreamset {stage} {item}")
            for stage in ("adapt", "generate", "train")
            for item in (REAL, *params.active)
            if workspace.result(stage, item).is_file()
        },
        guesses=_optional(workspace.plots("evaluate") / "predictions.json", "dreamset evaluate"),
        expected=_optional(workspace.result("expect"), "dreamset expect"),
        studies={name: study for name in params.active if (study := _study(workspace, name))},
        table=claims.read(params, workspace, arms),
    )


def _score(record: dict[str, Any]) -> Score:
    names = ("arm", "train_on", "classifier", "accuracy", "low", "high")
    return Score(**{name: record[name] for name in names}, record=record)


def _study(workspace: Workspace, recipe: str) -> dict[str, Any]:
    """The record of a recipe's study; empty where nothing was searched."""
    path = workspace.result("tune", recipe)
    record = _optional(path, f"dreamset tune {recipe}")
    if not record.get("searched"):
        return {}
    missing = [name for name in _OF_A_STUDY if name not in record]
    if missing:
        raise InputError(f"{path}: has no {', '.join(missing)}; run `dreamset tune {recipe}` again.")
    return record


def _optional(path: Path, made_by: str) -> dict[str, Any]:
    return dict(read_json(path, made_by)) if path.is_file() else {}
