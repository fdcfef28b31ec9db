"""Accuracy, intervals, FID, KID and near-duplicates against independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from dreamset.metrics import duplicates
from dreamset.metrics.accuracy import bootstrap, confusion, most_confused, per_class, top_k
from dreamset.metrics.distribution import fid, kid, matched
from dreamset.metrics.duplicates import near_duplicates, nearest

RNG = np.random.default_rng(0)


def test_top_k_counts_ties_against_the_label() -> None:
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    labels = np.array([0, 2, 1, 3])
    assert top_k(logits, labels, 1) == 0.25
    assert top_k(logits, labels, 2) == 0.75
    assert top_k(logits, labels, 4) == 1.0


def test_confusion_has_labels_in_rows_and_per_class_is_its_diagonal() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 0])
    matrix = confusion(predicted, labels, 3)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert per_class(matrix) == [pytest.approx(1 / 3), 0.5, None]


def test_most_confused_are_the_largest_off_the_diagonal() -> None:
    matrix = np.array([[9, 2, 0], [3, 9, 2], [0, 1, 9]])
    assert most_confused(matrix, 3) == [(1, 0, 3), (0, 1, 2), (1, 2, 2)]
    assert len(most_confused(matrix, 9)) == 4
    assert most_confused(np.eye(3, dtype=np.int64), 3) == []


def test_bootstrap_agrees_with_scipy_bca() -> None:
    from scipy.stats import bootstrap as reference

    values = (RNG.random(200) < 0.85).astype(float)
    mine = bootstrap(values, 4000, 0.95, 1)
    theirs = reference((values,), np.mean, n_resamples=4000, method="BCa", random_state=2).confidence_interval
    assert mine.estimate == values.mean()
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(200):
        interval = bootstrap((RNG.random(150) < 0.8).astype(float), 400, 0.9, trial)
        hits += interval.low <= 0.8 <= interval.high
    assert 165 <= hits <= 195


def test_bootstrap_is_seeded_and_pairs_by_seed() -> None:
    a, b = (RNG.random((2, 300)) < 0.7).astype(float)
    assert bootstrap(a, 300, 0.95, 7) == bootstrap(a, 300, 0.95, 7)
    assert bootstrap(a, 300, 0.95, 7) != bootstrap(a, 300, 0.95, 8)
    same = bootstrap(a - a, 300, 0.95, 7)
    assert (same.low, same.estimate, same.high) == (0, 0, 0)
    # The two share most errors, so their difference is far narrower than either.
    close = a.copy()
    close[:6] = 1 - close[:6]
    paired = bootstrap(close - a, 300, 0.95, 7)
    alone = bootstrap(a, 300, 0.95, 7)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert bootstrap(b, 300, 0.95, 7).low < b.mean() < bootstrap(b, 300, 0.95, 7).high


def test_fid_and_kid_agree_with_torchmetrics() -> None:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :8].float()

    first = RNG.normal(0, 1, (120, 8)).astype(np.float32)
    second = (RNG.normal(0.3, 1.4, (120, 8)) @ RNG.normal(0, 0.5, (8, 8))).astype(np.float32)
    images = [torch.from_numpy(np.pad(f, ((0, 0), (0, 4))).reshape(-1, 3, 2, 2)) for f in (first, second)]
    theirs = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2))
    theirs_kid = KernelInceptionDistance(feature=Flat(), normalize=True, subsets=1, subset_size=120)
    for metric in (theirs, theirs_kid):
        metric.update(images[0], real=True)
        metric.update(images[1], real=False)
    assert fid(first, second) == pytest.approx(float(theirs.compute()), rel=1e-4)
    mean, deviation = kid(first, second, 1000, 0)
    assert mean == pytest.approx(float(theirs_kid.compute()[0]), rel=1e-4)
    assert deviation == 0


def test_kid_of_one_distribution_is_about_zero_and_subsets_are_seeded() -> None:
    first, second = RNG.normal(0, 1, (2, 200, 6)).astype(np.float32)
    assert fid(first, first) == pytest.approx(0, abs=1e-6)
    same, spread = kid(first, second, 50, 0)
    assert abs(same) < spread
    far, _ = kid(first, second + 1, 50, 0)
    assert far > 10 * abs(same)
    assert kid(first, second, 50, 3) == kid(first, second, 50, 3) != kid(first, second, 50, 4)


def test_matched_takes_equal_counts_of_every_class() -> None:
    real = np.array([0] * 5 + [1] * 2 + [2] * 4)
    synthetic = np.array([0] * 3 + [1] * 6)
    chosen_real, chosen_synthetic = matched(real, synthetic, 3, 0)
    assert np.bincount(real[chosen_real], minlength=3).tolist() == [3, 2, 0]
    assert (real[chosen_real] == synthetic[chosen_synthetic]).all()
    assert len(set(chosen_real)) == len(chosen_real)


def test_a_planted_copy_of_a_shot_is_found_first() -> None:
    shots = RNG.normal(0, 1, (6, 10)).astype(np.float32)
    held_out = RNG.normal(0, 1, (300, 10)).astype(np.float32)
    synthetic = RNG.normal(0, 1, (50, 10)).astype(np.float32)
    synthetic[17] = shots[4] + 1e-4
    synthetic[30] = shots[2]
    found = near_duplicates(synthetic, shots, held_out, 3)
    assert [pair[:2] for pair in found.pairs[:2]] == [(30, 2), (17, 4)]
    assert found.pairs[0][2] == 0
    assert 2 <= found.count <= 5
    distances = nearest(held_out, shots)[1]
    assert (distances < found.threshold).mean() == pytest.approx(0.01, abs=0.005)
    by_hand = np.linalg.norm(held_out[:, None] - shots[None], axis=2)
    assert distances == pytest.approx(by_hand.min(1), rel=1e-5)


def test_nearest_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    features, shots = RNG.normal(0, 1, (50, 10)).astype(np.float32), RNG.normal(0, 1, (7, 10)).astype(np.float32)
    whole = nearest(features, shots)
    monkeypatch.setattr(duplicates, "_CELLS", 7 * 9)
    pieces = nearest(features, shots)
    assert np.array_equal(whole[0], pieces[0])
    assert whole[1] == pytest.approx(pieces[1], rel=1e-12)
