"""The comparison of a synthetic dataset with the real test images and the shots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dreamset.core.seeds import seed_for
from dreamset.metrics.distribution import fid, kid, matched
from dreamset.metrics.duplicates import PERCENTILE, apart, near_duplicates, nearest
from dreamset.metrics.manifold import DENSITY_K, PRECISION_K, manifold, vendi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Split
    from dreamset.metrics.duplicates import Duplicates
    from dreamset.metrics.features import Judge
    from dreamset.params import Params

REFERENCE: Final = "test images, used neither to adapt nor to select"
_DISTANCE: Final = "Euclidean, judge's features"
_ENOUGH: Final = 2048  # images, as many as the features of FID's original network


@dataclass(frozen=True)
class Compared:
    """The measures of one synthetic dataset.

    Attributes:
        record: ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage`` and ``vendi`` of ``n`` images on
            each side, with equal numbers per class; and, among all synthetic images, ``near_duplicates`` of shots and
            ``near_duplicates_test`` of test images.
        touched: (t,) int64 indices of the test images that have a near-duplicate among the synthetic ones.
        near: the nearest such pairs in the order of the record: (2, size, size, 3) uint8, the synthetic image first.
    """

    record: dict[str, Any]
    touched: NDArray[np.int64]
    near: list[NDArray[np.uint8]]


class Reference:
    """The real images that synthetic datasets are compared with, in the judge's features.

    Args:
        params: gives the size of KID's subsets and the number of pairs.
        judge: gives the features.
        split: gives the class names.
        shots: the images that the generators learned from.
        test: real images that were used neither to learn nor to select.
        groups: the group of each test image (its writer or patient).
    """

    def __init__(
        self,
        params: Params,
        judge: Judge,
        split: Split,
        shots: Labelled,
        test: Labelled,
        groups: Sequence[str],
    ) -> None:
        self.settings, self.classes = params.evaluate, split.classes
        self.judge = judge
        self.shots, self.test = shots, test
        self.shot_features = self.judge.features(shots.images)
        self.test_features = self.judge.features(test.images)
        self.test_to_shots = nearest(self.test_features, self.shot_features)[1]
        self.test_to_others = apart(self.test_features, groups)

    def compare(self, synthetic: Labelled) -> Compared:
        """Measure one synthetic dataset."""
        features = self.judge.features(synthetic.images)
        # The seed names no recipe, so that all recipes are compared with the same real images.
        chosen = matched(self.test.labels, synthetic.labels, len(self.classes), seed_for("matched"))
        real, fake = self.test_features[chosen[0]], features[chosen[1]]
        if len(real) < 2:
            distances: dict[str, Any] = {"fid": None, "kid": None, "kid_sd": None}
        else:
            mean, deviation = self._kid(real, fake)
            distances = {"fid": round(fid(real, fake), 2), "kid": round(mean, 5), "kid_sd": round(deviation, 5)}
        copies = self._duplicates(features, self.shot_features, self.test_to_shots)
        leaks = self._duplicates(features, self.test_features, self.test_to_others)
        names, share = synthetic.names, {"share_of_test_images": PERCENTILE / 100}
        record = {
            "images": len(synthetic),
            "features": f"{self.judge.name}, {features.shape[1]} wide",
            "reference": REFERENCE,
            "n": len(real),
            **distances,
            **self._variety(real, fake, self.test.labels[chosen[0]]),
            "warning": _warning(len(real), features.shape[1]),
            "kid_subset": min(self.settings.kid_subset, len(real)),
            "per_class": self._per_class(real, fake, self.test.labels[chosen[0]]),
            "near_duplicates": share | listed(copies, names, self.shots.names),
            "near_duplicates_test": _counts(leaks, len(names))
            | share
            | {"touched": len(leaks.touched)}
            | _pairs(leaks, names, test=self.test.names),
        }
        below = [(i, j) for i, j, distance in leaks.pairs if distance < leaks.threshold]
        near = [np.stack([synthetic.images[i], self.test.images[j]]) for i, j in below]
        return Compared(record, leaks.touched, near)

    def real_copies(self) -> dict[str, Any]:
        """Count the test images that are near-duplicates of a shot.

        The threshold is the distance below which a hundredth of the test images lie to their nearest image of another
        group. Distances to the shots cannot set it: a hundredth of them would be below it by definition.
        """
        copies = self._duplicates(self.test_features, self.shot_features, self.test_to_others)
        return _counts(copies, len(self.test)) | _pairs(copies, self.test.names, "test", shot=self.shots.names)

    def _duplicates(
        self, features: NDArray[np.float32], real: NDArray[np.float32], fresh: NDArray[np.float64]
    ) -> Duplicates:
        return near_duplicates(features, real, fresh, self.settings.worst_pairs)

    def _variety(
        self, real: NDArray[np.float32], fake: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, Any]:
        """Precision, recall, density and coverage over all classes; Vendi scores over all and as a mean over classes.

        The Vendi scores of the real images are given too, because the score depends on n and on the features.
        """
        record: dict[str, Any] = dict.fromkeys(("precision", "recall", "density", "coverage"))
        if len(real) > max(PRECISION_K, DENSITY_K):
            record = {name: round(value, 4) for name, value in asdict(manifold(real, fake)).items()}
        classes = [labels == label for label in range(len(self.classes))]
        for end, features in (("", fake), ("_real", real)):
            scores = [vendi(features[members]) for members in classes if members.sum() > 1]
            record[f"vendi{end}"] = round(sum(scores) / len(scores), 3) if scores else None
            record[f"vendi_overall{end}"] = round(vendi(features), 3) if len(features) else None
        return record

    def _kid(self, real: NDArray[np.float32], fake: NDArray[np.float32]) -> tuple[float, float]:
        return kid(real, fake, self.settings.kid_subset, seed_for("kid"))

    def _per_class(
        self, real: NDArray[np.float32], fake: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, dict[str, float]]:
        """FID of each class that has more images than features; KID of the others, whose covariance is singular."""
        result = {}
        for label, name in enumerate(self.classes):
            # Both sides are ordered by class with equal counts, so one mask serves both.
            members = labels == label
            n = int(members.sum())
            if n > real.shape[1]:
                result[name] = {"n": n, "fid": round(fid(real[members], fake[members]), 2)}
            elif n > 1:
                result[name] = {"n": n, "kid": round(self._kid(real[members], fake[members])[0], 5)}
            else:
                result[name] = {"n": n}
        return result


def listed(copies: Duplicates, names: Sequence[str], shots: Sequence[str]) -> dict[str, Any]:
    """The record of the near-duplicates of shots among the images ``names``: counts and nearest pairs."""
    return _counts(copies, len(names)) | _pairs(copies, names, shot=shots)


def _counts(copies: Duplicates, searched: int) -> dict[str, Any]:
    """The threshold, number and share of near-duplicates among ``searched`` images."""
    return {
        "distance": _DISTANCE,
        "threshold": round(copies.threshold, 4),
        "count": copies.count,
        "share": round(copies.count / searched, 4),
    }


def _pairs(copies: Duplicates, names: Sequence[str], what: str = "image", **real: Sequence[str]) -> dict[str, Any]:
    """The nearest pairs by name: ``what`` is the kind of the searched image, the keyword that of the real one."""
    [(kind, others)] = real.items()
    pairs = [{what: names[i], kind: others[j], "distance": round(distance, 4)} for i, j, distance in copies.pairs]
    return {"pairs": pairs}


def _warning(n: int, width: int) -> str | None:
    """A warning where too few images bias FID, or None."""
    if n >= max(_ENOUGH, width + 1):
        return None
    singular = f", and at most {width} images leave the covariance of {width} features singular" if n <= width else ""
    return f"FID of {n} images is biased upwards{singular}: compare it at equal n only, and believe KID."
