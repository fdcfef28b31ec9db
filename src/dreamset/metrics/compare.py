"""A synthetic dataset beside the real test images and the shots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.metrics.distribution import fid, kid, matched
from dreamset.metrics.duplicates import PERCENTILE, near_duplicates
from dreamset.seeds import seed_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.arrays import Labelled
    from dreamset.metrics.features import Judge
    from dreamset.params import Params
    from dreamset.splits import Split

_ENOUGH: Final = 2048  # images; what FID's first users had as many of as features


class Reference:
    """Real images that synthetic datasets are compared with, in the judge's features.

    Args:
        params: for the size of KID's subsets and the number of pairs.
        judge: whose features are compared.
        split: the class names.
        shots: what the generators learned from.
        test: real images that nothing has learned from.
    """

    def __init__(self, params: Params, judge: Judge, split: Split, shots: Labelled, test: Labelled) -> None:
        self.settings, self.classes = params.evaluate, split.classes
        self.judge = judge
        self.shots, self.test = shots, test
        self.shot_features = self.judge.features(shots.images)
        self.test_features = self.judge.features(test.images)

    def compare(self, synthetic: Labelled) -> dict[str, Any]:
        """FID and KID at equal counts per class, over all and by class, and near-duplicates of the shots."""
        features = self.judge.features(synthetic.images)
        # No recipe in the seed: all are compared with the same real images.
        chosen = matched(self.test.labels, synthetic.labels, len(self.classes), seed_for("matched"))
        real, fake = self.test_features[chosen[0]], features[chosen[1]]
        if len(real) < 2:
            distances: dict[str, Any] = {"fid": None, "kid": None, "kid_sd": None}
        else:
            mean, deviation = self._kid(real, fake)
            distances = {"fid": round(fid(real, fake), 2), "kid": round(mean, 5), "kid_sd": round(deviation, 5)}
        return {
            "images": len(synthetic),
            "features": f"judge, {features.shape[1]} wide",
            "n": len(real),
            **distances,
            "warning": _warning(len(real), features.shape[1]),
            "kid_subset": min(self.settings.kid_subset, len(real)),
            "per_class": self._per_class(real, fake, self.test.labels[chosen[0]]),
            "near_duplicates": self._duplicates(synthetic, features),
        }

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

    def _duplicates(self, synthetic: Labelled, features: NDArray[np.float32]) -> dict[str, Any]:
        found = near_duplicates(features, self.shot_features, self.test_features, self.settings.worst_pairs)
        return {
            "distance": "Euclidean, judge's features",
            "threshold": round(found.threshold, 4),
            "count": found.count,
            "share": round(found.count / len(synthetic), 4),
            "share_of_test_images": PERCENTILE / 100,
            "pairs": [
                {"image": synthetic.names[i], "shot": self.shots.names[j], "distance": round(distance, 4)}
                for i, j, distance in found.pairs
            ],
        }


def _warning(n: int, width: int) -> str | None:
    """What few images do to FID."""
    if n >= max(_ENOUGH, width + 1):
        return None
    singular = f", and at most {width} images leave the covariance of {width} features singular" if n <= width else ""
    return f"FID of {n} images is biased upwards{singular}: compare it at equal n only, and believe KID."
