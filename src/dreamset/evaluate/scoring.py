"""What classifiers say of images that nothing has learned from, and how near synthetic images come to them.

``evaluate`` counts it. Under ``protocol: test`` it is said of the test images, by what the other stages made; under
``cv`` of the shots, each by what a fold of ``dreamset.sweep.crossval`` made without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.data.folds import absolute
from dreamset.data.splits import TestSplit
from dreamset.sweep import crossval
from dreamset.train import arms, runs
from dreamset.weights import hub

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Sample, Split
    from dreamset.metrics.compare import Compared
    from dreamset.params import Params

ZERO_SHOT: Final = "zero_shot"


def key_of(arm: str, kind: str, classifier: str) -> str:
    """The name of a run: ``arm/train_on/classifier``."""
    return f"{arm}/{kind}/{classifier}"


@dataclass(frozen=True)
class Scores:
    """What was measured on which images: logits (n, classes) by run, and the synthetic sets beside them.

    ``scaled`` are the logits over the temperature of the classifier that said them.
    ``touched`` are, by recipe, the rows of the images that synthetic ones are near-duplicates of, and ``near`` the
    nearest such pairs as ``compare.Compared`` has them; ``copies`` says which of the images are near-duplicates of
    shots, None where they are the shots.
    """

    samples: tuple[Sample, ...]
    labels: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    scaled: dict[str, NDArray[np.float32]]
    sets: dict[str, Any]
    touched: dict[str, NDArray[np.int64]]
    near: dict[str, list[NDArray[np.uint8]]]
    copies: dict[str, Any] | None
    folds: int | None


def on_test_images(params: Params, workspace: Workspace, split: Split, test: TestSplit) -> Scores:
    """Protocol ``test``: what the other stages made, on the test images."""
    import numpy as np

    images = Images(params, workspace, split, test)
    zero_shot = _zero_shot(params, workspace, split, images)
    found = _all_logits(params, workspace, split, images, arms(params))
    scaled = {key: logits / np.float32(found.temperatures[key]) for key, logits in found.logits.items()}
    compared, copies = _sets(params, workspace, images)
    sets = {recipe: found.record for recipe, found in compared.items()}
    touched = {recipe: found.touched for recipe, found in compared.items()}
    near = {recipe: found.near for recipe, found in compared.items()}
    logits = zero_shot | found.logits
    return Scores(test.test, images.labels, logits, zero_shot | scaled, sets, touched, near, copies, None)


def over_folds(params: Params, workspace: Workspace, split: Split) -> Scores:
    """Protocol ``cv``: what the folds made, each on what it held out, put together in the order of the shots."""
    import numpy as np

    folds = crossval.plan(params, workspace, split)

    def images_of(fold: crossval.Fold) -> Images:
        return Images(params, fold.workspace, fold.split, TestSplit(split.classes, fold.held))

    def score(fold: crossval.Fold, arm: str) -> crossval.Scored:
        return _all_logits(params, fold.workspace, fold.split, images_of(fold), (arm,))

    found = crossval.run(params, folds, score)
    samples = crossval.scored_on(params, split).train
    place = {sample.path: index for index, sample in enumerate(absolute(samples, workspace))}
    rows = [np.array([place[sample.path] for sample in fold.held]) for fold in folds]
    order = np.argsort(np.concatenate(rows))
    every = Images(params, workspace, split, TestSplit(split.classes, samples))
    # Nothing in it was learned from the shots, so that one look at them is enough.
    zero_shot = _zero_shot(params, workspace, split, every)
    logits = zero_shot | {key: np.concatenate([own.logits[key] for own in found])[order] for key in found[0].logits}
    scaled = zero_shot | {
        key: np.concatenate([own.logits[key] / np.float32(own.temperatures[key]) for own in found])[order]
        for key in found[0].logits
    }
    sets, compared = _fold_sets(params, workspace, every, [images_of(fold) for fold in folds])
    touched = {
        recipe: np.sort(np.concatenate([own[of.touched] for own, of in zip(rows, each, strict=True)]))
        for recipe, each in compared.items()
    }
    near = {recipe: _nearest(each, params.evaluate.worst_pairs) for recipe, each in compared.items()}
    return Scores(samples, every.labels, logits, scaled, sets, touched, near, None, len(folds))


def _nearest(each: list[Compared], most: int) -> list[NDArray[np.uint8]]:
    """Of the pairs that the folds' datasets make with what they hold out, the nearest ones, in order."""
    pairs = [
        (float(pair["distance"]), pixels)
        for own in each
        for pair, pixels in zip(own.record["near_duplicates_test"]["pairs"], own.near, strict=False)
    ]
    return [pixels for _, pixels in sorted(pairs, key=lambda pair: pair[0])[:most]]


class Images:
    """The images that are scored, decoded at the sides that networks see."""

    def __init__(self, params: Params, workspace: Workspace, split: Split, test: TestSplit) -> None:
        import numpy as np

        self.workspace, self.split, self.resolution = workspace, split, params.base.resolution
        self.most = params.training_per_class(split.train_per_class)
        self.samples = test.test
        self.labels: NDArray[np.int64] = np.array([sample.label for sample in test.test], np.int64)
        self.decoded: dict[int, Labelled] = {}

    def test(self, size: int) -> Labelled:
        """Test images for a network of ``size`` pixels; those of the last two sides are kept."""
        side = self._side(size)
        if side not in self.decoded:
            # One side for each classifier and one for the judge are common; more would only take room.
            while len(self.decoded) > 1:
                del self.decoded[next(iter(self.decoded))]
            self.decoded[side] = self._real(self.samples, side)
        return self.decoded[side]

    def shots(self, size: int) -> Labelled:
        """What the generators learned from."""
        return self._real(self.split.train, self._side(size))

    def synthetic(self, recipe: str, size: int) -> Labelled:
        """The synthetic dataset of a recipe, without what was made for ``train.scales`` alone."""
        from dreamset.data import arrays

        folder = self.workspace.synthetic(recipe)
        return arrays.synthetic(folder, self.split, self._side(size), self.workspace.scratch, self.most)

    def _real(self, samples: tuple[Sample, ...], side: int) -> Labelled:
        from dreamset.data import arrays

        return arrays.real(samples, self.workspace.cell, side, self.workspace.scratch)

    def _side(self, size: int) -> int:
        from dreamset.classifiers import seen

        return seen(size, self.resolution)


def _zero_shot(params: Params, workspace: Workspace, split: Split, images: Images) -> dict[str, NDArray[np.float32]]:
    """Logits of CLIP as it is."""
    from dreamset import classifiers

    zero_shot = classifiers.build("clip_zeroshot", params.base, split, workspace.root)
    predictor = classifiers.Predictor(zero_shot, split.classes)
    return {key_of(ZERO_SHOT, "none", "clip_zeroshot"): predictor.logits(images.test(predictor.size).images)}


def _all_logits(
    params: Params, workspace: Workspace, split: Split, images: Images, wanted: tuple[str, ...]
) -> crossval.Scored:
    """Logits and temperatures of the classifiers of some arms, by their run; one classifier in memory at a time."""
    from dreamset import classifiers

    folders = {
        key_of(arm, kind, name): workspace.classifiers(arm) / f"{kind}_{name}"
        for arm in wanted
        for kind, name in runs(params, arm)
    }
    # Before any work: all are there, and of these classes.
    for key, folder in folders.items():
        if classifiers.classes(folder) != split.classes:
            arm = key.split("/")[0]
            raise InputError(f"{folder}: was trained on other classes; run `dreamset train {arm}` again.")
    found = crossval.Scored({}, {})
    for key, folder in folders.items():
        predictor = classifiers.load(folder)
        found.logits[key] = predictor.logits(images.test(predictor.size).images)
        found.temperatures[key] = predictor.temperature
    return found


def _sets(params: Params, workspace: Workspace, images: Images) -> tuple[dict[str, Compared], dict[str, Any]]:
    """What is said of each recipe's images; and test images that copy shots."""
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
    """The same under cross-validation: each distance is of a fold's own dataset to what the fold holds out.

    Distances are means over the folds: put together, the datasets would be compared with images that most of them
    were made from. ``n`` is then the images of one fold, which makes FID's bias large; KID has none. Near-duplicates
    are those of the datasets that are delivered, beside all shots, with a threshold from what all folds held out.
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
    # Folds name images from the root of the machine, which is nobody's business.
    shown = {far.path: near.path for far, near in zip(absolute(every.samples, workspace), every.samples, strict=True)}
    shot_features = judge.features(shots.images)
    sets = {}
    for recipe, each in compared.items():
        records = [own.record for own in each]
        delivered = every.synthetic(recipe, judge.size)
        near = near_duplicates(judge.features(delivered.images), shot_features, fresh, most)
        pairs = [
            pair | {"test": shown[pair["test"]]}
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
            | {"touched": sum(len(own.touched) for own in each)}
            | {"pairs": sorted(pairs, key=lambda pair: float(pair["distance"]))[:most]},
        }
    return sets, compared


def _mean(values: list[Any]) -> Any:
    """Means of the numbers of equal records, counts to the nearest; None where one is missing, texts of the first."""
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
