"""Accuracy, intervals, distances, manifolds and near-duplicates against independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from dreamset.metrics import duplicates
from dreamset.metrics import manifold as manifolds
from dreamset.metrics.accuracy import bootstrap, confusion, most_confused, per_class, top_k
from dreamset.metrics.distribution import fid, kid, matched
from dreamset.metrics.duplicates import apart, near_duplicates, nearest
from dreamset.metrics.manifold import manifold, vendi

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
    found = near_duplicates(synthetic, shots, nearest(held_out, shots)[1], 3)
    assert [pair[:2] for pair in found.pairs[:2]] == [(30, 2), (17, 4)]
    assert found.pairs[0][2] == 0
    assert 2 <= found.count <= 5
    assert {2, 4} <= set(found.touched.tolist())
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


def test_every_real_image_within_the_threshold_is_touched_and_not_the_nearest_alone() -> None:
    real = np.array([[0.0], [1.0], [9.0]], np.float32)
    found = near_duplicates(np.array([[0.4]], np.float32), real, np.array([0.7, 0.7]), 5)
    assert (found.count, found.threshold) == (1, pytest.approx(0.7))
    assert found.touched.tolist() == [0, 1]
    assert near_duplicates(real, real, np.empty(0), 5).count == 0


def test_apart_leaves_the_own_group_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features = RNG.normal(0, 1, (40, 5)).astype(np.float32)
    groups = [f"writer {i % 4}" for i in range(40)]
    features[8] = features[4]  # of one writer
    found = apart(features, groups)
    for i in range(40):
        others = [j for j in range(40) if groups[j] != groups[i]]
        assert found[i] == pytest.approx(np.linalg.norm(features[others] - features[i], axis=1).min(), rel=1e-5)
    monkeypatch.setattr(duplicates, "_CELLS", 40 * 7)
    assert apart(features, groups) == pytest.approx(found, rel=1e-12)
    # One group for all says nothing: each image is then its own.
    assert apart(features, ["all"] * 40)[8] == 0
    assert apart(features[:1], ["all"]).size == 0


def _manifold_by_hand(real: np.ndarray, fake: np.ndarray) -> tuple[float, float, float, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def radius(a: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]

    across = distances(real, fake)
    return (
        np.mean((across <= radius(real, 3)[:, None]).any(0)),
        np.mean((across <= radius(fake, 3)[None]).any(1)),
        (across < radius(real, 5)[:, None]).sum() / (5 * len(fake)),
        np.mean(across.min(1) < radius(real, 5)),
    )


@pytest.mark.parametrize("cells", [manifolds._CELLS, 50])
def test_manifold_agrees_with_the_definitions_in_pieces_too(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(manifolds, "_CELLS", cells)
    real = RNG.normal(0, 1, (40, 3)).astype(np.float32)
    fake = RNG.normal(0.5, 0.6, (30, 3)).astype(np.float32)
    found = manifold(real, fake)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        _manifold_by_hand(real.astype(float), fake.astype(float))
    )
    assert found.precision > found.recall


def test_manifold_of_seven_points_on_a_line() -> None:
    real = np.arange(7, dtype=np.float32)[:, None]
    # The third nearest of 0, 1 ... is 3, 2, 2, 2, 2, 2, 3 away: the balls reach from -3 to 9.
    fake = np.array([[-3.0], [9.0], [9.5], [30.0], [30.0], [30.0], [30.0]], np.float32)
    found = manifold(real, fake)
    assert found.precision == pytest.approx(2 / 7)
    # Balls of the synthetic ones: 33 about -3, 20.5 and more about 9 and 9.5; 0 about the four at 30.
    assert found.recall == 1
    # The fifth nearest is 5, 4, 3, 3, 3, 4, 5 away, and open balls do not hold their ends.
    # -3 is in the balls of 0 and 1 (5 > 3, 4 = 4 is out): 1. 9 in that of 6 alone (5 = 4 about 5 is out): 1. 9.5: 1.
    assert found.density == pytest.approx(3 / (5 * 7))
    assert found.coverage == pytest.approx(2 / 7)


def test_manifold_limits() -> None:
    real = RNG.integers(0, 1000, (60, 4)).astype(np.float32)
    same = manifold(real, real)
    assert (same.precision, same.recall, same.density, same.coverage) == (1, 1, 1, 1)
    apart_ = manifold(real, real + 10_000)
    assert (apart_.precision, apart_.recall, apart_.density, apart_.coverage) == (0, 0, 0, 0)
    collapsed = manifold(real, np.repeat(real[:1], 60, axis=0))
    assert (collapsed.precision, collapsed.recall) == (1, pytest.approx(1 / 60))
    assert collapsed.coverage < 0.3
    # Of two draws of one distribution: density is 1 on average, coverage 1 - 2^-k for n = m and many images.
    first, second = RNG.normal(0, 1, (2, 1500, 6)).astype(np.float32)
    fair = manifold(first, second)
    assert fair.density == pytest.approx(1, abs=0.05)
    assert fair.coverage == pytest.approx(1 - 2.0**-5, abs=0.02)


def test_vendi_counts_what_is_different() -> None:
    assert vendi(np.ones((9, 4), np.float32)) == pytest.approx(1)
    assert vendi(np.eye(7, 20, dtype=np.float32)) == pytest.approx(7)
    assert vendi(3 * np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)) == pytest.approx(3)
    # Two alike and one apart: eigenvalues 2/3 and 1/3.
    pair = np.array([[1, 0], [2, 0], [0, 5]], np.float32)
    assert vendi(pair) == pytest.approx(np.exp(-(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3)))
    wide = RNG.normal(0, 1, (12, 30)).astype(np.float32)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / 12)
    assert vendi(wide) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    # The other of the two products, where there are more images than features.
    assert vendi(np.concatenate([wide, wide, wide])) == pytest.approx(vendi(wide), rel=1e-6)
