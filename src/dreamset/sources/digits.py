"""Real handwritten digits: scikit-learn's ``load_digits``, 1,797 images of 8x8, split by the forms they stood on.

Thirteen people filled in fourteen forms of the same digits, and the rows are in the order of the forms: the sequence
0 to 9, 0 to 9, 0 to 9, 0, 9, 5, 5, ... begins again at each boundary. So a block of rows is a form, by one writer. Who
wrote which is not recorded; one person may have filled in two. A random split would put every writer into both train
and test; whole forms put one there at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from dreamset.data.source import Image, Source
from dreamset.sources.reading import pixels_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Part = Literal["train", "selection", "test"]

CLASS_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The first row of each form, and the end.
BOUNDARIES: Final = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667, 1797)

BLOCKS: Final[dict[Part, range]] = {
    "train": range(0, 7),
    "selection": range(7, 9),
    "test": range(9, 14),
}


def load(parts: Sequence[Part]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Load the rows of the named parts, in scikit-learn's order.

    Args:
        parts: any of ``train`` (915 rows), ``selection`` (242) and ``test`` (640).

    Returns:
        ``images`` (n, 8, 8) uint8 in 0..255, bright ink on black; ``labels`` (n,) int64 in 0..9;
        ``groups`` (n,) int64, the form of each row.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    blocks = [block for part in parts for block in BLOCKS[part]]
    rows = np.concatenate([np.arange(BOUNDARIES[b], BOUNDARIES[b + 1]) for b in blocks])
    groups = np.concatenate([np.full(BOUNDARIES[b + 1] - BOUNDARIES[b], b) for b in blocks])
    # scikit-learn's values are 0..16.
    images = np.round(bunch.images[rows] * (255.0 / 16.0)).astype(np.uint8)
    return images, bunch.target[rows].astype(np.int64), groups.astype(np.int64)


def read() -> Source:
    """The digits as a source of 10 classes; shots, selection and test images come from different forms."""

    def part(name: Part) -> list[Image]:
        images = []
        for row, (pixels, label, group) in enumerate(zip(*load([name]), strict=True)):
            images.append(
                Image(
                    name=f"{name}_{row:04d}",
                    label=int(label),
                    group=f"block {group}",
                    pixels_sha256=pixels_digest(pixels.shape, pixels.tobytes()),
                    grey=True,
                    pixels=pixels,
                )
            )
        return images

    return Source(
        classes=CLASS_NAMES,
        template="a photo of the digit {class}",
        # A mirrored or upside-down digit is another digit, or none.
        invariances=("colour",),
        train=part("train"),
        selection=part("selection"),
        test=part("test"),
    )
