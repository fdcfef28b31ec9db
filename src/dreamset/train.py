"""``dreamset train``: train classifiers on real images, synthetic ones, or both, with equal steps and equal effort.

``selection`` alone chooses the step of each classifier and, among ``train.configurations``, its configuration. With
``cv`` each fold repeats the whole method, so that no adapter learns from the images held out there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Final

from dreamset import compute
from dreamset.classifiers import fitting, selection
from dreamset.classifiers.fitting import Fitted, Trial
from dreamset.classifiers.parts import Part, learned
from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import sync_folder, write_csv, write_json
from dreamset.data import folds, tuned
from dreamset.data.runs import KINDS, REAL, arms, runs
from dreamset.data.splits import read_split, write_split

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.runs import Kind, Run
    from dreamset.data.splits import Sample, Split
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
    quick = set(params.train.simple_classifiers)
    alone = {*params.base.train.from_scratch, *(name for name in quick if not name.endswith("_clip"))}
    if any(run.classifier not in alone for run in runs(params, arm)):
        from dreamset.weights import pretrained

        # Missing weights are an error now, and not after the hours that another classifier takes.
        pretrained.identity(workspace.root, params.base.clip)
    if any(name.endswith("_judge") for name in quick) and arm == REAL:
        from dreamset.weights import judging

        judging.identity(workspace.root, params.base)
    split = read_split(workspace.splits)
    if params.sets_apart != bool(split.selection):
        raise InputError(
            f"{workspace.splits}: has {'some' if split.selection else 'no'} selection images, unlike selection: "
            f"{params.selection}; run `dreamset prepare` again."
        )
    part = _part(params, workspace, split, arm, store or workspace.shards)
    every = [run for run in runs(params, arm) if run.classifier not in quick]
    trials, seconds = _over_folds(params, part, every) if params.selection == "cv" else ({}, 0.0)
    wanted = [run for run in every if run.kind in kinds or run.kind.scale is not None]
    fitted = [Fitted(part, run, trials.get(run, ())) for run in wanted]
    simple = [run for run in runs(params, arm) if run.classifier in quick and run.kind in kinds]
    if simple:
        from dreamset.classifiers import simple_fit

        fitted += simple_fit.units(part, simple)
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


def held_out(params: Params, workspace: Workspace, wanted: Collection[Run]) -> dict[Run, NDArray[np.float32]]:
    """Return the logits (n, classes) of some runs on the n shots, in their order, each held out of a fold.

    Each fold repeats the whole method with the run's first configuration, to the last step, as ``selection: fixed``
    does. Finished trials are found again. The simple classifiers have made their folds when they were fitted.

    Raises:
        InputError: all shots of a class are of one group, or a simple classifier is missing.
    """
    import numpy as np

    split = read_split(workspace.splits)
    place = {sample.path: row for row, sample in enumerate(split.train)}
    parts = folds.held_out(split, folds.SELECTING, "selection")
    order = np.argsort([place[sample.path] for part in parts for sample in part])
    quick = [run for run in wanted if run.classifier in params.train.simple_classifiers]
    logits = {run: fitting.by_folds(workspace.classifiers(run.arm) / run.folder) for run in quick}
    for arm in dict.fromkeys(run.arm for run in wanted):
        slow = [run for run in wanted if run.arm == arm and run not in logits]
        if slow:
            part = _part(params, workspace, split, arm, workspace.shards)
            trials, _ = _over_folds(params, part, slow, most=1)
            for run in slow:
                scored = fitting.pooled(trials[run][0])
                logits[run] = scored.logits[max(scored.logits)][order]
    return {run: logits[run] for run in wanted}


def _part(params: Params, workspace: Workspace, split: Split, arm: str, store: Path) -> Part:
    """Return the images of an arm, under the parameters that are its own; its steps follow those of all arms."""
    own = params if arm == REAL else tuned.applied(params, workspace, arm)
    return Part(own, workspace, split, arm, store, learned(params, split))


def _over_folds(
    params: Params, whole: Part, wanted: Collection[Run], most: int | None = None
) -> tuple[dict[Run, tuple[tuple[Trial, ...], ...]], float]:
    """Return the trials of some runs of an arm by configuration and fold, and the seconds of adapting and drawing.

    At ``most`` so many configurations are tried; None: all. ``params`` is as in the file, with nothing applied.

    Each trial scores shots that neither its images nor its classifier were made from.
    """
    parts = [*enumerate(folds.held_out(whole.split, folds.SELECTING, "selection"))]
    if len(parts) > 1 and compute.spreads(whole.params.compute):
        # Below everything is found finished.
        make = functools.partial(_make_fold, params, whole, wanted, most)
        compute.each(whole.params.compute, whole.workspace.root, make, parts, what=f"folds of {whole.arm}")
    by_run: dict[Run, list[list[Trial]]] = {}
    seconds = 0.0
    for part in parts:
        # A fold's images have absolute paths, which hold on other machines only where these share the folder.
        with compute.inline(whole.params.compute.store is not None):
            tried, spent = _over_fold(params, whole, wanted, most, *part)
        seconds += spent
        for run, trials in tried.items():
            by_run.setdefault(run, []).append(trials)
    return {run: tuple(zip(*trials, strict=True)) for run, trials in by_run.items()}, seconds


def _make_fold(
    params: Params, whole: Part, wanted: Collection[Run], most: int | None, part: tuple[int, tuple[Sample, ...]]
) -> None:
    """Make the trials of a fold, for the caller to find."""
    _over_fold(params, whole, wanted, most, *part)


def _over_fold(
    params: Params, whole: Part, wanted: Collection[Run], most: int | None, index: int, left_out: tuple[Sample, ...]
) -> tuple[dict[Run, list[Trial]], float]:
    """Return the trials of some runs in a fold, and the seconds of adapting and drawing; see ``_over_folds``."""
    from dreamset import adapt, generate

    workspace, split, arm = whole.workspace, whole.split, whole.arm
    place, seconds = folds.at(workspace, "selection", index), 0.0
    selecting = folds.absolute(left_out, workspace)
    inner = dataclasses.replace(folds.without(split, left_out, workspace), selection=selecting)
    write_split(place.splits, inner)
    if arm != REAL:
        # The fold takes the values of the workspace's study, although that has seen the shots held out here: a
        # study in each fold would choose by a few images. The images that evaluate scores are in no study.
        seconds += adapt.run_lineage(params, workspace, place, arm)
        seconds += generate.run(params, place, arm)["seconds"]
    part = Part(whole.params, place, inner, arm, whole.store, whole.images)
    tried = {
        run: [Trial(part, run, choice, index) for choice in fitting.configurations(part, run.classifier)[:most]]
        for run in wanted
    }
    fitting.finish(part.store, [trial for trials in tried.values() for trial in trials])
    part.forget()
    return tried, seconds


def _write_plots(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write ``loss.csv`` and ``selection.csv`` for DVC's linear plots, each with all runs of an arm."""
    for file, curve, value in (("loss.csv", "loss", "loss"), ("selection.csv", "selection_curve", "accuracy")):
        rows = [{"run": f"{run['train_on']}_{run['classifier']}", **point} for run in records for point in run[curve]]
        write_csv(folder / file, rows, ("run", "step", value))
