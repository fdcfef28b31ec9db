"""How many trials the importances of a study take: ``python -m benchmarks.shares``.

The importances of made-up studies whose shares are known: three knobs over the unit cube, one of which does nothing.
CAS is a sum of two knobs and of their product, with noise of a fifth of its variance. The share of the product beyond
the two knobs alone is that of the pair.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import paired
from dreamset.core.progress import bar
from dreamset.study.importance import forest_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TRIALS = (20, 24, 40, 80, 160, 320)
PAIRS = (0.0, 0.2, 0.42)  # true shares of a pair
NOISE = 0.2


def study(trials: int, pair: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (n, 3) of the trials of a study in 0..1, and their CAS (n,), where a pair has a known share."""
    rng = np.random.default_rng([seed, trials])
    x = rng.uniform(size=(trials, 3))
    a, b = ((column - 0.5) * math.sqrt(12) for column in x.T[:2])  # of mean 0 and variance 1
    signal = math.sqrt((1 - pair) / 2) * (a + b) + math.sqrt(pair) * a * b
    return x, signal + rng.normal(0, math.sqrt(NOISE / (1 - NOISE)), trials)


def measure(trials: int, pair: float, seeds: Sequence[int]) -> dict[str, Any]:
    """The estimated share of the pair over seeds: its mean, and the root of its mean squared error."""
    found = np.array([forest_shares(*study(trials, pair, seed))[1][0, 1] for seed in seeds])
    error = float(np.sqrt(((found - pair) ** 2).mean()))
    return {"trials": trials, "true": pair, "mean": float(found.mean()), "error": error}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run from the command line; what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="made-up studies for each row. Default: 8")
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS, help="finished trials of a study")
    options = parser.parse_args(arguments)
    wanted = [(trials, pair) for trials in options.trials for pair in PAIRS]
    rows = [measure(trials, pair, range(options.seeds)) for trials, pair in bar(wanted, what="shares", unit="row")]
    head = ("finished trials", *(f"{pair:g} is true" for pair in PAIRS), "largest error")
    lines = []
    for trials in options.trials:
        own = [row for row in rows if row["trials"] == trials]
        lines.append([str(trials), *(f"{row['mean']:.2f}" for row in own), f"{max(row['error'] for row in own):.2f}"])
    print(paired.markdown(head, lines))
    return rows


if __name__ == "__main__":
    main()
