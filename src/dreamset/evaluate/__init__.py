"""``dreamset evaluate``: measure classifiers and synthetic images on images that nothing has learned from.

Under ``protocol: test`` these are the test images, which no other stage opens. Under ``cv`` they are the shots: each
is held out of one fold, and that fold repeats all learning without it (``dreamset.sweep.crossval``). The predictions
of all folds are then measured together, image by image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import selection
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.data import primary
from dreamset.data.runs import REAL, arms
from dreamset.data.splits import read_split, read_test
from dreamset.evaluate import output, records, scoring, slices
from dreamset.metrics import verdict
from dreamset.params.tree import AUTO
from dreamset.weights import judging, pretrained

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.data.folds import CrossValidate
    from dreamset.params import Params

_ACCURACY_OF: Final = {
    "test": "the delivered classifiers, on test images",
    "cv": "the classifiers of the folds, as an estimate for the delivered ones, which learn from all shots that "
    "selection leaves",
}


def run(params: Params, workspace: Workspace, cross_validate: CrossValidate) -> dict[str, Any]:
    """Score every classifier and every synthetic dataset on images that they were not made from.

    Args:
        params: all parameters.
        workspace: where the classifiers, the datasets and the manifests are.
        cross_validate: repeats all learning in each fold and scores it there; called under ``protocol: cv`` alone.

    Returns:
        The content of ``results/evaluate.json``.

    Raises:
        InputError: a classifier, a dataset or a manifest is missing or has other classes; all shots of a class are of
            one group under cross-validation; or ``primary: auto`` has nothing from ``expect``.
    """
    from dreamset.metrics import accuracy, mcnemar

    chosen = {"primary": primary.decision(workspace)} if params.primary == AUTO else {}
    params = primary.settle(params, workspace)
    split, test_split = read_split(workspace.splits), read_test(workspace.test_split)
    if split.classes != test_split.classes:
        raise InputError(f"{workspace.test_split}: has other classes than the shots; run `dreamset prepare` again.")
    if params.evaluate.protocol not in (None, split.protocol):
        raise InputError(
            f"{workspace.splits}: was drawn for evaluate.protocol: {split.protocol}; run `dreamset prepare` again."
        )
    trained = {arm: read_json(workspace.result("train", arm), f"dreamset train {arm}") for arm in arms(params)}
    if split.protocol == "cv":
        scored = scoring.over_folds(params, workspace, split, cross_validate)
    elif test_split.test:
        scored = scoring.on_test_images(params, workspace, split, test_split)
    else:
        raise InputError(f"{workspace.test_split}: holds no images; run `dreamset prepare` again.")
    logits, labels, touched = scored.logits, scored.labels, scored.touched
    groups = accuracy.grouped([sample.group for sample in scored.samples])
    guesses = {run: scores.argmax(1) for run, scores in logits.items()}
    right = {run: (guess == labels).astype(float) for run, guess in guesses.items()}
    evaluation: dict[str, Any] = {
        "model": params.model,
        # A number wherever it is the same for each class: runs are grouped by it.
        "shots": split.shots if isinstance(split.shots, int) else split.shots_in_words,
        "train_per_class": dict(zip(split.classes, split.train_per_class, strict=True)),
        "seed": split.seed,
        "classes": split.classes,
        "protocol": split.protocol,
        "folds": scored.folds,
        "accuracy_of": _ACCURACY_OF[split.protocol],
        "test_images": len(labels),
        "groups": None if groups is None else int(groups.max()) + 1,
        "reach": mcnemar.reach(len(labels), params.evaluate.confidence),
        "confidence": params.evaluate.confidence,
        "bootstrap": params.evaluate.bootstrap,
        "selection": params.selection,
        "labels_train_per_class": len(split.train) / len(split.classes),
        "labels_selection_per_class": selection.labels_per_class(params.selection, split),
        "runs": [
            records.of_run(params, run, logits[run], scored.scaled[run], right[run], labels, groups, split, trained)
            | records.untouched(right[run], touched.get(run.arm))
            for run in logits
        ],
        "differences": records.differences(params, right, groups),
        "over_simple": records.over_simple(params, right, groups, trained),
        "clip": pretrained.identity(workspace.root, params.base.clip),
        "judge": judging.identity(workspace.root, params.base),
        "sets": scored.sets,
        "near_duplicates_real": scored.copies,
        **chosen,
        "costs": {recipe: records.costs(params, workspace, recipe, trained[recipe]) for recipe in params.active},
    }
    if (stands_in := judging.stand_in(workspace.root, params.base)) is not None:
        evaluation["warnings"] = [stands_in]
    evaluation["scales"] = records.scales(evaluation["runs"])
    if distilled := records.distillation(params, right, groups, trained):
        evaluation["distillation"] = distilled
    evaluation["verdict"] = verdict.of_evaluation(params, evaluation)
    evaluation |= slices.of(params, workspace, split, scored.samples, right, groups, evaluation["verdict"])
    rows = {recipe: touched_rows.tolist() for recipe, touched_rows in touched.items()}
    output.write(params, workspace, evaluation, guesses, labels, rows, groups)
    output.write_nearest(workspace, scored.near)
    # One of these is delivered; `deliver` decides which.
    with_synthetic = evaluation["verdict"] and evaluation["verdict"]["of"]
    shown = {run: scores for run, scores in logits.items() if run.arm == REAL or str(run) == with_synthetic}
    output.write_mistakes(workspace, shown, labels, scored.samples, params.base.resolution)
    return evaluation
