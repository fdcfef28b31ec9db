"""The weight of a synthetic image in the loss, by its distance to the shots of its class.

With ``train.nearness`` a, image i has a weight in proportion to exp(-a d_i / m). d_i is its distance to the nearest
shot of its class: 1 minus the cosine of their CLIP features. m is the median of the set. The weights of a class have a
mean of 1, so that neither the classes nor the real images weigh more or less than before. Above 0, images near to the
shots count more; below 0, images far from them do.

As for filters, CLIP looks and not the judge, which scores the sets.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.workspace import Workspace
    from dreamset.data.arrays import Labelled
    from dreamset.data.splits import Split
    from dreamset.params import Params


def by_distance(
    drawn: NDArray[np.float32],
    labels: NDArray[np.int64],
    shots: NDArray[np.float32],
    shot_labels: NDArray[np.int64],
    nearness: float,
) -> NDArray[np.float32]:
    """Return the weights (n,) float32 of n synthetic images; those of each class have a mean of 1.

    Args:
        drawn: (n, d) unit features of the synthetic images.
        labels: (n,).
        shots: (m, d) unit features of the shots; every class of ``labels`` has one.
        shot_labels: (m,).
        nearness: above 0 near images count more, below 0 far ones.
    """
    import numpy as np

    distances = np.empty(len(labels))
    for label in np.unique(labels):
        own = labels == label
        distances[own] = 1 - (drawn[own] @ shots[shot_labels == label].T).max(1)
    middle = float(np.median(distances))
    if middle <= 0:  # at least half of the images equal shots, and no distance is a unit
        return np.ones(len(labels), np.float32)
    weights = np.empty(len(labels))
    for label in np.unique(labels):
        own = labels == label
        exponents = -nearness * distances[own] / middle
        weights[own] = np.exp(exponents - exponents.max())  # of nothing but ratios, so that none overflows
        weights[own] /= weights[own].mean()
    found: NDArray[np.float32] = weights.astype(np.float32)
    return found


class Looking:
    """The model's CLIP, and what it saw in the shots of a split.

    Args:
        params: all parameters.
        workspace: has the shots.
        split: names them.

    Raises:
        InputError: the CLIP or a shot is missing.
    """

    def __init__(self, params: Params, workspace: Workspace, split: Split) -> None:
        from dreamset.classifiers import clip_zeroshot, finest, seen
        from dreamset.classifiers.embedding import embed
        from dreamset.core.device import pick
        from dreamset.data import arrays

        self.clip = clip_zeroshot.build(None, params.base, split, workspace.root).to(pick()).eval()
        self.side = seen(self.clip.size, finest(split.native, params.base.resolution))
        shots = arrays.real(split.train, workspace.cell, self.side, workspace.scratch)
        self.shots, self.labels = embed(self.clip, shots.images), shots.labels

    def weigh(self, data: Labelled, seen: Labelled, nearness: float) -> Labelled:
        """Return synthetic images with their weights; ``seen`` are the same ones, ``side`` pixels square."""
        from dreamset.classifiers.embedding import embed

        weights = by_distance(embed(self.clip, seen.images), seen.labels, self.shots, self.labels, nearness)
        return dataclasses.replace(data, weights=weights)
