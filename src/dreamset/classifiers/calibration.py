"""Calibration of probabilities: NLL, ECE and the temperature that improves them (Guo et al. 2017)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS: Final = 15
_WIDEST: Final = 100.0  # temperatures are sought between 1 / 100 and 100


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log probabilities (n, classes) float64 of logits (n, classes)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    normal: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normal


def nll(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

    Args:
        logits: (n, classes).
        labels: (n,).
    """
    return -float(log_softmax(logits)[np.arange(len(labels)), labels].mean())


def ece(logits: NDArray[np.floating], labels: NDArray[np.int64], bins: int = BINS) -> float:
    """Return the expected calibration error of the top label.

    It is the mean gap between confidence and accuracy over bins of equal width, weighted by the bins' counts.

    Args:
        logits: (n, classes).
        labels: (n,).
        bins: number of bins over 0..1, each open below and closed above.
    """
    probabilities = np.exp(log_softmax(logits))
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # For each bin, its gap times its count.
    gaps = np.bincount(place, confidence - right, bins)
    return float(abs(gaps).sum() / len(labels))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature that gives the least NLL when logits are divided by it.

    A few images may all be right, and then the NLL falls without end as the temperature falls. So the targets are
    Platt's (1999): the label has (n + 1) / (n + 2) and the other classes share the rest, as if one more image were
    right and one wrong.

    Args:
        logits: (n, classes) of images that were not trained on, two classes or more.
        labels: (n,).
    """
    from scipy.optimize import minimize_scalar

    n, classes = logits.shape
    rest = 1 / (n + 2)
    targets = np.full((n, classes), rest / (classes - 1))
    targets[np.arange(n), labels] = 1 - rest

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / math.exp(log_temperature))).sum(1).mean())

    widest = math.log(_WIDEST)
    least = minimize_scalar(loss, bounds=(-widest, widest), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(least.x))
