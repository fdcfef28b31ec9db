"""Calibration: NLL and ECE against values made by hand, and temperatures that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dreamset.classifiers import calibration


def test_nll_of_known_probabilities() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    # Logits are known up to a constant of each row.
    logits = np.log(probabilities) + np.array([[3.0], [-40.0]])
    expected = -(math.log(0.25) + math.log(0.8)) / 2
    assert calibration.nll(logits, np.array([2, 1])) == pytest.approx(expected)
    assert calibration.nll(np.array([[1000.0, 0.0]], np.float32), np.array([0])) == 0.0


def test_ece_counts_each_bin_by_its_images() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    logits = np.log(np.stack([confidence, 1 - confidence], 1))
    labels = np.array([0, 0, 0, 1, 1, 1])
    # 0.9 is right in 3 of 4, 0.6 in none of 2.
    assert calibration.ece(logits, labels) == pytest.approx((4 * 0.15 + 2 * 0.6) / 6)
    # One bin: errors of opposite signs meet in it.
    assert calibration.ece(logits, labels, bins=1) == pytest.approx(abs(confidence.mean() - 0.5))
    assert calibration.ece(np.array([[50.0, -50.0]]), np.array([0])) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("known", [0.4, 1.0, 2.5])
def test_the_temperature_of_sampled_labels_is_found(known: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20000, 5))
    # The largest of logits with Gumbel noise is a draw from their softmax.
    labels = (logits / known + rng.gumbel(size=logits.shape)).argmax(1)
    found = calibration.fit_temperature(logits.astype(np.float32), labels)
    assert found == pytest.approx(known, rel=0.05)
    assert calibration.nll(logits / found, labels) <= calibration.nll(logits, labels) + 1e-4


def test_a_few_images_that_are_all_right_give_no_certainty() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]] * 2
    found = calibration.fit_temperature(logits, np.arange(4))
    top = np.exp(calibration.log_softmax(logits / found)).max(1)
    assert top == pytest.approx(5 / 6, abs=1e-3)
