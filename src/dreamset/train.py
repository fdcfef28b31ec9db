"""``dreamset train``: classifiers on real images, synthetic ones, or both, in equal optimizer steps and equal effort.

What ``selection`` says chooses the step and, among ``train.configurations``, the configuration of each; nothing else
does. With ``cv`` the whole of the method is repeated in each fold: what is held out there is adapted to by nobody.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import FROM_SCRATCH, fitting, parts, selection
from dreamset.classifiers.fitting import Fitted, Trial
from dreamset.classifiers.parts import Part, scaled
from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import sync_folder, write_csv, write_json
from dreamset.data import folds
from dreamset.data.splits import read_split, write_split

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

# Of the arm `real`: the shots; the shots strongly augmented; and what `selection` sets apart trained on as well, to the
# last step, for that is what else its labels are good for. Of a recipe: its images alone, with the shots, and with the
# shots all strongly augmented; and, as `synthetic_x2`, the first twice as many of its images as there are shots.
KINDS: Final = ("real", "real_strong", "real_more", "synthetic", "both", "both_strong")
REAL: Final = parts.REAL
SHARDS: Final = "shards.json"  # beside the classifiers of an arm: what they were assembled from


def arms(params: Params) -> tuple[str, ...]:
    """What ``run`` can train: the real images alone, and each active recipe."""
    return (REAL, *params.active)


def train_on(params: Params, arm: str, name: str) -> tuple[str, ...]:
    """Which images the classifier ``name`` of ``train.classifiers`` learns from in an arm."""
    if arm != REAL:
        # Strongly augmented for the verdict alone, where it stands against the real images strongly augmented.
        return ("synthetic", "both", "both_strong") if name == params.primary_classifier else ("synthetic", "both")
    return ("real", "real_strong", "real_more") if params.sets_apart else ("real", "real_strong")


def runs(params: Params, arm: str) -> tuple[tuple[str, str], ...]:
    """Everything that is trained in an arm: (train_on, classifier), with ``train.baselines`` on the shots alone.

    The runs of ``train.scales`` take as many optimizer steps as any other, whatever the size of their sets.
    """
    found = [(kind, name) for name in params.train.classifiers for kind in train_on(params, arm, name)]
    if arm == REAL:
        found += [("real", name) for name in params.train.baselines]
    if params.scales:
        # The curve and what it is compared with, the same classifier on the real images alone.
        kinds = ("real", "real_strong") if arm == REAL else map(scaled, params.scales)
        found += [(kind, params.base.tune.classifier) for kind in kinds]
    return tuple(dict.fromkeys(found))


def run(
    params: Params, workspace: Workspace, arm: str, kinds: Collection[str] = KINDS, store: Path | None = None
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
    if any(name not in FROM_SCRATCH for _, name in runs(params, arm)):
        from dreamset import classifiers

        # Weights that are missing are told now, and not after the hours that another classifier takes.
        classifiers.identity(workspace.root, params.base.clip)
    split = read_split(workspace.splits)
    if params.sets_apart != bool(split.selection):
        raise InputError(
            f"{workspace.splits}: has {'some' if split.selection else 'no'} selection images, unlike selection: "
            f"{params.selection}; run `dreamset prepare` again."
        )
    part = Part(params, workspace, split, arm, store or workspace.shards)
    trials, seconds = _over_folds(part) if params.selection == "cv" else ({}, 0.0)
    wanted = [(kind, name) for kind, name in runs(params, arm) if kind in kinds or kind not in KINDS]
    fitted = [Fitted(part, kind, name, trials.get((kind, name), ())) for kind, name in wanted]
    fitting.finish(part.store, fitted)
    final = workspace.classifiers(arm)
    with shards.assembling(final) as folder:
        records = [own.assemble(folder / f"{own.kind}_{own.name}") for own in fitted]
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


def _over_folds(whole: Part) -> tuple[dict[tuple[str, str], tuple[tuple[Trial, ...], ...]], float]:
    """For every run of an arm its trials by configuration, over the folds: each scored on shots it was made without.

    With them goes how many seconds it took to adapt and draw in the folds.
    """
    from dreamset import generate, inherit

    params, workspace, split, arm = whole.params, whole.workspace, whole.split, whole.arm
    found: dict[tuple[str, str], list[list[Trial]]] = {}
    seconds = 0.0
    for index, held in enumerate(folds.held_out(split, folds.SELECTING, "selection")):
        place = folds.at(workspace, "selection", index)
        own = dataclasses.replace(folds.without(split, held, workspace), selection=folds.absolute(held, workspace))
        write_split(place.splits, own)
        if arm != REAL:
            # With what the workspace's study chose: it has seen the shots that are held out here, and a study in each
            # of these folds would choose by a few images. What evaluate scores is held out of the study, too.
            seconds += inherit.adapted(params, workspace, place, arm) + generate.run(params, place, arm)["seconds"]
        part = Part(params, place, own, arm, whole.store)
        tried = {
            (kind, name): [Trial(part, kind, name, one, index) for one in fitting.configurations(params, name)]
            for kind, name in runs(params, arm)
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
