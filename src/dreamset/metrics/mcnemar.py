"""Two classifiers on the same images: McNemar's exact test, and how small a gain so few images can show.

Only images that one of the two gets right and the other wrong tell them apart. Without a true difference each of these
discordant images falls to either side with equal chance (McNemar 1947), so that their number decides what can be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POWER: Final = 0.8
DISCORDANT: Final = 0.2  # share of images that power is computed for: two few-shot classifiers on a task of some 80 %


@dataclass(frozen=True)
class Paired:
    """Images that only the first classifier got right (``gained``), only the second (``lost``), and the p-value."""

    gained: int
    lost: int
    p: float


def mcnemar(differences: NDArray[np.float64]) -> Paired:
    """The exact, two-sided test that two classifiers are equally often right.

    Images are taken as independent, groups or not.

    Args:
        differences: (n,) 1 where only the first is right, -1 where only the second is, else 0.
    """
    from scipy.stats import binomtest

    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    # None discordant: nothing speaks against equality.
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(gained, lost, p)


def score_interval(gained: int, lost: int, images: int, confidence: float) -> tuple[float, float]:
    """Tango's (1998) interval of the difference of two accuracies on the same images: all that a score test accepts.

    It has a width however few images the two classifiers disagree on, also where they disagree on none.

    Args:
        gained: images that only the first classifier got right.
        lost: images that only the second got right.
        images: all of them, 1 or more.
        confidence: of the interval, 0..1.

    Returns:
        The ends, -1..1, as shares of the images.
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (gained - lost) / images

    def score(difference: float) -> float:
        """The estimate's distance from ``difference`` in the standard errors that hold if that is true."""
        linear = (2 * images - gained + lost) * difference - gained - lost
        constant = -lost * difference * (1 - difference)
        # Most likely share of lost images under that difference: the larger root of a quadratic.
        share = (max(linear**2 - 8 * images * constant, 0) ** 0.5 - linear) / (4 * images)
        variance = images * (2 * share + difference * (1 - difference))
        return float(images * (estimate - difference) / max(variance, 1e-24) ** 0.5)

    edge = 1 - 1e-9
    low = -1.0 if estimate <= -edge else float(brentq(lambda d: score(d) - z, -edge, estimate))
    high = 1.0 if estimate >= edge else float(brentq(lambda d: score(d) + z, estimate, edge))
    return low, high


def fewest_discordant(confidence: float) -> int:
    """Discordant images, all on one side, from which on the test rejects at 1 - ``confidence``: 6 at 95 %."""
    count = 1
    while 2 * 0.5**count > 1 - confidence:
        count += 1
    return count


def smallest_gain(images: int, confidence: float) -> float | None:
    """The smallest difference of accuracy that the test can show, when all discordant images are on one side.

    None where even a difference on every image would not be enough.
    """
    fewest = fewest_discordant(confidence)
    return fewest / images if images >= fewest else None


def power(gain: float, images: int, confidence: float, discordant: float) -> float:
    """Probability that the test finds a true gain, computed exactly (Duffy 1984).

    Args:
        gain: true difference of the two accuracies, at most ``discordant``.
        images: on which both are scored.
        confidence: the test rejects at 1 - ``confidence``.
        discordant: share of images that exactly one of the two gets right.
    """
    import numpy as np
    from scipy.stats import binom

    # Beyond these counts lies a millionth of the probability.
    count = np.arange(binom.ppf(5e-7, images, discordant), binom.ppf(1 - 5e-7, images, discordant) + 1)
    # The largest smaller side with which the test still rejects; -1 where none does.
    worst = binom.ppf((1 - confidence) / 2, count, 0.5)
    worst = np.where(binom.cdf(worst, count, 0.5) <= (1 - confidence) / 2, worst, worst - 1)
    better = (discordant + gain) / (2 * discordant)
    # Only the side of the true gain counts: rejecting for the other side is a mistake.
    found = binom.cdf(worst, count, 1 - better)
    return float((binom.pmf(count, images, discordant) * found).sum())


def detectable_gain(images: int, confidence: float, discordant: float = DISCORDANT) -> float | None:
    """The smallest true gain that the test finds with a probability of 80 %, to a thousandth.

    None where not even the largest does, which is ``discordant`` itself.
    """
    from scipy.optimize import brentq

    def short(gain: float) -> float:
        return power(gain, images, confidence, discordant) - POWER

    if short(discordant) < 0:
        return None
    return round(float(brentq(short, 0.0, discordant, xtol=1e-4)), 3)


def reach(images: int, confidence: float) -> dict[str, Any]:
    """What so many images can show: ``smallest_gain``, ``detectable_gain``, and both in words.

    ``warning`` is None where a gain has a fair chance to be shown.
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
