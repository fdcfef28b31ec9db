"""Logits of classifiers on images that nothing has learned from, and distances of synthetic images to them.

Under ``protocol: test`` the classifiers and datasets of the workspace are scored on the test images. Under ``cv`` those
of each fold of ``dreamset.sweep.crossval`` are scored on the shots that the fold holds out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamset.data import folds as dividing
from dreamset.data.folds import absolute
from dreamset.data.runs import Run, arms
from dreamset.data.splits import TestSplit
from dreamset.evaluate import logits as predicting
from dreamset.evaluate.logits import Images
from dreamset.weights import judging

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.folds import CrossValidate, Fold, Predictions
    from dreamset.data.splits import Sample, Split
    from dreamset.metrics.compare import Compared
    from dreamset.params import Params


@dataclass(frozen=True)
class Scores:
    """Logits on the images that are scored, and measures of the synthetic sets.

    Attributes:
        samples: the n images.
        labels: (n,).
        logits: (n, classes) by run.
        scaled: the logits over the classifier's temperature, by run.
        sets: measures of the synthetic images, by recipe.
        touched: by recipe, the rows of the images that synthetic ones are near-duplicates of.
        near: by recipe, the nearest such pairs, as in ``compare.Compared``.
        copies: the images that are near-duplicates of shots; None where the images are the shots.
        folds: the number of folds; None under ``protocol: test``.
    """

    samples: tuple[Sample, ...]
    labels: NDArray[np.int64]
    logits: dict[Run, NDArray[np.float32]]
    scaled: dict[Run, NDArray[np.float32]]
    sets: dict[str, Any]
    touched: dict[str, NDArray[np.int64]]
    near: dict[str, list[NDArray[np.uint8]]]
    copies: dict[str, Any] | None
    folds: int | None


def on_test_images(params: Params, workspace: Workspace, split: Split, test: TestSplit) -> Scores:
    """Return the scores under protocol ``test``: of the workspace's classifiers and datasets, on the test images.

    Raises:
        InputError: a classifier or a dataset is missing or has other classes.
    """
    import numpy as np

    images = Images(params, workspace, split, test)
    zero_shot = predicting.zero_shot(params, workspace, split, images)
    scored = predicting.trained(params, workspace, split, images, arms(params))
    scaled = {run: logits / np.float32(scored.temperatures[run]) for run, logits in scored.logits.items()}
    compared, copies = _sets(params, workspace, images)
    sets = {recipe: measured.record for recipe, measured in compared.items()}
    touched = {recipe: measured.touched for recipe, measured in compared.items()}
    near = {recipe: measured.near for recipe, measured in compared.items()}
    logits = zero_shot | scored.logits
    return Scores(test.test, images.labels, logits, zero_shot | scaled, sets, touched, near, copies, None)


def over_folds(params: Params, workspace: Workspace, split: Split, cross_validate: CrossValidate) -> Scores:
    """Return the scores under protocol ``cv``: of each fold on the shots it holds out, in the order of the shots.

    Raises:
        InputError: all shots of a class are of one group, or too few are left inside a fold for selection.
    """
    import numpy as np

    folds = dividing.test_folds(params, workspace, split)
    images, by_fold = predicted(params, folds, cross_validate)
    samples = dividing.scored_on(params, split).train
    place = {sample.path: index for index, sample in enumerate(absolute(samples, workspace))}
    rows = [np.array([place[sample.path] for sample in fold.held_out]) for fold in folds]
    order = np.argsort(np.concatenate(rows))
    every = Images(params, workspace, split, TestSplit(split.classes, samples))
    # CLIP as it is has learned nothing from the shots, so that it can score them all at once.
    zero_shot = predicting.zero_shot(params, workspace, split, every)
    logits = zero_shot | {
        run: np.concatenate([fold.logits[run] for fold in by_fold])[order] for run in by_fold[0].logits
    }
    scaled = zero_shot | {
        run: np.concatenate([fold.logits[run] / np.float32(fold.temperatures[run]) for fold in by_fold])[order]
        for run in by_fold[0].logits
    }
    sets, compared = _fold_sets(params, workspace, every, images)
    touched = {
        recipe: np.sort(np.concatenate([row[measured.touched] for row, measured in zip(rows, each, strict=True)]))
        for recipe, each in compared.items()
    }
    near = {recipe: _nearest(each, params.evaluate.worst_pairs) for recipe, each in compared.items()}
    return Scores(samples, every.labels, logits, scaled, sets, touched, near, None, len(folds))


def predicted(
    params: Params, folds: list[Fold], cross_validate: CrossValidate
) -> tuple[list[Images], list[Predictions]]:
    """Return the images of each fold, and the predictions of all arms on those that it holds out."""
    images = [
        Images(params, fold.workspace, fold.split, TestSplit(fold.split.classes, fold.held_out)) for fold in folds
    ]
    return images, cross_validate(params, folds, predicting.scorer(params, images))


def _nearest(each: list[Compared], most: int) -> list[NDArray[np.uint8]]:
    """Return the ``most`` nearest pairs of the folds' synthetic images and the shots held out there, nearest first."""
    pairs = [
        (float(pair["distance"]), pixels)
        for measured in each
        for pair, pixels in zip(measured.record["near_duplicates_test"]["pairs"], measured.near, strict=False)
    ]
    return [pixels for _, pixels in sorted(pairs, key=lambda pair: pair[0])[:most]]


def _sets(params: Params, workspace: Workspace, images: Images) -> tuple[dict[str, Compared], dict[str, Any]]:
    """Return the measures of each recipe's images, and a record of the test images that copy shots."""
    from dreamset.metrics.compare import Reference
    from dreamset.metrics.features import Judge

    judge = Judge(judging.find(workspace.root, params.base))
    shots, test = images.shots(judge.size), images.judged(judge.size)
    reference = Reference(params, judge, images.split, shots, test, [sample.group for sample in images.samples])
    compared = {recipe: reference.compare(images.synthetic(recipe, judge.size)) for recipe in params.active}
    return compared, reference.real_copies()


def _fold_sets(
    params: Params, workspace: Workspace, every: Images, folds: list[Images]
) -> tuple[dict[str, Any], dict[str, list[Compared]]]:
    """Return the measures of each recipe's images under cross-validation, joined over the folds and for each fold.

    Each distance is between a fold's dataset and the shots that the fold holds out, and the mean over the folds is
    reported. The folds' datasets are not pooled, for most of them were made from the shots that a fold holds out.
    ``n`` is then the number of images of one fold, which makes FID's bias large; KID has no bias. Near-duplicates are
    counted between the delivered dataset and all shots, with a threshold from the images that all folds hold out.
    """
    import numpy as np

    from dreamset.metrics.compare import Reference, listed
    from dreamset.metrics.duplicates import near_duplicates
    from dreamset.metrics.features import Judge

    judge, most = Judge(judging.find(workspace.root, params.base)), params.evaluate.worst_pairs
    compared: dict[str, list[Compared]] = {recipe: [] for recipe in params.active}
    held_out = []
    for fold in folds:
        groups = [sample.group for sample in fold.samples]
        reference = Reference(params, judge, fold.split, fold.shots(judge.size), fold.judged(judge.size), groups)
        held_out.append(reference.test_to_shots)
        for recipe in params.active:
            compared[recipe].append(reference.compare(fold.synthetic(recipe, judge.size)))
    fresh, shots = np.concatenate(held_out), every.shots(judge.size)
    # Folds name images by absolute paths, which would tell readers about this machine.
    relative = {
        full.path: sample.path for full, sample in zip(absolute(every.samples, workspace), every.samples, strict=True)
    }
    shot_features = judge.features(shots.images)
    sets = {}
    for recipe, each in compared.items():
        records = [measured.record for measured in each]
        delivered = every.synthetic(recipe, judge.size)
        near = near_duplicates(judge.features(delivered.images), shot_features, fresh, most)
        pairs = [
            pair | {"test": relative[pair["test"]]}
            for record in records
            for pair in record["near_duplicates_test"]["pairs"]
        ]
        mean: dict[str, Any] = _mean(records)
        sets[recipe] = mean | {
            "folds": len(folds),
            "images": len(delivered),
            "near_duplicates": mean["near_duplicates"] | listed(near, delivered.names, shots.names),
            "near_duplicates_test": mean["near_duplicates_test"]
            | {"count": sum(record["near_duplicates_test"]["count"] for record in records)}
            | {"touched": sum(len(measured.touched) for measured in each)}
            | {"pairs": sorted(pairs, key=lambda pair: float(pair["distance"]))[:most]},
        }
    return sets, compared


def _mean(values: list[Any]) -> Any:
    """Return the mean of records of equal structure: numbers are means, counts rounded, texts those of the first.

    A value is None where it is None in one of the records.
    """
    first = values[0]
    if isinstance(first, dict):
        shared = [key for key in first if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values]) for key in shared}
    if any(value is None for value in values):
        return None
    if isinstance(first, int | float) and not isinstance(first, bool):
        mean = sum(values) / len(values)
        return round(mean) if all(isinstance(value, int) for value in values) else round(mean, 5)
    return first
