"""Two classifiers on the same images: McNemar's exact test, and the smallest gain that it can detect.

Only the images that exactly one of the two gets right distinguish them. Without a true difference, each of these
discordant images falls to either side with equal chance (McNemar 1947). So their number limits the test's power.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POWER: Final = 0.8
DISCORDANT: Final = 0.2  # assumed share of discordant images: two few-shot classifiers of about 80 % accuracy


@dataclass(frozen=True)
class Paired:
    """The numbers of images that only the first (``gained``) or only the second (``lost``) got right, and p."""

    gained: int
    lost: int
    p: float


def mcnemar(differences: NDArray[np.float64]) -> Paired:
    """Test exactly and two-sided whether two classifiers are equally often right.

    The test takes images as independent, even where they form groups.

    Args:
        differences: (n,) 1 where only the first is right, -1 where only the second is, else 0.
    """
    from scipy.stats import binomtest

    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    # Without discordant images nothing speaks against equality.
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(gained, lost, p)


def score_interval(gained: int, lost: int, images: int, confidence: float) -> tuple[float, float]:
    """Tango's (1998) interval of the difference of two accuracies on the same images.

    It holds all differences that a score test accepts. It has a width even where the two classifiers never disagree.

    Args:
        gained: number of images that only the first classifier got right.
        lost: number of images that only the second got right.
        images: number of all images, 1 or more.
        confidence: the interval's confidence, 0..1.

    Returns:
        The ends, -1..1, as shares of the images.
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (gained - lost) / images

    def score(difference: float) -> float:
        """The estimate's distance from ``difference``, in standard errors under the assumption that it is true."""
        linear = (2 * images - gained + lost) * difference - gained - lost
        constant = -lost * difference * (1 - difference)
        # The most likely share of lost images given that difference: the larger root of a quadratic.
        share = (max(linear**2 - 8 * images * constant, 0) ** 0.5 - linear) / (4 * images)
        variance = images * (2 * share + difference * (1 - difference))
        return float(images * (estimate - difference) / max(variance, 1e-24) ** 0.5)

    edge = 1 - 1e-9
    low = -1.0 if estimate <= -edge else float(brentq(lambda d: score(d) - z, -edge, estimate))
    high = 1.0 if estimate >= edge else float(brentq(lambda d: score(d) + z, estimate, edge))
    return low, high


def fewest_discordant(confidence: float) -> int:
    """The fewest discordant images, all on one side, with which the test rejects at 1 - ``confidence``: 6 at 95 %."""
    count = 1
    while 2 * 0.5**count > 1 - confidence:
        count += 1
    return count


def smallest_gain(images: int, confidence: float) -> float | None:
    """The smallest difference of accuracy that the test can detect, with all discordant images on one side.

    None where even a difference on every image is not enough.
    """
    fewest = fewest_discordant(confidence)
    return fewest / images if images >= fewest else None


def power(gain: float, images: int, confidence: float, discordant: float) -> float:
    """The exact probability that the test detects a true gain (Duffy 1984).

    Args:
        gain: true difference of the two accuracies, at most ``discordant``.
        images: number of images that both classifiers are scored on.
        confidence: the test rejects at 1 - ``confidence``.
        discordant: share of images that exactly one of the two gets right.
    """
    import numpy as np
    from scipy.stats import binom

    # The counts outside this range have a total probability of a millionth.
    count = np.arange(binom.ppf(5e-7, images, discordant), binom.ppf(1 - 5e-7, images, discordant) + 1)
    # The largest count of the smaller side with which the test still rejects; -1 where there is none.
    worst = binom.ppf((1 - confidence) / 2, count, 0.5)
    worst = np.where(binom.cdf(worst, count, 0.5) <= (1 - confidence) / 2, worst, worst - 1)
    better = (discordant + gain) / (2 * discordant)
    # Only the side of the true gain counts: a rejection in favour of the other side is a mistake.
    detected = binom.cdf(worst, count, 1 - better)
    return float((binom.pmf(count, images, discordant) * detected).sum())


def detectable_gain(images: int, confidence: float, discordant: float = DISCORDANT) -> float | None:
    """The smallest true gain that the test detects with a probability of 80 %, rounded to a thousandth.

    None where even the largest possible gain, ``discordant``, has a lower probability.
    """
    from scipy.optimize import brentq

    def surplus(gain: float) -> float:
        return power(gain, images, confidence, discordant) - POWER

    if surplus(discordant) < 0:
        return None
    return round(float(brentq(surplus, 0.0, discordant, xtol=1e-4)), 3)


def reach(images: int, confidence: float) -> dict[str, Any]:
    """The gains that a test on ``images`` images can detect: ``smallest_gain``, ``detectable_gain``, and both in words.

    ``warning`` is None where the test has a fair chance to detect a gain.
    """
    smallest, likely = smallest_gain(images, confidence), detectable_gain(images, confidence)
    level = f"{100 * confidence:g} %"
    warning = None
    if smallest is None:
        words = f"On {images} images no difference can be shown at {level}: {fewest_discordant(confidence)} are needed."
        warning = f"{words} Add labelled images."
    else:
        words = (
            f"On {images} images the smallest gain that the exact McNemar test can show at {level} is "
            f"{100 * smallest:.1f} points, when nothing gets worse ({fewest_discordant(confidence)} images)"
        )
        if likely is None:
            words += (
                f"; where two classifiers disagree on {100 * DISCORDANT:g} % of the images, no gain is found with a "
                f"probability of {100 * POWER:g} %."
            )
            warning = f"{words} Add labelled images, or believe only the intervals."
        else:
            words += (
                f"; where two classifiers disagree on {100 * DISCORDANT:g} % of the images, it finds a true gain of "
                f"{100 * likely:.1f} points with a probability of {100 * POWER:g} %."
            )
    return {
        "images": images,
        "smallest_gain": None if smallest is None else round(smallest, 4),
        "detectable_gain": likely,
        "discordant_share": DISCORDANT,
        "power": POWER,
        "words": words,
        "warning": warning,
    }
