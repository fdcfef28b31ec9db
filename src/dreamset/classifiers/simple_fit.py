"""Fitting of the simple classifiers of the shots, each with its predictions of shots that it did not learn from.

Folds of the shots (``data.folds``) give these predictions, and the temperature. Features are computed once. A finished
classifier is a shard like that of any other.
"""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dreamset.classifiers import simple
from dreamset.classifiers.calibration import fit_temperature, nll
from dreamset.classifiers.fitting import FOLDS, RECORD, Fitted
from dreamset.classifiers.simple_network import TREES, Forest, Logistic, Nearest
from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.seeds import seed_for
from dreamset.data import folds
from dreamset.data.runs import REAL_ONLY
from dreamset.weights import judging

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dreamset.classifiers.parts import Part
    from dreamset.data.runs import Run

_FLIPS: Final = {"hflip": 3, "vflip": 2}  # axis of (n, 3, h, w) images by the change that keeps a label
_BATCH: Final = 256  # images whose features are computed at once
_BLOCK: Final = 4096  # images whose distances to all shots are held at once
_SHARES: Final = 2**25  # shares of classes in the leaves of a forest, at most
# Inverse strength of the penalty of logistic regression; fixed. Of 0.1 to 1000 it was the best on digits and letters
# that are no test images, with both kinds of features (benchmarks/results/simple.md).
C: Final = 1.0


class Shots:
    """The features of a workspace's shots and of their declared flips, computed once for all simple classifiers.

    Args:
        part: gives the shots.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.labels: NDArray[np.int64] = np.array([sample.label for sample in part.split.train], np.int64)
        self._features: dict[str, tuple[nn.Module, NDArray[np.float32]]] = {}

    def features(self, name: str) -> tuple[nn.Module, NDArray[np.float32]]:
        """Return a network without a head, and its features (flips, n, d) float32; the first are of no flip."""
        if name not in self._features:
            from dreamset import classifiers
            from dreamset.core import device
            from dreamset.data import arrays

            part, split = self.part, self.part.split
            network = simple.network(name, part.params.base, split, part.workspace.root).to(device.pick()).eval()
            side = classifiers.seen(network.size, classifiers.finest(split.native, part.params.base.resolution))  # type: ignore[arg-type]
            images = arrays.real(split.train, part.workspace.cell, side, part.workspace.scratch).images
            flips = _combinations([_FLIPS[change] for change in split.invariances if change in _FLIPS])
            rows = [features_of(network, images, flip) for flip in flips]
            self._features[name] = network, np.stack(rows)
        return self._features[name]

    @functools.cached_property
    def held_out(self) -> list[NDArray[np.int64]] | None:
        """The rows of the shots that each fold holds out; None where the shots cannot be divided."""
        split = self.part.split
        place = {sample.path: row for row, sample in enumerate(split.train)}
        try:
            parts = folds.held_out(split, folds.SELECTING, "selection")
        except InputError:
            return None
        return [np.array([place[sample.path] for sample in part]) for part in parts]


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every set of axes, the empty one first."""
    every: list[tuple[int, ...]] = [()]
    for axis in axes:
        every += [(*before, axis) for before in every]
    return every


def features_of(network: nn.Module, images: NDArray[np.uint8], flip: tuple[int, ...] = ()) -> NDArray[np.float32]:
    """Return the features (n, d) of RGB images (n, h, h, 3), flipped along some axes of (n, 3, h, h)."""
    from dreamset.classifiers import autocast, to_float
    from dreamset.core import device

    where, parts = device.pick(), []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            pixels = to_float(torch.from_numpy(images[start : start + _BATCH]).to(where), network).flip(flip)
            with autocast(where):
                parts.append(network.features(pixels).float().cpu().numpy())  # type: ignore[operator]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Quick(Fitted):
    """A simple classifier of the shots, fitted with the settings above: nothing about it is chosen.

    Attributes:
        shots: the features that all of a part share.
    """

    shots: Shots | None = None

    @functools.cached_property
    def key(self) -> str:
        """Return the key of the shard."""
        part, which = self.part, simple.BY_NAME[self.run.classifier]
        judge = judging.identity(part.workspace.root, part.params.base) if which.features == "judge" else {}
        inputs = {
            "classifier": which.name,
            "clip": part.clip if which.features == "clip" else None,
            "judge": judge.get("sha256"),
            "size": simple.size_of(part.split) if which.features == "pixels" else None,
            "groups": [sample.group for sample in part.split.train],
            "seeds": [part.params.seed, part.split.seed],
        }
        return shards.key_of(inputs | part.identity(REAL_ONLY), __name__)

    def make(self, folder: Path) -> None:
        """Fit the classifier to all shots and in each fold, and save it with its record in ``folder``."""
        from safetensors.numpy import save

        from dreamset import classifiers

        assert self.shots is not None
        started = time.perf_counter()
        which, labels = simple.BY_NAME[self.run.classifier], self.shots.labels
        network, features = self.shots.features(which.features)
        held_out, everything = self.shots.held_out, np.arange(len(labels))

        def learned(rows: NDArray[np.int64]) -> nn.Module:
            x = features[:, rows].reshape(-1, features.shape[-1])
            seed = seed_for("simple", self.part.params.seed, which.name) % 2**32
            # Whole groups leave a fold with few shots of some classes. Each class counts as among all shots, or a fold
            # would know little but which classes it has many of.
            own, every = labels[rows], len(features)
            weight = (np.bincount(labels) / np.bincount(own))[own]
            return fit(which.method, x, np.tile(own, every), C, seed, np.tile(weight, every))

        facts: dict[str, Any] = {"temperature": 1.0, "temperature_images": 0}
        facts |= {"accuracy_folds": None, "nll_folds": None}
        if held_out is not None:
            logits = np.zeros((len(labels), len(self.part.split.classes)), np.float32)
            for rows in held_out:
                head = learned(np.setdiff1d(everything, rows))
                with torch.inference_mode():
                    parts = torch.from_numpy(features[0, rows]).split(_BLOCK)
                    logits[rows] = torch.cat([head(part) for part in parts]).numpy()
            (folder / FOLDS).write_bytes(save({"logits": logits}))
            temperature = fit_temperature(logits, labels)
            facts = {
                "temperature": round(temperature, 4),
                "temperature_images": len(labels),
                "nll_folds": round(nll(logits / temperature, labels), 4),
                "accuracy_folds": round(float((logits.argmax(1) == labels).mean()), 4),
            }
        facts = {"steps": 0, "chosen_step": 0, "selection": "fixed"} | facts
        network.answer = learned(everything)
        classifiers.save(network, folder, {"classifier": which.name, "train_on": str(self.run.kind)} | facts)
        about: dict[str, Any] = {
            "train_on": str(self.run.kind),
            "classifier": which.name,
            "seconds": round(time.perf_counter() - started, 2),
            "images_per_second": None,
            "real_images": features.shape[0] * features.shape[1],
            "synthetic_images": 0,
            "selection_curve": [],
            "tried": [],
            "choice": None,
            "loss": [],
        }
        write_json(folder / RECORD, facts | about)


def units(part: Part, runs: Sequence[Run]) -> list[Fitted]:
    """Return the simple classifiers among some runs, to be fitted."""
    shots = Shots(part)
    return [Quick(part, run, shots=shots) for run in runs if run.classifier in simple.BY_NAME]


def fit(
    method: str,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    c: float,
    seed: int,
    weight: NDArray[np.float64] | None = None,
) -> nn.Module:
    """Return a fitted head.

    Args:
        method: of ``HEADS``.
        features: (n, d).
        labels: (n,), with every class from 0 on.
        c: inverse strength of the penalty of logistic regression.
        seed: of the forest, 0 to 2^32-1.
        weight: (n,), what each row counts; None: 1. A nearest neighbour is the nearest whatever it counts.
    """
    if method == "nearest":
        return _nearest(features, labels)
    with warnings.catch_warnings():
        # With one or two shots per class it asks whether the labels are numbers.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        if method == "logistic":
            return _logistic(features, labels, weight, c)
        return _forest(features, labels, weight, seed)


def _nearest(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Nearest:
    rows = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    most = max(map(len, rows))
    of_class = np.stack([np.concatenate([row, np.repeat(row[:1], most - len(row))]) for row in rows])
    norms = (features**2).sum(1)
    nearest = np.empty(len(features), np.float32)
    for start in range(0, len(features), _BLOCK):
        own = slice(start, start + _BLOCK)
        squares = norms[own, None] - 2 * features[own] @ features.T + norms
        np.fill_diagonal(squares[:, own], np.inf)
        nearest[own] = squares.min(1)
    # The nearest other shot is as far as new images will be, so that the temperature is of the order of one.
    scale = float(np.median(nearest)) if len(features) > 1 else 1.0
    return Nearest(_tensor(features), _tensor(of_class), torch.tensor(scale if scale > 1e-6 else 1.0))


def _logistic(
    features: NDArray[np.float32], labels: NDArray[np.int64], weight: NDArray[np.float64] | None, c: float
) -> Logistic:
    from sklearn.linear_model import LogisticRegression

    # The weights lie in the span of the shots, whose basis has as many dimensions as there are shots.
    basis = np.linalg.svd(features, full_matrices=False)[2] if features.shape[0] < features.shape[1] else None
    x = features if basis is None else features @ basis.T
    model = LogisticRegression(C=c, max_iter=1000).fit(x, labels, weight)
    layer = model.coef_ if basis is None else model.coef_ @ basis
    bias = model.intercept_
    if len(layer) == 1:  # of two classes it gives one logit, their difference
        layer, bias = np.concatenate([-layer, layer]) / 2, np.concatenate([-bias, bias]) / 2
    return Logistic(_tensor(layer.astype(np.float32)), _tensor(bias.astype(np.float32)))


def _forest(
    features: NDArray[np.float32], labels: NDArray[np.int64], weight: NDArray[np.float64] | None, seed: int
) -> Forest:
    from sklearn.ensemble import RandomForestClassifier

    # Every node holds the shares of all classes, which would fill the memory with thousands of shots of many classes.
    most = _SHARES // (TREES * (int(labels.max()) + 1))
    leaves = None if len(features) <= most else most
    model = RandomForestClassifier(TREES, max_leaf_nodes=leaves, random_state=seed)
    model.fit(features, labels, weight)
    trees = [tree.tree_ for tree in model.estimators_]
    root = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    own = np.arange(sum(tree.node_count for tree in trees))
    leaf = np.concatenate([tree.children_left < 0 for tree in trees])

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(tree, name) for tree in trees])

    def child(name: str) -> NDArray[np.int64]:
        moved = np.concatenate([getattr(tree, name) + start for tree, start in zip(trees, root, strict=True)])
        return np.where(leaf, own, moved).astype(np.int64)

    # Features are float32 and thresholds float64: the next float32 below asks the same question.
    exact = np.where(leaf, 0.0, joined("threshold"))
    threshold = exact.astype(np.float32)
    threshold = np.where(threshold > exact, np.nextafter(threshold, np.float32(-np.inf)), threshold)
    counts = joined("value")[:, 0]
    return Forest(
        depth=torch.tensor(max(tree.max_depth for tree in trees)),
        root=_tensor(root.astype(np.int64)),
        feature=_tensor(np.where(leaf, 0, joined("feature")).astype(np.int64)),
        threshold=_tensor(threshold),
        left=_tensor(child("children_left")),
        right=_tensor(child("children_right")),
        share=_tensor((counts / counts.sum(1, keepdims=True)).astype(np.float32)),
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
