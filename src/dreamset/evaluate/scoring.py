"""Logits of classifiers on images that nothing has learned from, and distances of synthetic images to them.

Under ``protocol: test`` the classifiers and datasets of the workspace are scored on the test images. Under ``cv`` those
of each fold of ``dreamset.sweep.crossval`` are scored on the shots that the fold holds out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.data import folds as dividing
from dreamset.data.folds import Scored, absolute
from dreamset.data.runs import UNTRAINED, ZERO_SHOT, Run, arms, runs
from dreamset.data.splits import TestSplit
from dreamset.weights import hub

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.folds import CrossValidate, Fold
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
    zero_shot = _zero_shot(params, workspace, split, images)
    scored = _all_logits(params, workspace, split, images, arms(params))
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

    def images_of(fold: Fold) -> Images:
        return Images(params, fold.workspace, fold.split, TestSplit(split.classes, fold.held_out))

    def score(fold: Fold, arm: str) -> Scored:
        return _all_logits(params, fold.workspace, fold.split, images_of(fold), (arm,))

    by_fold = cross_validate(params, folds, score)
    samples = dividing.scored_on(params, split).train
    place = {sample.path: index for index, sample in enumerate(absolute(samples, workspace))}
    rows = [np.array([place[sample.path] for sample in fold.held_out]) for fold in folds]
    order = np.argsort(np.concatenate(rows))
    every = Images(params, workspace, split, TestSplit(split.classes, samples))
    # CLIP as it is has learned nothing from the shots, so that it can score them all at once.
    zero_shot = _zero_shot(params, workspace, split, every)
    logits = zero_shot | {
        run: np.concatenate([fold.logits[run] for fold in by_fold])[order] for run in by_fold[0].logits
    }
    scaled = zero_shot | {
        run: np.concatenate([fold.logits[run] / np.float32(fold.temperatures[run]) for fold in by_fold])[order]
        for run in by_fold[0].logits
    }
    sets, compared = _fold_sets(params, workspace, every, [images_of(fold) for fold in folds])
    touched = {
        recipe: np.sort(np.concatenate([row[measured.touched] for row, measured in zip(rows, each, strict=True)]))
        for recipe, each in compared.items()
    }
    near = {recipe: _nearest(each, params.evaluate.worst_pairs) for recipe, each in compared.items()}
    return Scores(samples, every.labels, logits, scaled, sets, touched, near, None, len(folds))


def _nearest(each: list[Compared], most: int) -> list[NDArray[np.uint8]]:
    """Return the ``most`` nearest pairs of the folds' synthetic images and the shots held out there, nearest first."""
    pairs = [
        (float(pair["distance"]), pixels)
        for measured in each
        for pair, pixels in zip(measured.record["near_duplicates_test"]["pairs"], measured.near, strict=False)
    ]
    return [pixels for _, pixels in sorted(pairs, key=lambda pair: pair[0])[:most]]


class Images:
    """The images that are scored, the shots and the synthetic images, decoded at the sizes that networks see."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, test: TestSplit) -> None:
        import numpy as np

        self.workspace, self.split, self.resolution = workspace, split, params.base.resolution
        self.most = params.training_per_class(split.train_per_class)
        self.samples = test.test
        self.labels: NDArray[np.int64] = np.array([sample.label for sample in test.test], np.int64)
        self.decoded: dict[int, Labelled] = {}

    def test(self, size: int) -> Labelled:
        """Return the test images for a network of ``size`` pixels; those of the last two sizes are kept."""
        side = self._side(size)
        if side not in self.decoded:
            # Two sizes are common, one for classifiers and one for the judge; more would only take memory.
            while len(self.decoded) > 1:
                del self.decoded[next(iter(self.decoded))]
            self.decoded[side] = self._real(self.samples, side)
        return self.decoded[side]

    def shots(self, size: int) -> Labelled:
        """Return the shots for a network of ``size`` pixels."""
        return self._real(self.split.train, self._side(size))

    def synthetic(self, recipe: str, size: int) -> Labelled:
        """Return the synthetic dataset of a recipe, without the images made for ``train.scales`` alone."""
        from dreamset.data import arrays

        folder = self.workspace.synthetic(recipe)
        return arrays.synthetic(folder, self.split, self._side(size), self.workspace.scratch, self.most)

    def _real(self, samples: tuple[Sample, ...], side: int) -> Labelled:
        from dreamset.data import arrays

        return arrays.real(samples, self.workspace.cell, side, self.workspace.scratch)

    def _side(self, size: int) -> int:
        from dreamset.classifiers import seen

        return seen(size, self.resolution)


def _zero_shot(params: Params, workspace: Workspace, split: Split, images: Images) -> dict[Run, NDArray[np.float32]]:
    """Return the logits of CLIP as it is, by its run."""
    from dreamset import classifiers

    zero_shot = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    predictor = classifiers.Predictor(zero_shot, split.classes)
    return {Run(ZERO_SHOT, UNTRAINED, "clip_zeroshot"): predictor.logits(images.test(predictor.size).images)}


def _all_logits(params: Params, workspace: Workspace, split: Split, images: Images, wanted: tuple[str, ...]) -> Scored:
    """Return logits and temperatures of the classifiers of the ``wanted`` arms; one is in memory at a time.

    Raises:
        InputError: a classifier is missing or was trained on other classes.
    """
    from dreamset import classifiers

    folders = {run: workspace.classifiers(arm) / run.folder for arm in wanted for run in runs(params, arm)}
    # Checked before any work: all classifiers exist and have these classes.
    for run, folder in folders.items():
        if classifiers.classes(folder) != split.classes:
            raise InputError(f"{folder}: was trained on other classes; run `dreamset train {run.arm}` again.")
    scored = Scored({}, {})
    for run, folder in folders.items():
        predictor = classifiers.load(folder)
        scored.logits[run] = predictor.logits(images.test(predictor.size).images)
        scored.temperatures[run] = predictor.temperature
    return scored


def _sets(params: Params, workspace: Workspace, images: Images) -> tuple[dict[str, Compared], dict[str, Any]]:
    """Return the measures of each recipe's images, and a record of the test images that copy shots."""
    from dreamset.metrics.compare import Reference
    from dreamset.metrics.features import Judge

    judge = Judge(hub.locate(workspace.root, params.base.judge, "judge"))
    shots, test = images.shots(judge.size), images.test(judge.size)
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

    judge, most = Judge(hub.locate(workspace.root, params.base.judge, "judge")), params.evaluate.worst_pairs
    compared: dict[str, list[Compared]] = {recipe: [] for recipe in params.active}
    held_out = []
    for fold in folds:
        groups = [sample.group for sample in fold.samples]
        reference = Reference(params, judge, fold.split, fold.shots(judge.size), fold.test(judge.size), groups)
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
