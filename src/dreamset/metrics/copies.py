"""Copies of real images among images that are to be published: a rule that rather finds too many than too few.

Windows of an image are correlated with windows of each real image and of its mirror image, as thumbnails of their
luminance. So a shift, a crop or a mirror image leaves a high correlation. An image is a copy where either holds:

- its best correlation is at least ``SAME``;
- it is much nearer to one real image than to any of another group: ``(1 - best) / (1 - next)`` is below ``RATIO``. This
  is the test of Lowe (2004, section 7.1). A ratio needs no scale, so it serves photographs and digits alike.

``python -m benchmarks.copies`` measures which changed copies it finds, and how many new real images it takes for
copies; docs/classifier.md has the figures. ``FOUND`` repeats some of them for cards.

It is not the rule by which ``prepare`` refuses splits (``dreamset.metrics.overlap``). That one has to be right about
each pair that it names, and finds hardly any copy that was shifted or mirrored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamset.core.images import THUMBNAIL
from dreamset.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

SAME: Final = 0.99
RATIO: Final = 0.4

_SCALES: Final = (15 / 16, 14 / 16, 13 / 16)  # sides of the windows beside the whole image
_IMAGES, _REAL = 256, 64  # compared at once: a few MiB


def copies(images: NDArray[np.uint8], real: NDArray[np.uint8], groups: Sequence[str]) -> NDArray[np.bool_]:
    """Say which images copy a real one, be it shifted, cropped or mirrored.

    Args:
        images: (n, h, h, 3) RGB.
        real: (m, k, k, 3) RGB, prepared like ``images``.
        groups: the group of each real image. Images of one group may be nearly the same picture, so that being near
            to two of them is no sign of being new.

    Returns:
        (n,)
    """
    best, following = correlations(images, real, groups)
    found: NDArray[np.bool_] = (best >= SAME) | (1 - best < RATIO * (1 - following))
    return found


def correlations(
    images: NDArray[np.uint8], real: NDArray[np.uint8], groups: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The best correlation of each image with a real one, and the best with one of another group than that one.

    Where there is only one group, each real image counts as a group. Of a single real image the second is 1, so that no
    ratio speaks.

    Returns:
        (n,), (n,)
    """
    import numpy as np

    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        codes = np.arange(len(real))
    boxes = [_centred(scale) for scale in (1.0, *_SCALES[:-1])]
    shown = np.stack([_windows(image, boxes) for image in images])
    best, following = np.full((2, len(images)), -1, np.float32)
    nearest = np.full(len(images), -1)
    with bar(total=len(real), what="copies", unit="image") as progress:
        for start in range(0, len(real), _REAL):
            members = codes[start : start + _REAL]
            patterns = _patterns(real[start : start + _REAL])
            for at in range(0, len(images), _IMAGES):
                rows = slice(at, at + _IMAGES)
                scores = _best(_normalised(shown[rows]), patterns, len(members))
                column = scores.argmax(1)
                first, group = scores.max(1), members[column]
                second = np.where(members == group[:, None], -1, scores).max(1)
                # Best of another group: what was best so far, or what is best here, whichever lost.
                same, closer = group == nearest[rows], first > best[rows]
                following[rows] = np.where(
                    closer,
                    np.maximum(second, np.where(same, following[rows], best[rows])),
                    np.maximum(following[rows], np.where(same, second, first)),
                )
                best[rows] = np.where(closer, first, best[rows])
                nearest[rows] = np.where(closer, group, nearest[rows])
            progress.update(len(members))
    return best, following if len(real) > 1 else np.ones_like(best)


def _best(shown: NDArray[np.float32], patterns: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The best correlation of any window of each image with any of each real image: (images, count)."""
    import numpy as np

    scores = np.full((len(shown), count), -1, np.float32)
    for window in range(shown.shape[1]):
        products = (shown[:, window] @ patterns.T).reshape(len(shown), count, -1)
        np.maximum(scores, products.max(2), out=scores)
    return scores


def _patterns(real: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The normalised windows of real images and of their mirror images, those of an image together."""
    import numpy as np

    boxes = [_centred(1.0), *(box for scale in _SCALES for box in _grid(scale))]
    windows = np.stack([_windows(image, boxes) for image in real])
    mirrored = windows.reshape(*windows.shape[:2], THUMBNAIL, THUMBNAIL)[..., ::-1].reshape(windows.shape)
    return _normalised(np.concatenate([windows, mirrored], axis=1)).reshape(-1, THUMBNAIL**2)


def _centred(scale: float) -> tuple[float, float, float, float]:
    """The window in the middle: left, upper, right and lower edge as shares of a side."""
    edge = (1 - scale) / 2
    return edge, edge, 1 - edge, 1 - edge


def _grid(scale: float) -> Iterator[tuple[float, float, float, float]]:
    """Nine windows, at the corners, along the edges and in the middle."""
    for top in (0.0, (1 - scale) / 2, 1 - scale):
        for left in (0.0, (1 - scale) / 2, 1 - scale):
            yield left, top, left + scale, top + scale


def _windows(image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.uint8]:
    """Thumbnails of an image's windows: (windows, THUMBNAIL**2)."""
    import numpy as np
    from PIL import Image

    grey = Image.fromarray(image).convert("L")
    side = grey.width
    flat = []
    for left, top, right, bottom in boxes:
        how = Image.Resampling.BOX if (right - left) * side >= THUMBNAIL else Image.Resampling.BICUBIC
        box = (left * side, top * side, right * side, bottom * side)
        flat.append(np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), how, box=box)).reshape(-1))
    return np.stack(flat)


def _normalised(windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails of mean 0 and length 1; one of a single colour has no pattern, and becomes 0."""
    import numpy as np

    values = windows.astype(np.float32)
    values -= values.mean(-1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    return values
