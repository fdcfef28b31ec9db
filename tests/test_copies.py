"""Copies of real images among those to publish: found though changed, and new images let alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from benchmarks.copies import CHANGES, FOLDER, ROOT, digits, markdown, photographs

from dreamset.data import cards
from dreamset.metrics import copies as module
from dreamset.metrics.copies import copies, correlations


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """60 smooth pictures, (60, 32, 32, 3) uint8, that have nothing in common."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(grid).resize((32, 32), Image.Resampling.BICUBIC)) for grid in grids])


def groups(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_new_pictures_are_not(pictures: np.ndarray, change: str) -> None:
    real, new = pictures[:40], pictures[40:]
    rng = np.random.default_rng(1)
    planted = np.stack([CHANGES[change](image, rng) for image in real[:20]])
    found = copies(np.concatenate([new, planted]), real, groups(40))
    assert not found[:20].any()
    assert found[20:].mean() >= 0.9


def test_the_same_picture_twice_is_found_by_its_group_alone(pictures: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    # Of each real picture there is a second one, a little changed; the copy is about as near to both.
    twice = np.concatenate([pictures[:10], np.stack([CHANGES["blurred by 1.5 %"](p, rng) for p in pictures[:10]])])
    planted = np.stack([CHANGES["turned by 4 degrees"](picture, rng) for picture in pictures[:10]])
    assert not copies(planted, twice, groups(20)).any()
    assert copies(planted, twice, groups(10) * 2).mean() > 0.8
    # One group alone tells nothing apart, so that each image stands for itself.
    np.testing.assert_array_equal(copies(planted, twice, ["all"] * 20), copies(planted, twice, groups(20)))


def test_blocks_change_nothing(pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images, real, names = pictures[30:], pictures[:30], [str(number % 7) for number in range(30)]
    images = np.concatenate([images, real[:9]])
    expected = correlations(images, real, names)
    monkeypatch.setattr(module, "_IMAGES", 4)
    monkeypatch.setattr(module, "_REAL", 3)
    for found, whole in zip(correlations(images, real, names), expected, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-6)
    # By the definition: the second is the best of another group than the first one's.
    codes = np.array(names)
    for row, (best, following) in enumerate(zip(*expected, strict=True)):
        alone = np.array([correlations(images[row : row + 1], real[i : i + 1], ["x"])[0][0] for i in range(30)])
        assert best == pytest.approx(alone.max(), abs=1e-6)
        assert following == pytest.approx(alone[codes != codes[alone.argmax()]].max(), abs=1e-6)


def test_one_real_image_and_flat_ones(pictures: np.ndarray) -> None:
    flat = np.full((1, 32, 32, 3), 200, np.uint8)
    images = np.concatenate([flat, pictures[:2]])
    assert copies(images, pictures[:1], ["a"]).tolist() == [False, True, False]
    assert copies(images, np.concatenate([flat, pictures[:1]]), ["a", "b"]).tolist() == [False, True, False]


@pytest.mark.parametrize(("what", "recall"), [("shifted by 4 %", 0.9), ("mirrored", 0.95), ("cropped by 3 %", 0.9)])
def test_copies_of_photographs_are_found(what: str, recall: float) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"needs the photographs in {FOLDER}")
    shots, names, new = photographs(FOLDER, per_class=2, new=150)
    rng = np.random.default_rng(1)
    planted = np.stack([CHANGES[what](shot, rng) for shot in shots[:60]])
    found = copies(np.concatenate([planted, new]), shots, names)
    assert found[:60].mean() >= recall
    assert found[60:].mean() <= 0.05


def test_copies_of_digits_are_found() -> None:
    shots, names, new = digits(per_class=4, new=200)
    rng = np.random.default_rng(1)
    planted = np.stack([CHANGES["shifted by 4 %"](shot, rng) for shot in shots])
    found = copies(np.concatenate([planted, new]), shots, names)
    assert found[:40].mean() >= 0.9
    assert found[40:].mean() <= 0.15


def test_cards_and_docs_give_the_figures_that_were_measured() -> None:
    record = json.loads((ROOT / "benchmarks/results/copies.json").read_text())
    kinds = [record["photographs"], record["digits"]]
    least = min(shares["published"] for kind in kinds for shares in kind["recall"].values())
    alarms = [f"{100 * kind['false_alarms']['published']:.1f}" for kind in kinds]
    assert re.findall(r"([\d.]+) %", cards.FOUND) == [str(int(100 * least)), "4", "7", *alarms]
    told = (ROOT / "docs/classifier.md").read_text()
    assert markdown(record) in told
    alone = [f"{100 * kind['false_alarms']['pixels']:.1f} % of the new" for kind in kinds]
    assert all(share in told for share in alone)
    cost = record["seconds_per_1000_images"]
    assert f"take {cost['pixels_over_hash']:.0f} times as long" in told
    assert f"{cost['pixels']} s in place of {cost['hash']} s" in told
