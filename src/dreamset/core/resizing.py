"""Resizing images, and what undoes it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STEPS: Final = (
    10  # at most, of the inversion; then all but one pixel in 10,000 of the digits are exact to one grey level
)
_LONGEST: Final = 16  # times the shortest side that are resized before the centre is cut out
_RELAXATION: Final = 1.6  # steps of the plain iteration, which are shorter, would have to be twice as many


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize the shortest side to ``size`` pixels, bicubic, and keep the aspect ratio.

    Images of 28 or 32 pixels are enlarged once to the resolution of the base. A drawn image is reduced once by the
    inverse, ``to_native``. Nothing in between is resized.
    """
    width, height = image.size
    if min(width, height) == size:
        return image
    scale = size / min(width, height)
    return image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)


def resize_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the shortest side to ``size`` and return the centre square: (size, size, 3) uint8."""
    import numpy as np

    if max(image.size) > _LONGEST * min(image.size):
        # Only the centre of a strip is kept, and all of it would be enlarged before.
        across, along = (min(side, _LONGEST * min(image.size)) for side in image.size)
        left, top = (image.width - across) // 2, (image.height - along) // 2
        image = image.crop((left, top, left + across, top + along))
    image = resize(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def to_native(image: Image.Image, native: int) -> Image.Image:
    """Return the small image that ``resize`` would enlarge to ``image``, or to the nearest possible one.

    Real images smaller than the base's resolution are enlarged before anything uses them. Detail that a drawn image
    has beyond that would give away its origin. This function inverts ``resize`` in least squares over 8-bit images:
    an enlarged image comes back as it was, up to rounding, where averaging would blur it once more.

    Args:
        image: RGB, any size; one that is no larger than ``native`` is returned unchanged.
        native: pixels on the shortest side of the result.
    """
    import numpy as np

    width, height = image.size
    if min(width, height) <= native:
        return image
    scale = native / min(width, height)
    up_y, down_y = _raising(max(native, round(height * scale)), height)
    up_x, down_x = _raising(max(native, round(width * scale)), width)

    def down(planes: Any) -> Any:
        return down_y @ planes @ down_x.T

    wanted = np.asarray(image, np.float32).transpose(2, 0, 1)
    small = down(wanted).clip(0, 255)
    # One step would be exact if enlarging did not cut off the overshoot at edges at black and white.
    for _ in range(_STEPS):
        raised = (up_y @ (small @ up_x.T).clip(0, 255)).clip(0, 255)
        before = small
        small = (before + _RELAXATION * down(wanted - raised)).clip(0, 255)
        if np.abs(small - before).max() < 0.1:
            break
    return Image.fromarray(np.round(small).astype(np.uint8).transpose(1, 2, 0))


@functools.cache
def _raising(small: int, large: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``resize`` along one side as a matrix (large, small) float32, and its pseudo-inverse (small, large)."""
    import numpy as np

    impulses = Image.fromarray(np.eye(small, dtype=np.float32))
    up: NDArray[np.float32] = np.asarray(impulses.resize((large, small), Image.Resampling.BICUBIC), np.float32).T
    return up, np.linalg.pinv(up.astype(np.float64)).astype(np.float32)
