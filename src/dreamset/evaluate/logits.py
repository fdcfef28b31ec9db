"""Logits of classifiers on images that nothing has learned from; nothing is measured here.

Cross-validation keys its stored logits by this module: what measures them does not change them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamset.classifiers import finest, seen
from dreamset.core.errors import InputError
from dreamset.data import tuned
from dreamset.data.folds import Predictions
from dreamset.data.runs import UNTRAINED, ZERO_SHOT, Run, runs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.folds import Fold, Scorer
    from dreamset.data.splits import Sample, Split, TestSplit
    from dreamset.params import Params


def scorer(params: Params, images: list[Images]) -> Scorer:
    """Return the function that gives the predictions of an arm in a fold; ``images`` has those of each fold."""

    def score(fold: Fold, arm: str) -> Predictions:
        return trained(params, fold.workspace, fold.split, images[fold.index], (arm,))

    return score


class Images:
    """The images that are scored, the shots and the synthetic images, decoded at the sizes that networks see."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, test: TestSplit) -> None:
        import numpy as np

        self.workspace, self.split, self.resolution = workspace, split, params.base.resolution
        self.finest = finest(split.native, self.resolution)
        self.params = params
        self.samples = test.test
        self.labels: NDArray[np.int64] = np.array([sample.label for sample in test.test], np.int64)
        self.decoded: dict[int, Labelled] = {}

    def judged(self, size: int) -> Labelled:
        """Return the test images for a judge of ``size`` pixels, no finer than the base can draw."""
        return self._test(self._side(size))

    def test(self, size: int) -> Labelled:
        """Return the test images for a classifier of ``size`` pixels, as fine as they are."""
        return self._test(seen(size, self.finest))

    def _test(self, side: int) -> Labelled:
        """Return the test images; those of the last two sides are kept."""
        if side not in self.decoded:
            # Two sizes are common, one for classifiers and one for the judge; more would only take memory.
            while len(self.decoded) > 1:
                del self.decoded[next(iter(self.decoded))]
            self.decoded[side] = self._real(self.samples, side)
        return self.decoded[side]

    def shots(self, size: int) -> Labelled:
        """Return the shots for a judge of ``size`` pixels."""
        return self._real(self.split.train, self._side(size))

    def synthetic(self, recipe: str, size: int) -> Labelled:
        """Return the synthetic dataset of a recipe for a judge.

        It lacks the images made for ``train.scales`` alone, and copies: a changed copy is no new image, and would count
        as variety, or hide a near-duplicate of a shot.
        """
        from dreamset.data import arrays

        folder, side = self.workspace.synthetic(recipe), self._side(size)
        most = tuned.applied(self.params, self.workspace, recipe).taken_per_class(self.split.train_per_class)
        return arrays.synthetic(folder, self.split, side, self.workspace.scratch, most, copies=False)

    def _real(self, samples: tuple[Sample, ...], side: int) -> Labelled:
        from dreamset.data import arrays

        return arrays.real(samples, self.workspace.cell, side, self.workspace.scratch)

    def _side(self, size: int) -> int:
        return seen(size, self.resolution)


def zero_shot(params: Params, workspace: Workspace, split: Split, images: Images) -> dict[Run, NDArray[np.float32]]:
    """Return the logits of CLIP as it is, by its run."""
    from dreamset import classifiers

    clip = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    predictor = classifiers.Predictor(clip, split.classes)
    return {Run(ZERO_SHOT, UNTRAINED, "clip_zeroshot"): predictor.logits(images.test(predictor.size).images)}


def trained(params: Params, workspace: Workspace, split: Split, images: Images, wanted: tuple[str, ...]) -> Predictions:
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
    scored = Predictions({}, {})
    for run, folder in folders.items():
        predictor = classifiers.load(folder)
        scored.logits[run] = predictor.logits(images.test(predictor.size).images)
        scored.temperatures[run] = predictor.temperature
    return scored
