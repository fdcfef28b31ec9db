"""How often the intervals over seeds and groups of test images hold the truth, on simulated differences.

    python -m benchmarks.coverage

Every entry is the sum of an effect of its seed, of its group, of its image and of chance, all normal. One of them
varies most in each row, or all do. `crossed` is the interval of the project. `seeds alone` is the t interval over the
means of the seeds, which takes the images as they are.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.paired import markdown
from dreamset.metrics.statistics import crossed

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Standard deviations of the effects of seed, group and image, and of what is left.
_VARYING: Final = {
    "seeds": (0.02, 0.0, 0.0, 0.1),
    "groups": (0.001, 0.05, 0.0, 0.1),
    "images": (0.001, 0.0, 0.3, 0.1),
    "nothing but chance": (0.0, 0.0, 0.0, 0.4),
    "all": (0.02, 0.03, 0.2, 0.3),
}
_IMAGES: Final = 200


def main() -> None:
    """Print a row per number of seeds, number of groups and kind of variation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated tables per row")
    runs = parser.parse_args().runs
    rows = []
    for seeds in (6, 10):
        for groups in (_IMAGES, 25, 5):
            for name, deviations in _VARYING.items():
                shares = _covered(seeds, groups, deviations, runs)
                each = "images" if groups == _IMAGES else f"{groups} groups"
                rows.append([str(seeds), each, name, *(f"{share:.3f}" for share in shares)])
    print(markdown(["seeds", "units", "what varies", "crossed", "seeds alone"], rows), end="")


def _covered(seeds: int, groups: int, deviations: tuple[float, ...], runs: int) -> tuple[float, float]:
    """Return the shares of 95 % intervals that hold the true mean, 0: the project's, and the t interval over seeds."""
    rng, members = np.random.default_rng(0), np.arange(_IMAGES) % groups
    of_seed, of_group, of_image, rest = deviations
    held = np.zeros(2)
    for _ in range(runs):
        differences = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_group, groups)[members]
        differences = differences + rng.normal(0, of_image, (1, _IMAGES)) + rng.normal(0, rest, (seeds, _IMAGES))
        found = crossed(differences, 1, 0.95, members)
        held += (found.low <= 0 <= found.high, _over_seeds(differences.mean(1)))
    ours, theirs = held / runs
    return float(ours), float(theirs)


def _over_seeds(means: NDArray[np.float64]) -> bool:
    from scipy import stats

    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    return bool(low <= 0 <= high)


if __name__ == "__main__":
    main()
