"""The networks of the simple classifiers: features of pixels or of CLIP, under one of three heads.

A head is nearest neighbour, logistic regression or random forest. It holds its arrays as buffers, gives the answers of
scikit-learn's estimator, and runs without scikit-learn. So it is saved without pickle, and exported like any network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamset.classifiers.clip import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.weights.pretrained import Pretrained

TREES: Final = 100  # of a forest
_LEAST: Final = 1 / (2 * TREES)  # a class that no tree votes for counts as half a vote, so that its logit is finite


class Head(nn.Module):
    """Arrays by name, as buffers: the file of the head holds them under the same names."""

    def __init__(self, **arrays: Tensor) -> None:
        super().__init__()
        for name, value in arrays.items():
            self.register_buffer(name, value)


class Nearest(Head):
    """Nearest neighbour in Euclidean distance: a class is as likely as its nearest shot is near.

    Args:
        shots: (n, d) float32, features of the shots.
        of_class: (classes, most) int64, rows of ``shots`` by label; a class with fewer repeats its first.
        scale: () float32, the squared distance that counts as one unit of the logits.
    """

    shots: Tensor
    of_class: Tensor
    scale: Tensor
    labels: Tensor  # (n,) int64, of the shots

    def __init__(self, shots: Tensor, of_class: Tensor, scale: Tensor) -> None:
        super().__init__(shots=shots, of_class=of_class, scale=scale)
        self.classes = len(of_class)
        labels = torch.zeros(len(shots), dtype=torch.int64)
        labels[of_class.flatten()] = torch.arange(self.classes).repeat_interleave(of_class.shape[1])
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of features (n, d)."""
        squares = (x * x).sum(1, keepdim=True) - 2 * x @ self.shots.T + (self.shots * self.shots).sum(1)
        nearest = squares.new_full((len(x), self.classes), torch.inf)
        # Not the squares of each class side by side: padded to the largest one, these would take far more memory.
        return -nearest.scatter_reduce(1, self.labels.expand(len(x), -1), squares, "amin") / self.scale


class Logistic(Head):
    """Logistic regression: ``weight`` (classes, d) and ``bias`` (classes,), float32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight=weight, bias=bias)
        self.classes = len(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of features (n, d)."""
        return F.linear(x, self.weight, self.bias)


class Forest(Head):
    """A random forest, all nodes of all trees in one list; a leaf leads to itself.

    Args:
        root: (trees,) int64, the first node of each tree.
        feature: (nodes,) int64, the feature that a node asks for.
        threshold: (nodes,) float32; at most so much leads to the left.
        left: (nodes,) int64.
        right: (nodes,) int64.
        share: (nodes, classes) float32, shares of the classes among the shots of a node.
        depth: () int64, steps from a root to the deepest leaf.
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    share: Tensor

    def __init__(self, depth: Tensor, **arrays: Tensor) -> None:
        super().__init__(depth=depth, **arrays)
        self.classes = self.share.shape[1]
        self.steps = int(depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of features (n, d)."""
        node = self.root.expand(len(x), -1)
        for _ in range(self.steps):
            goes_left = x.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node])
        return self.share[node].mean(1).clamp_min(_LEAST).log()


HEADS: Final[dict[str, type[Any]]] = {"nearest": Nearest, "logistic": Logistic, "forest": Forest}

# The same in the program of a card: `weights` are the file's arrays, `x` the features.
PROGRAMS: Final = {
    "nearest": """
    squares = (x * x).sum(1, keepdim=True) - 2 * x @ weights["shots"].T + (weights["shots"] ** 2).sum(1)
    nearest = torch.stack([squares[:, rows].amin(-1) for rows in weights["of_class"]], 1)
    return -nearest / weights["scale"]
""",
    "logistic": """
    return F.linear(x, weights["weight"], weights["bias"])
""",
    "forest": f"""
    node = weights["root"].expand(len(x), -1)
    for _ in range(int(weights["depth"])):
        goes_left = x.gather(1, weights["feature"][node]) <= weights["threshold"][node]
        node = torch.where(goes_left, weights["left"][node], weights["right"][node])
    return weights["share"][node].mean(1).clamp_min({_LEAST}).log()
""",
}


class Pixels(nn.Module):
    """The pixels of an image, in 0..1, under a head.

    Args:
        size: pixels, both sides.
        head: from features (n, 3 * size * size) to logits; None where only the features are needed.
    """

    label_smoothing = 0.0

    def __init__(self, size: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.size = size
        self.answer = head or nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, 3 * size * size) of (n, 3, size, size) images in 0..1."""
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
        # Distances and thresholds need all digits of the features.
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.answer(self.features(images))
        return logits


class ClipFeatures(Clip):
    """CLIP's frozen image tower under a head, which takes features of length one; None where only these are needed."""

    def __init__(self, base: Pretrained, prompts: Sequence[str], head: nn.Module | None = None) -> None:
        # It uses no captions, and only their number matters.
        super().__init__(base.create(), base.tokenizer()(list(prompts)), base)
        self.answer = head or nn.Identity()

    def last(self) -> nn.Module:
        """Return what turns features of length one into logits."""
        return self.answer

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.answer(features)
        return logits
