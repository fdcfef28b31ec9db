"""Filters: which of several candidates becomes an image of the dataset.

Image *k* of a class has candidates in a fixed order, each from its own noise. A filter takes the first that it accepts
(``argmax``, ``threshold``, ``real_features``, ``influence``), or the best of them all (``k_of_n``, ``entropy``). Where
it accepts none, it gives up and takes the best. So an image depends on the seed, its class, *k* and the filter alone.

``entropy`` has a first round: some images of each class are drawn without it, and a probe learns from them. Of each
further image it takes the candidate that the probe is least sure of (Deliberate Practice, arXiv 2502.15588).

All filters see an image through the model's CLIP. The judge, which scores the sets, has no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.code import code_digest
from dreamset.core.errors import InputError
from dreamset.drawing.candidates import Rated

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.clip import Clip
    from dreamset.data.work import Work
    from dreamset.drawing.blocks import Block

_LEARN: Final = ("real_features", "influence", "k_of_n")  # filters that look at the shots


def key(work: Work) -> dict[str, Any]:
    """Return what a filter's choices depend on, for the keys of drawn images; empty without a filter.

    Raises:
        InputError: the CLIP is missing.
    """
    from dreamset.weights import pretrained

    kind, split = work.row.filter, work.split
    if not work.row.filters:
        return {}
    found: dict[str, Any] = {
        "filter": kind,
        "tries": work.row.tries,
        "clip": pretrained.identity(work.workspace.root, work.base.clip)["sha256"],
        "look": [split.native, split.channels],
        "code": code_digest(__name__),
    }
    if kind in _LEARN:
        found["shots"] = [[sample.sha256, sample.label] for sample in split.train]
    if kind in ("argmax", "threshold", "entropy"):
        found["captions"] = split.clip_prompts()
    return found


def check(work: Work) -> None:
    """Refuse a filter where there is nothing to tell a class from.

    Raises:
        InputError: naming the key.
    """
    if work.row.filters and len(work.split.classes) < 2:
        raise InputError(f"recipes.{work.recipe}.filter: needs a second class; remove it.")


class Filter:
    """The filter of a recipe, with its CLIP and what that saw in the shots."""

    def __init__(self, work: Work, first: Sequence[Block] = ()) -> None:
        """Load the CLIP, and look at the shots, or at the images of a first round, where the filter needs them.

        Args:
            work: on the recipe.
            first: the finished blocks of the first round.

        Raises:
            InputError: the CLIP is missing, or there is one class alone.
        """
        import numpy as np

        from dreamset import classifiers
        from dreamset.classifiers import clip_zeroshot
        from dreamset.core.device import pick
        from dreamset.data import arrays

        check(work)
        self.kind, self.split = work.row.filter, work.split
        self.clip: Clip = clip_zeroshot.build(None, work.base, work.split, work.workspace.root).to(pick()).eval()
        self.side = classifiers.seen(self.clip.size, work.base.resolution)
        if self.kind in _LEARN:
            shots = arrays.real(work.split.train, work.workspace.cell, self.side)
            self.labels = shots.labels
            self.shots = self._features(shots.images)
        if self.kind == "entropy":
            self.probe = _Probe(*self._first_round(work, first), len(work.split.classes))
        if self.kind == "k_of_n":
            self.probe = _Probe(self.shots, self.labels, len(work.split.classes))
        if self.kind == "influence":
            # CLIP's features share one direction, which a bias takes up; gradients would agree by it alone.
            self.middle = self.shots.mean(0)
            self.directions = _directions(self.shots - self.middle, self.labels, len(work.split.classes))
        self.head = self.clip.head().cpu().numpy().astype(np.float32)

    def rate(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Rated:
        """Rate RGB images (n, h, h, 3) uint8 of classes ``labels`` (n,)."""
        import numpy as np

        from dreamset.classifiers.calibration import log_softmax

        features = self._features(self._like_real(images))
        rows = np.arange(len(labels))
        if self.kind == "entropy":
            chances = log_softmax(self.probe.logits(features))
            unsure = -(np.exp(chances) * chances).sum(1)
            return Rated((features @ self.head.T).argmax(1) == labels, unsure.astype(np.float32), features)
        if self.kind in ("argmax", "threshold", "k_of_n"):
            logits = self.probe.logits(features) if self.kind == "k_of_n" else features @ self.head.T
            own = np.exp(log_softmax(logits))[rows, labels]
            if self.kind == "threshold":
                # He et al. 2023 (IsSynth) keep what is likelier than a guess.
                return Rated(own > 1 / len(self.split.classes), own, features)
            return Rated(logits.argmax(1) == labels, own, features)
        if self.kind == "real_features":
            near = features @ self.shots.T
            mine = self.labels == labels[:, None]
            score = np.where(mine, near, -2).max(1) - np.where(mine, -2, near).max(1)
        else:
            score = self._influence(features - self.middle, labels)
        return Rated(score > 0, score.astype(np.float32), features)

    def choose(self, rated: list[Rated]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Choose for each of up to ``GROUP`` images of a class, in order, one of its candidates.

        ``k_of_n`` takes the accepted one that is least like the images chosen before; of the first, and with
        ``entropy``, it is the one of the best score.

        Args:
            rated: for each turn, the candidates of these images.

        Returns:
            The turn of each choice, (n,), and whether it was accepted.
        """
        import numpy as np

        turns, accepted = [], []
        kept: list[NDArray[np.float32]] = []
        for row in range(len(rated[0].score)):
            fine = np.array([turn.accepted[row] for turn in rated])
            worth = np.array([turn.score[row] for turn in rated])
            if self.kind == "k_of_n" and kept and fine.any():
                candidates = np.stack([turn.features[row] for turn in rated])
                worth = 1 - (candidates @ np.stack(kept).T).max(1)
            best = int(np.where(fine, worth, worth - 10).argmax())
            turns.append(best)
            accepted.append(bool(fine[best]))
            kept.append(rated[best].features[row])
        return np.array(turns), np.array(accepted)

    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        from dreamset.classifiers.embedding import embed

        return embed(self.clip, images)

    def _first_round(self, work: Work, blocks: Sequence[Block]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return features (n, d) and labels (n,) of the images of finished blocks, which are read a batch at a time."""
        import numpy as np

        from dreamset.core.images import read_rgb
        from dreamset.data.synthetic import read_metadata
        from dreamset.drawing.pools import BATCH

        folders = [work.workspace.shards / block.key for block in blocks]
        rows = [(folder, image) for folder in folders for image in read_metadata(folder)]
        parts = []
        for at in range(0, len(rows), BATCH):
            images = [np.asarray(read_rgb(folder / image.file_name)) for folder, image in rows[at : at + BATCH]]
            parts.append(self._features(self._like_real(np.stack(images))))
        return np.concatenate(parts), np.array([image.label for _, image in rows])

    def _like_real(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return drawn images as classifiers see them: no finer than the shots, and grey where these are."""
        import numpy as np
        from PIL import Image

        from dreamset.core.resizing import resize_crop, to_native

        made = []
        for pixels in images:
            image = Image.fromarray(pixels)
            image = image.convert("L").convert("RGB") if self.split.channels == 1 else image
            image = to_native(image, self.split.native) if self.split.native else image
            made.append(resize_crop(image, self.side))
        return np.stack(made)

    def _influence(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how much a step on each image helps held-out shots of its class, beyond those of other classes.

        The gradient of the loss in the probe's weights is (p - e_y) f^T. To first order, a step against it lowers the
        loss of another image by the product of both gradients (Pruthi et al. 2020, TracIn).
        """
        import numpy as np

        total = np.zeros(len(labels), np.float32)
        for probe, directions in self.directions:
            error = probe.error(features, labels)  # (n, classes)
            # <(p - e_y) f^T, G_c> for every class c: (n, classes)
            agreement = np.einsum("nk,ckd,nd->nc", error, directions, features)
            own = agreement[np.arange(len(labels)), labels]
            total += own - (agreement.sum(1) - own) / (agreement.shape[1] - 1)
        return total


class _Probe:
    """Logistic regression on unit features."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> None:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        there = np.unique(labels)
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(features, labels)
        self.weight = np.zeros((classes, features.shape[1]), np.float32)
        self.bias = np.full(classes, -1e9, np.float32)  # a class without a shot is never read
        if len(there) == 2:  # scikit-learn then fits one row, for the second class
            self.weight[there[1]], self.bias[there] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
        else:
            self.weight[there], self.bias[there] = fitted.coef_, fitted.intercept_

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, classes) of features (n, d)."""
        made: NDArray[np.float32] = features @ self.weight.T + self.bias
        return made

    def error(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probabilities less the labels, (n, classes)."""
        import numpy as np

        from dreamset.classifiers.calibration import log_softmax

        error: NDArray[np.float32] = np.exp(log_softmax(self.logits(features))).astype(np.float32)
        error[np.arange(len(labels)), labels] -= 1
        return error


def _directions(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int
) -> list[tuple[_Probe, NDArray[np.float32]]]:
    """Return two probes, each of half of the shots, with the mean gradient of the other half by class.

    A class with one shot is in both halves, since it can be held out of neither.

    Returns:
        Pairs of a probe and its gradients, (classes, classes, d).
    """
    import numpy as np

    place = np.array([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    alone = np.bincount(labels, minlength=classes)[labels] == 1
    pairs = []
    for half in (0, 1):
        held, learned = alone | (place % 2 == half), alone | (place % 2 != half)
        probe = _Probe(features[learned], labels[learned], classes)
        error = probe.error(features[held], labels[held])
        sums = np.zeros((classes, classes, features.shape[1]), np.float32)
        for label in range(classes):
            own = labels[held] == label
            sums[label] = error[own].T @ features[held][own]
        counts = np.bincount(labels[held], minlength=classes).clip(min=1)
        means: NDArray[np.float32] = (sums / counts[:, None, None]).astype(np.float32)
        pairs.append((probe, means))
    return pairs
