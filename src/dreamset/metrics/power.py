"""What so many images can show, before anything is measured on them.

Two classifiers are scored on the same n images. McNemar's exact test looks at the images that exactly one of the two
gets right. Their share d is assumed; of them the better classifier has the share (d + g) / 2d where its true gain is g.
The number of these images is binomial (n, d), and given k of them the better one's are binomial (k, (d + g) / 2d). The
power is the sum, over k, of the probability that the test rejects in favour of the better one (Duffy 1984;
``mcnemar.power``). The smallest gain that n images show is the g of a power of 80 %.
"""

from __future__ import annotations

from dreamset.metrics.mcnemar import DISCORDANT, POWER, power


def smallest_shown(images: int, confidence: float) -> float | None:
    """Return the smallest true gain that the test on ``images`` images finds four times in five, to a thousandth.

    The share of images on which the two classifiers disagree is taken as ``mcnemar.DISCORDANT``, or as the gain itself
    where that is larger, since nothing then gets worse.

    Args:
        images: number of images that both classifiers are scored on.
        confidence: the test rejects at 1 - ``confidence``.

    Returns:
        A share of the images, above 0 to 1; None where even a gain on every image is found less often.
    """
    from scipy.optimize import brentq

    def surplus(gain: float) -> float:
        return power(gain, images, confidence, max(DISCORDANT, gain)) - POWER

    if images < 1 or surplus(1.0) < 0:
        return None
    return round(float(brentq(surplus, 1e-6, 1.0, xtol=1e-4)), 3)


def words(images: int, confidence: float, what: str) -> str:
    """Return what so many images can show, in a sentence; ``what`` names them, such as "test images"."""
    gain = smallest_shown(images, confidence)
    if gain is None:
        return f"{images} {what} can show no gain at all; add labelled images"
    return f"a gain of {100 * gain:.1f} points, found 4 times in 5 on {images} {what}"
