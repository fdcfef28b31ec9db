"""The numbers of the report, read from the results of the other stages and never from the test manifest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.data import tuned
from dreamset.data.runs import REAL, ZERO_SHOT, Kind, Run
from dreamset.data.splits import read_split
from dreamset.metrics import claims
from dreamset.metrics.gains import TOGETHER, Gain, over_real
from dreamset.metrics.machines import differing

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.metrics.claims import Table
    from dreamset.params import Params

_STUDY_FIELDS: Final = (
    *("best", "best_trial", "space", "resource", "sampler", "pruner", "classifier", "steps", "trials"),
    *("seconds", "importance", "front", "sentences"),
)


@dataclass(frozen=True)
class Score:
    """The accuracy of a run on the images that score it, with its interval and its whole record."""

    run: Run
    accuracy: float
    low: float
    high: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The results of the stages for the active recipes; the rows of ``params`` hold the values that studies chose."""

    params: Params
    workspace: Workspace
    split: Split
    evaluation: dict[str, Any]
    scores: dict[Run, Score]
    gains: dict[tuple[Run, Run], Gain]
    records: dict[tuple[str, str], dict[str, Any]]
    guesses: dict[str, Any]
    mistakes: dict[str, Any]
    delivered: dict[str, Any]
    expected: dict[str, Any]
    prepared: dict[str, Any]
    studies: dict[str, dict[str, Any]]
    table: Table

    @property
    def plain(self) -> list[str]:
        """The active recipes that adaptation is measured against."""
        return [name for name in self.params.active if self.params.recipes[name].is_baseline]

    @property
    def adapted(self) -> list[str]:
        """The active recipes that adapt the generator."""
        return [name for name in self.params.active if self.params.recipes[name].trains]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The classifiers that every arm trains, the primary one first."""
        first = self.params.primary_classifier
        return first, *(name for name in self.params.train.classifiers if name != first)

    @property
    def real_kinds(self) -> list[Kind]:
        """The ways of training on the real images alone that were measured."""
        return list(dict.fromkeys(run.kind for run in self.scores if run.arm == REAL and run.kind.whole))

    @property
    def confidence(self) -> str:
        """The confidence of every interval, as text."""
        return f"{100 * float(self.evaluation['confidence']):g}%"

    @property
    def level(self) -> float:
        """The level of every test."""
        return 1 - float(self.evaluation["confidence"])

    def others(self, recipe: str) -> list[str]:
        """Return the recipes that ``recipe`` was compared with: baselines, its row before a study, and its start."""
        pairs = [(of.arm, minus.arm) for of, minus in self.gains]
        return list(dict.fromkeys(minus for of, minus in pairs if of == recipe and minus != REAL))

    def over_real(self, recipe: str, classifier: str, kind: Kind) -> Gain | None:
        """Return the gain of a recipe's images beside the real ones over the best run on the real ones alone."""
        return over_real(self.gains.values(), recipe, classifier, (kind,))

    def together(self, classifier: str) -> list[Kind]:
        """Return the measured kinds of a classifier's runs on real and synthetic images, the verdict's first."""
        measured = {run.kind for run in self.scores if run.classifier == classifier}
        return [kind for kind in TOGETHER if kind in measured]

    @property
    def machines(self) -> str | None:
        """A sentence on the processors that the stages ran on; None where all are alike."""
        parts = [
            (f"{stage} {item}", machine["device"], int(machine["threads"]))
            for (stage, item), record in self.records.items()
            for part in (record, *record.get("runs", ()))
            for machine in part.get("machines", ())
        ]
        return differing(parts)

    def record(self, stage: str, item: str) -> dict[str, Any]:
        """Return the record that a stage left for an item; an empty one where there is none."""
        return self.records.get((stage, item), {})


def load(params: Params, workspace: Workspace) -> Evidence:
    """Return the results of all stages.

    Raises:
        InputError: the evaluation is missing, is not whole, or is of other recipes.
    """
    path = workspace.result("evaluate")
    evaluation = read_json(path, "dreamset evaluate")
    try:
        scores = [_score(record) for record in evaluation["runs"]]
        gains = [Gain.read(row, row.get("mcnemar_p")) for row in evaluation["differences"]]
        for key in ("confidence", "test_images", "bootstrap", "sets", "costs"):
            evaluation[key]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not an evaluation ({error}); run `dreamset evaluate` again.") from error
    measured = {score.run.arm for score in scores}
    missing = [name for name in params.active if name not in measured]
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
        scores={score.run: score for score in scores if score.run.arm in arms},
        gains={(gain.of, gain.minus): gain for gain in gains if {gain.of.arm, gain.minus.arm} <= arms},
        records={
            (stage, item): read_json(workspace.result(stage, item), f"dreamset {stage} {item}")
            for stage in ("adapt", "generate", "train")
            for item in (REAL, *params.active)
            if workspace.result(stage, item).is_file()
        },
        guesses=_optional(workspace.plots("evaluate") / "predictions.json", "dreamset evaluate"),
        mistakes=_optional(workspace.mistakes / "mistakes.json", "dreamset evaluate"),
        delivered=_optional(workspace.result("deliver"), "dreamset deliver"),
        expected=_optional(workspace.result("expect"), "dreamset expect"),
        prepared=_optional(workspace.result("prepare"), "dreamset prepare"),
        studies={name: study for name in params.active if (study := _study(workspace, name))},
        table=claims.read(params, workspace, arms),
    )


def _score(record: dict[str, Any]) -> Score:
    run = Run(record["arm"], Kind.parse(record["train_on"]), record["classifier"])
    return Score(run, record["accuracy"], record["low"], record["high"], record)


def _study(workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the record of a recipe's study; an empty one where nothing was searched."""
    path = workspace.result("tune", recipe)
    record = _optional(path, f"dreamset tune {recipe}")
    if not record.get("searched"):
        return {}
    missing = [name for name in _STUDY_FIELDS if name not in record]
    if missing:
        raise InputError(f"{path}: has no {', '.join(missing)}; run `dreamset tune {recipe}` again.")
    return record


def _optional(path: Path, made_by: str) -> dict[str, Any]:
    return dict(read_json(path, made_by)) if path.is_file() else {}
