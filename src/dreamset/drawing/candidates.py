"""What a filter says of the candidates of an image, and what drawing asks of a filter.

It stands apart from the filters, so that no image that is drawn without one depends on their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Images of a class in a row among which a filter takes unlike ones. Were they all, each would depend on all before it.
GROUP: Final = 8


@dataclass(frozen=True)
class Rated:
    """What a filter thinks of images: accepted (n,) bool; score (n,), higher is better; features (n, d), unit."""

    accepted: NDArray[np.bool_]
    score: NDArray[np.float32]
    features: NDArray[np.float32]

    def rows(self, index: list[int]) -> Rated:
        """Return the ratings of some images."""
        return Rated(self.accepted[index], self.score[index], self.features[index])


class Chooser(Protocol):
    """A filter."""

    def rate(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Rated:
        """Rate RGB images (n, h, h, 3) uint8 of classes ``labels`` (n,)."""
        ...

    def choose(self, rated: list[Rated]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Choose a candidate for each image of a group, by the ratings of each turn: its turn, and whether accepted."""
        ...
