"""``dreamset train``: train classifiers on real images, synthetic ones, or both, with equal steps and equal effort.

``selection`` alone chooses the step of each classifier and, among ``train.configurations``, its configuration. With
``cv`` each fold repeats the whole method, so that no adapter learns from the images held out there.
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

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.runs import Kind, Run
    from dreamset.params import Params

SHARDS: Final = "shards.json"  # beside the classifiers of an arm; lists the shards that they come from


def run(
    params: Params, workspace: Workspace, arm: str, kinds: Collection[Kind] = KINDS, store: Path | None = None
) -> dict[str, Any]:
    """Train every classifier of ``arm`` and write it, its curves and the record of how it was trained.

    Args:
        params: all parameters.
        workspace: where the splits and synthetic images are, and the classifiers go.
        arm: ``real`` or an active recipe.
        kinds: the kinds of ``KINDS`` that are trained; an experiment may want few.
        store: where finished classifiers are kept; None: with all other shards.

    Returns:
        The content of ``results/train/<arm>.json``.

    Raises:
        InputError: the arm is unknown, images are missing or changed, or the split was drawn for another selection.
    """
    if arm not in arms(params):
        raise InputError(f"{arm}: is neither 'real' nor an active recipe; there are {', '.join(arms(params))}.")
    if any(run.classifier not in params.base.train.from_scratch for run in runs(params, arm)):
        from dreamset.weights import pretrained

        # Missing weights are an error now, and not after the hours that another classifier takes.
        pretrained.identity(workspace.root, params.base.clip)
    split = read_split(workspace.splits)
    if params.sets_apart != bool(split.selection):
        raise InputError(
            f"{workspace.splits}: has {'some' if split.selection else 'no'} selection images, unlike selection: "
            f"{params.selection}; run `dreamset prepare` again."
        )
    part = Part(params, workspace, split, arm, store or workspace.shards)
    trials, seconds = _over_folds(part, runs(params, arm)) if params.selection == "cv" else ({}, 0.0)
    wanted = [run for run in runs(params, arm) if run.kind in kinds or run.kind.scale is not None]
    fitted = [Fitted(part, run, trials.get(run, ())) for run in wanted]
    fitting.finish(part.store, fitted)
    final = workspace.classifiers(arm)
    with shards.assembling(final) as folder:
        records = [unit.assemble(folder / unit.run.folder) for unit in fitted]
        used = [trial.key for unit in fitted for tried in unit.trials for trial in tried]
        write_json(folder / SHARDS, [*(unit.key for unit in fitted), *used])
    sync_folder(final.parent)
    result = {
        "arm": arm,
        "shots": split.shots,
        "seed": split.seed,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": selection.labels_per_class(params.selection, split),
        # Adapting and drawing in the folds of selection: cv, once for all runs. Each run's seconds hold its training.
        "seconds_folds": round(seconds, 2),
        "runs": records,
    }
    write_json(workspace.result("train", arm), result)
    _write_plots(workspace.plots("train", arm), records)
    return result


def held_out(params: Params, workspace: Workspace, run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the logits (n, classes) of a run on the shots, each held out of a fold, and the labels (n,).

    Each fold repeats the whole method with the run's first configuration, to the last step, as ``selection: fixed``
    does. Finished trials are found again.

    Raises:
        InputError: all shots of a class are of one group.
    """
    part = Part(params, workspace, read_split(workspace.splits), run.arm, workspace.shards)
    trials, _ = _over_folds(part, [run], most=1)
    scored = fitting.pooled(trials[run][0])
    return scored.logits[max(scored.logits)], scored.labels


def _over_folds(
    whole: Part, wanted: Collection[Run], most: int | None = None
) -> tuple[dict[Run, tuple[tuple[Trial, ...], ...]], float]:
    """Return the trials of some runs of an arm by configuration and fold, and the seconds of adapting and drawing.

    At ``most`` so many configurations are tried; None: all.

    Each trial scores shots that neither its images nor its classifier were made from.
    """
    from dreamset import adapt, generate

    params, workspace, split, arm = whole.params, whole.workspace, whole.split, whole.arm
    by_run: dict[Run, list[list[Trial]]] = {}
    seconds = 0.0
    for index, left_out in enumerate(folds.held_out(split, folds.SELECTING, "selection")):
        place = folds.at(workspace, "selection", index)
        selecting = folds.absolute(left_out, workspace)
        inner = dataclasses.replace(folds.without(split, left_out, workspace), selection=selecting)
        write_split(place.splits, inner)
        if arm != REAL:
            # The fold takes the values of the workspace's study, although that has seen the shots held out here: a
            # study in each fold would choose by a few images. The images that evaluate scores are in no study.
            seconds += adapt.run_lineage(params, workspace, place, arm)
            seconds += generate.run(params, place, arm)["seconds"]
        part = Part(params, place, inner, arm, whole.store, whole.images)
        tried = {
            run: [Trial(part, run, choice, index) for choice in fitting.configurations(part, run.classifier)[:most]]
            for run in wanted
        }
        fitting.finish(part.store, [trial for trials in tried.values() for trial in trials])
        part.forget()
        for run, trials in tried.items():
            by_run.setdefault(run, []).append(trials)
    return {run: tuple(zip(*trials, strict=True)) for run, trials in by_run.items()}, seconds


def _write_plots(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write ``loss.csv`` and ``selection.csv`` for DVC's linear plots, each with all runs of an arm."""
    for file, curve, value in (("loss.csv", "loss", "loss"), ("selection.csv", "selection_curve", "accuracy")):
        rows = [{"run": f"{run['train_on']}_{run['classifier']}", **point} for run in records for point in run[curve]]
        write_csv(folder / file, rows, ("run", "step", value))
