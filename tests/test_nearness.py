"""Weights of synthetic images by their distance to the shots."""

import numpy as np
import pytest

from dreamset.classifiers import nearness as nearness_of


def test_near_images_count_more_and_each_class_as_much_as_before() -> None:
    # By their angle to the shot of their class, at 0 and 90 degrees.
    angles, labels = np.radians([10, 20, 40, 100, 130, 170]), np.array([0, 0, 0, 1, 1, 1])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    shots, of = np.array([[1, 0], [0, 1]], np.float32), np.array([0, 1])
    for nearness in (1.0, -1.0):
        weights = nearness_of.by_distance(features, labels, shots, of, nearness)
        assert (np.diff(nearness * weights[:3]) < 0).all() and (np.diff(nearness * weights[3:]) < 0).all()
        assert weights[:3].mean() == pytest.approx(1) and weights[3:].mean() == pytest.approx(1)
    # Distances by 1 minus the cosine, in units of their median.
    distances = 1 - np.cos(np.radians([10, 20, 40, 10, 40, 80]))
    ratios = np.exp(-distances / np.median(distances))
    weights = nearness_of.by_distance(features, labels, shots, of, 1.0)
    assert weights[0] / weights[2] == pytest.approx(ratios[0] / ratios[2], rel=1e-4)
    assert weights[3] / weights[5] == pytest.approx(ratios[3] / ratios[5], rel=1e-4)
    # Whatever the distances: most images are near-copies here, and one class far from its shot.
    angles = np.radians([1, 1, 1, 1, 1, 1, 90, 90, 5, 5])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([0] * 6 + [0, 0, 1, 1])
    for nearness in (5.0, -5.0):
        weights = nearness_of.by_distance(features, labels, shots, of, nearness)
        assert np.isfinite(weights).all() and weights[:8].mean() == pytest.approx(1)
        assert weights[8:] == pytest.approx(1)
    # Copies of the shots have no distance to measure by.
    assert (nearness_of.by_distance(shots, of, shots, of, 3.0) == 1).all()
