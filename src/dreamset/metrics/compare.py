"""A synthetic dataset beside the real test images and the shots."""

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
_ENOUGH: Final = 2048  # images; what FID's first users had as many of as features


@dataclass(frozen=True)
class Compared:
    """What is said of one synthetic dataset.

    ``record`` is flat: ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage``, ``vendi`` at ``n``
    images of each side, equally many per class; ``near_duplicates`` of shots and ``near_duplicates_test`` of test
    images among all synthetic ones. ``touched`` (t,) int64 are the indices of the test images that the latter are near
    to, and ``near`` the nearest such pairs, in the order of the record: (2, size, size, 3) uint8, the synthetic image
    first.
    """

    record: dict[str, Any]
    touched: NDArray[np.int64]
    near: list[NDArray[np.uint8]]


class Reference:
    """Real images that synthetic datasets are compared with, in the judge's features.

    Args:
        params: for the size of KID's subsets and the number of pairs.
        judge: whose features are compared.
        split: the class names.
        shots: what the generators learned from.
        test: real images that nothing has learned from, and nothing was selected by.
        groups: of each test image: who wrote it, whose it is.
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
        """What is said of one synthetic dataset."""
        features = self.judge.features(synthetic.images)
        # No recipe in the seed: all are compared with the same real images.
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
            "features": f"judge, {features.shape[1]} wide",
            "reference": REFERENCE,
            "n": len(real),
            **distances,
            **self._variety(real, fake, self.test.labels[chosen[0]]),
            "warning": _warning(len(real), features.shape[1]),
            "kid_subset": min(self.settings.kid_subset, len(real)),
            "per_class": self._per_class(real, fake, self.test.labels[chosen[0]]),
            "near_duplicates": share | listed(copies, names, self.shots.names),
            "near_duplicates_test": _shown(leaks, len(names))
            | share
            | {"touched": len(leaks.touched)}
            | _pairs(leaks, names, test=self.test.names),
        }
        met = [(i, j) for i, j, distance in leaks.pairs if distance < leaks.threshold]
        near = [np.stack([synthetic.images[i], self.test.images[j]]) for i, j in met]
        return Compared(record, leaks.touched, near)

    def real_copies(self) -> dict[str, Any]:
        """Test images that are nearer to a shot than all but a hundredth of them are to one of another group.

        Distances to the shots themselves cannot set this threshold: a hundredth of them is below it by definition.
        """
        found = self._duplicates(self.test_features, self.shot_features, self.test_to_others)
        return _shown(found, len(self.test)) | _pairs(found, self.test.names, "test", shot=self.shots.names)

    def _duplicates(
        self, features: NDArray[np.float32], real: NDArray[np.float32], fresh: NDArray[np.float64]
    ) -> Duplicates:
        return near_duplicates(features, real, fresh, self.settings.worst_pairs)

    def _variety(
        self, real: NDArray[np.float32], fake: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, Any]:
        """Precision to coverage over all classes; Vendi scores within classes (their mean) and over all.

        The real images' own Vendi scores stand beside them, for the number depends on n and on the features.
        """
        record: dict[str, Any] = dict.fromkeys(("precision", "recall", "density", "coverage"))
        if len(real) > max(PRECISION_K, DENSITY_K):
            record = {name: round(value, 4) for name, value in asdict(manifold(real, fake)).items()}
        classes = [labels == label for label in range(len(self.classes))]
        for end, features in (("", fake), ("_real", real)):
            scores = [vendi(features[own]) for own in classes if own.sum() > 1]
            record[f"vendi{end}"] = round(sum(scores) / len(scores), 3) if scores else None
            record[f"vendi_overall{end}"] = round(vendi(features), 3) if len(features) else None
        return record

    def _kid(self, real: NDArray[np.float32], fake: NDArray[np.float32]) -> tuple[float, float]:
        return kid(real, fake, self.settings.kid_subset, seed_for("kid"))

    def _per_class(
        self, real: NDArray[np.float32], fake: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, dict[str, float]]:
        """FID where a class has more images than features, for its covariance is singular below that; else KID."""
        result = {}
        for label, name in enumerate(self.classes):
            # Both sides stand by class with equal counts, so one mask serves.
            own = labels == label
            n = int(own.sum())
            if n > real.shape[1]:
                result[name] = {"n": n, "fid": round(fid(real[own], fake[own]), 2)}
            elif n > 1:
                result[name] = {"n": n, "kid": round(self._kid(real[own], fake[own])[0], 5)}
            else:
                result[name] = {"n": n}
        return result


def listed(found: Duplicates, names: Sequence[str], shots: Sequence[str]) -> dict[str, Any]:
    """Near-duplicates of shots among images of these names: the facts, and the nearest pairs."""
    return _shown(found, len(names)) | _pairs(found, names, shot=shots)


def _shown(found: Duplicates, searched: int) -> dict[str, Any]:
    """The facts of ``found`` among ``searched`` images."""
    return {
        "distance": _DISTANCE,
        "threshold": round(found.threshold, 4),
        "count": found.count,
        "share": round(found.count / searched, 4),
    }


def _pairs(found: Duplicates, names: Sequence[str], what: str = "image", **real: Sequence[str]) -> dict[str, Any]:
    """The nearest pairs by their names: ``what`` was searched, and the one keyword says what it resembles."""
    [(kind, others)] = real.items()
    pairs = [{what: names[i], kind: others[j], "distance": round(distance, 4)} for i, j, distance in found.pairs]
    return {"pairs": pairs}


def _warning(n: int, width: int) -> str | None:
    """What few images do to FID."""
    if n >= max(_ENOUGH, width + 1):
        return None
    singular = f", and at most {width} images leave the covariance of {width} features singular" if n <= width else ""
    return f"FID of {n} images is biased upwards{singular}: compare it at equal n only, and believe KID."
