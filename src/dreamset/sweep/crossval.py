"""Outer cross-validation: every labelled image is scored by classifiers that nothing of it has reached.

In each fold's workspace all that learns is done again without the images that the fold holds out: adapting, tuning,
drawing, selecting and training. What is scored there is an estimate for the delivered classifiers, which learn from
all images.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset import generate, train, tune
from dreamset.core import audit, locks
from dreamset.core.files import atomic_write, digest, read_json, sha256_file, write_json
from dreamset.core.progress import bar
from dreamset.data.folds import Scored
from dreamset.data.runs import REAL, Run, arms
from dreamset.data.splits import TestSplit, write_split, write_test
from dreamset.drawing import pools
from dreamset.params import to_dict
from dreamset.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from dreamset.data.folds import Fold, Scorer
    from dreamset.params import Params

# Sections that change no fold: what is drawn into it stands in its manifest, and its logits are the same however they
# are counted.
_NOT_THE_FOLDS: Final = (
    *("accept_licence", "active", "after", "deliver", "evaluate", "expect", "prepare", "primary", "recipes", "report"),
    *("shots", "track", "tune"),
)
_CLASSIFIERS: Final = "fitted"  # folder of a fold's finished classifiers until all of its arms are scored


def run(params: Params, plan: list[Fold], score: Scorer) -> list[Scored]:
    """Do everything that learns in every fold, and score it on what the fold holds out.

    What is finished is not done again while its parameters, its images and the code are the same; of what is not,
    adapters go on from their last checkpoint, images and classifiers after the last that is finished.

    Args:
        params: all parameters.
        plan: the folds.
        score: from a fold and an arm to the logits (held images, classes) of the arm's classifiers, by name.

    Returns:
        For each fold the logits of all arms, and the temperatures of the classifiers.
    """
    every = arms(params)
    found = [Scored({}, {}) for _ in plan]
    with bar(total=len(plan) * len(every), what="cross-validation", unit="arm") as progress:
        for index, fold in enumerate(plan):
            _write_manifests(fold)
            for arm in every:
                progress.set_description(f"fold {fold.index + 1} of {len(plan)}, {arm}")
                locks.boundary()
                logits, temperatures = _scored(params, fold, arm, score)
                found[index].logits.update(logits)
                found[index].temperatures.update(temperatures)
                progress.update()
            shutil.rmtree(fold.workspace.cell / _CLASSIFIERS, ignore_errors=True)
    return found


def _write_manifests(fold: Fold) -> None:
    """The fold's own manifests; those of another fold that stood here go, with all that was made of them."""
    place = fold.workspace
    own = digest([dataclasses.asdict(fold.split), [dataclasses.asdict(sample) for sample in fold.held_out]])
    path = place.cell / "fold.json"
    if not path.is_file() or read_json(path, "dreamset evaluate") != {"images": own}:
        shutil.rmtree(place.cell, ignore_errors=True)
        write_split(place.splits, fold.split)
        write_test(place.test_split, TestSplit(fold.split.classes, fold.held_out))
        write_json(path, {"images": own})


def _scored(params: Params, fold: Fold, arm: str, score: Scorer) -> Scored:
    """The logits and temperatures of an arm, read where they are finished."""
    from safetensors.numpy import load, save

    place = fold.workspace
    record, file = place.cell / f"scored/{arm}.json", place.cell / f"scored/{arm}.safetensors"
    # Before the work: what changes while it goes on is not what it was made with.
    made_with = _made_with(params, fold, arm)
    if not _finished(record, file, made_with):
        # Else a kill between the two files of this run would leave new logits beside the record of others.
        record.unlink(missing_ok=True)
        with audit.closed(place, also=[Path(sample.path) for sample in fold.held_out]):
            if arm != REAL:
                tune.adapt_and_tune(params, place, arm)
                generate.run(params, place, arm)
            train.run(params, place, arm, store=place.cell / _CLASSIFIERS)
        scored = score(fold, arm)
        atomic_write(file, save({str(run): logits for run, logits in scored.logits.items()}))
        temperatures = {str(run): temperature for run, temperature in scored.temperatures.items()}
        facts = {"made_with": made_with, "sha256": sha256_file(file), "temperatures": temperatures}
        write_json(record, facts)
        # Only their logits are wanted, and classifiers of the size of CLIP fill a disk.
        shutil.rmtree(place.classifiers(arm))
    logits = load(file.read_bytes())
    # The file keeps no order of its own.
    recorded = read_json(record, "dreamset evaluate")["temperatures"]
    by_run = {Run.parse(key): temperature for key, temperature in recorded.items()}
    return Scored({run: logits[str(run)] for run in by_run}, by_run)


def _made_with(params: Params, fold: Fold, arm: str) -> str:
    settings: dict[str, Any] = {
        name: value for name, value in to_dict(params).items() if name not in (*_NOT_THE_FOLDS, "models")
    }
    settings |= {"base": to_dict(params.base), "arm": arm, "split": dataclasses.asdict(fold.split)}
    settings |= {"recipe": None if arm == REAL else params.making(arm)}
    settings |= {"held": [sample.sha256 for sample in fold.held_out]}
    if arm != REAL and not params.recipes[arm].draws:
        settings |= {"searched": pools.searched(params, fold.workspace)}
    return fingerprint(settings, fold.workspace.root, params.base, __name__)


def _finished(record: Path, file: Path, made_with: str) -> bool:
    if not (record.is_file() and file.is_file()):
        return False
    found = read_json(record, "dreamset evaluate")
    return bool(found["made_with"] == made_with and found["sha256"] == sha256_file(file))
