"""``dreamset train``: classifiers on real images, synthetic ones, or both, in equal optimizer steps and equal effort.

What ``selection`` says chooses the step and, among ``train.configurations``, the configuration of each; nothing else
does. With ``cv`` the whole of the method is repeated in each fold: what is held out there is adapted to by nobody.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import fitting, selection
from dreamset.classifiers.fitting import Fitted, Trial
from dreamset.classifiers.parts import Part
from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import sync_folder, write_csv, write_json
from dreamset.data import folds
from dreamset.data.runs import KINDS, REAL, arms, runs
from dreamset.data.splits import read_split, write_split

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.runs import Kind, Run
    from dreamset.params import Params

SHARDS: Final = "shards.json"  # beside the classifiers of an arm: the shards that they were assembled from


def run(
    params: Params, workspace: Workspace, arm: str, kinds: Collection[Kind] = KINDS, store: Path | None = None
) -> dict[str, Any]:
    """Train every classifier of ``arm`` and write it, its curves and the record of how it was trained.

    Args:
        params: all parameters.
        workspace: where the splits and synthetic images are, and the classifiers go.
        arm: ``real`` or an active recipe.
        kinds: of the runs of ``KINDS``, which are trained; an experiment may want few.
        store: where finished classifiers are kept; None: with all other shards.

    Raises:
        InputError: an unknown arm, images that are missing or changed, or a split that was drawn for another selection.
    """
    if arm not in arms(params):
        raise InputError(f"{arm}: is neither 'real' nor an active recipe; there are {', '.join(arms(params))}.")
    if any(run.classifier not in params.base.train.from_scratch for run in runs(params, arm)):
        from dreamset.weights import pretrained

        # Weights that are missing are told now, and not after the hours that another classifier takes.
        pretrained.identity(workspace.root, params.base.clip)
    split = read_split(workspace.splits)
    if params.sets_apart != bool(split.selection):
        raise InputError(
            f"{workspace.splits}: has {'some' if split.selection else 'no'} selection images, unlike selection: "
            f"{params.selection}; run `dreamset prepare` again."
        )
    part = Part(params, workspace, split, arm, store or workspace.shards)
    trials, seconds = _over_folds(part) if params.selection == "cv" else ({}, 0.0)
    wanted = [run for run in runs(params, arm) if run.kind in kinds or run.kind.scale is not None]
    fitted = [Fitted(part, run, trials.get(run, ())) for run in wanted]
    fitting.finish(part.store, fitted)
    final = workspace.classifiers(arm)
    with shards.assembling(final) as folder:
        records = [own.assemble(folder / own.run.folder) for own in fitted]
        used = [trial.key for own in fitted for tried in own.trials for trial in tried]
        write_json(folder / SHARDS, [*(own.key for own in fitted), *used])
    sync_folder(final.parent)
    result = {
        "arm": arm,
        "shots": split.shots,
        "seed": split.seed,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": selection.labels_per_class(params.selection, split),
        # What the folds of selection: cv adapted and drew, once for all runs; what they trained is in each run's.
        "seconds_folds": round(seconds, 2),
        "runs": records,
    }
    write_json(workspace.result("train", arm), result)
    _write_plots(workspace.plots("train", arm), records)
    return result


def _over_folds(whole: Part) -> tuple[dict[Run, tuple[tuple[Trial, ...], ...]], float]:
    """For every run of an arm its trials by configuration, over the folds: each scored on shots it was made without.

    With them goes how many seconds it took to adapt and draw in the folds.
    """
    from dreamset import adapt, generate

    params, workspace, split, arm = whole.params, whole.workspace, whole.split, whole.arm
    found: dict[Run, list[list[Trial]]] = {}
    seconds = 0.0
    for index, held in enumerate(folds.held_out(split, folds.SELECTING, "selection")):
        place = folds.at(workspace, "selection", index)
        own = dataclasses.replace(folds.without(split, held, workspace), selection=folds.absolute(held, workspace))
        write_split(place.splits, own)
        if arm != REAL:
            # With what the workspace's study chose: it has seen the shots that are held out here, and a study in each
            # of these folds would choose by a few images. What evaluate scores is held out of the study, too.
            seconds += adapt.run_lineage(params, workspace, place, arm)
            seconds += generate.run(params, place, arm)["seconds"]
        part = Part(params, place, own, arm, whole.store)
        tried = {
            run: [Trial(part, run, one, index) for one in fitting.configurations(params, run.classifier)]
            for run in runs(params, arm)
        }
        fitting.finish(part.store, [trial for trials in tried.values() for trial in trials])
        part.forget()
        for run, trials in tried.items():
            found.setdefault(run, []).append(trials)
    return {run: tuple(zip(*trials, strict=True)) for run, trials in found.items()}, seconds


def _write_plots(folder: Path, records: list[dict[str, Any]]) -> None:
    """``loss.csv`` and ``selection.csv`` for DVC's linear plots, all runs of an arm in each."""
    for file, curve, value in (("loss.csv", "loss", "loss"), ("selection.csv", "selection_curve", "accuracy")):
        rows = [{"run": f"{run['train_on']}_{run['classifier']}", **point} for run in records for point in run[curve]]
        write_csv(folder / file, rows, ("run", "step", value))
