"""Outer cross-validation: every labelled image is scored by classifiers that learned without it.

The workspace of each fold repeats all learning without the images that the fold holds out: adapting, tuning, drawing,
selecting and training. The scores there are an estimate for the delivered classifiers, which learn from all images.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import compute, generate, train, tune
from dreamset.core import audit, locks
from dreamset.core.files import atomic_write, digest, read_json, sha256_file, write_json
from dreamset.core.progress import bar
from dreamset.data.asking import files_digest
from dreamset.data.folds import Predictions
from dreamset.data.runs import REAL, Run, arms
from dreamset.data.splits import TestSplit, write_split, write_test
from dreamset.drawing import pools
from dreamset.params import to_dict
from dreamset.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from dreamset.data.folds import Fold, Scorer
    from dreamset.params import Params

# Sections of params.yaml that change no fold: its manifest holds the images drawn for it, and its logits do not depend
# on how they are evaluated.
_NOT_THE_FOLDS: Final = (
    *("accept_licence", "active", "after", "compute", "deliver", "evaluate", "expect", "prepare", "primary", "recipes"),
    *("report", "shots", "track", "tune"),
)
_CLASSIFIERS: Final = "fitted"  # folder of a fold's finished classifiers until all of its arms are scored


def run(params: Params, plan: list[Fold], score: Scorer) -> list[Predictions]:
    """Repeat all learning in every fold, and score the classifiers on the images that the fold holds out.

    Finished work is not repeated while its parameters, its images and the code are the same. Unfinished adapters go on
    from their last checkpoint, images and classifiers after the last finished one.

    Args:
        params: all parameters.
        plan: the folds.
        score: from a fold and an arm to the logits (images held out, classes) and temperatures of the arm's
            classifiers.

    Returns:
        For each fold the logits of all arms, and the temperatures of the classifiers.
    """
    every = arms(params)
    learn = functools.partial(_learn, params, score.__module__)
    if len(plan) > 1 and compute.spreads(params.compute):
        # Below everything is found finished.
        compute.each(params.compute, plan[0].workspace.root, learn, plan, what="cross-validation")
    by_fold = [Predictions({}, {}) for _ in plan]
    with bar(total=len(plan) * len(every), what="cross-validation", unit="arm") as progress:
        for index, fold in enumerate(plan):
            _write_manifests(fold)
            for arm in every:
                progress.set_description(f"fold {fold.index + 1} of {len(plan)}, {arm}")
                locks.boundary()
                logits, temperatures = _scored(params, fold, arm, score)
                by_fold[index].logits.update(logits)
                by_fold[index].temperatures.update(temperatures)
                progress.update()
            shutil.rmtree(fold.workspace.cell / _CLASSIFIERS, ignore_errors=True)
    return by_fold


def _write_manifests(fold: Fold) -> None:
    """Write the fold's manifests; if its folder holds another fold's, that fold's work is removed first."""
    place = fold.workspace
    images = digest([dataclasses.asdict(fold.split), [dataclasses.asdict(sample) for sample in fold.held_out]])
    path = place.cell / "fold.json"
    if not path.is_file() or read_json(path, "dreamset evaluate") != {"images": images}:
        shutil.rmtree(place.cell, ignore_errors=True)
        write_split(place.splits, fold.split)
        write_test(place.test_split, TestSplit(fold.split.classes, fold.held_out))
        write_json(path, {"images": images})


def _scored(params: Params, fold: Fold, arm: str, score: Scorer) -> Predictions:
    """Return the logits and temperatures of an arm; finished ones are read and not computed again."""
    from safetensors.numpy import load, save

    place = fold.workspace
    record, file = place.cell / f"scored/{arm}.json", place.cell / f"scored/{arm}.safetensors"
    # Hashed before the work, which does not depend on later changes.
    made_with = _made_with(params, fold, arm, score.__module__)
    if not _finished(record, file, made_with):
        # A kill between the two writes below must not leave new logits beside an old record.
        record.unlink(missing_ok=True)
        _learn_arm(params, fold, arm)
        scored = score(fold, arm)
        atomic_write(file, save({str(run): logits for run, logits in scored.logits.items()}))
        temperatures = {str(run): temperature for run, temperature in scored.temperatures.items()}
        facts = {"made_with": made_with, "sha256": sha256_file(file), "temperatures": temperatures}
        write_json(record, facts)
        # Only the logits are needed, and classifiers of CLIP's size would fill the disk.
        shutil.rmtree(place.classifiers(arm))
    logits = load(file.read_bytes())
    # The file of logits keeps no order, so that of the record is used.
    recorded = read_json(record, "dreamset evaluate")["temperatures"]
    by_run = {Run.parse(key): temperature for key, temperature in recorded.items()}
    return Predictions({run: logits[str(run)] for run in by_run}, by_run)


def _learn(params: Params, scorer: str, fold: Fold) -> None:
    """Repeat the learning of every arm in a fold; it is scored elsewhere."""
    _write_manifests(fold)
    for arm in arms(params):
        locks.boundary()
        record, file = (fold.workspace.cell / f"scored/{arm}{end}" for end in (".json", ".safetensors"))
        if not _finished(record, file, _made_with(params, fold, arm, scorer)):
            _learn_arm(params, fold, arm)


def _learn_arm(params: Params, fold: Fold, arm: str) -> None:
    """Adapt, tune, draw and train without the images that a fold holds out, which are closed meanwhile."""
    place = fold.workspace
    # Its images have absolute paths, which hold on other machines only where these share the folder.
    alone = compute.inline(params.compute.store is not None)
    with alone, audit.closed(place, also=[Path(sample.path) for sample in fold.held_out]):
        if arm != REAL:
            tune.adapt_and_tune(params, place, arm)
            generate.run(params, place, arm)
        train.run(params, place, arm, store=place.cell / _CLASSIFIERS)


def _made_with(params: Params, fold: Fold, arm: str, scorer: str) -> str:
    """Return the hash of all that decides the predictions of an arm in a fold; ``scorer`` is the module that scores."""
    settings: dict[str, Any] = {
        name: value for name, value in to_dict(params).items() if name not in (*_NOT_THE_FOLDS, "models")
    }
    base = {name: value for name, value in to_dict(params.base).items() if name != "attributes"}
    settings |= {"base": base, "arm": arm, "split": dataclasses.asdict(fold.split)}
    settings |= {"recipe": None if arm == REAL else params.making(arm)}
    if arm != REAL and (asked := files_digest(params, fold.workspace.root, arm)):
        settings["asked"] = asked
    settings |= {"held": [sample.sha256 for sample in fold.held_out]}
    if arm != REAL and not params.recipes[arm].draws:
        settings |= {"searched": pools.searched(params, fold.workspace), "max_pixels": params.prepare.max_pixels}
        settings |= params.prepare.decoding.changes
    return fingerprint(settings, fold.workspace.root, params.base, __name__, scorer)


def _finished(record: Path, file: Path, made_with: str) -> bool:
    if not (record.is_file() and file.is_file()):
        return False
    facts = read_json(record, "dreamset evaluate")
    return bool(facts["made_with"] == made_with and facts["sha256"] == sha256_file(file))
