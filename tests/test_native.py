"""Synthetic images pass through the real ones' native resolution before anything sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import prepare
from dreamset.core.files import sha256
from dreamset.core.images import png, read_rgb, resize_crop, to_native
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.splits import Split, read_split
from dreamset.data.synthetic import SyntheticImage, write_metadata
from dreamset.sources import digits

RNG = np.random.default_rng(0)


def _raised(pixels: np.ndarray, size: int) -> np.ndarray:
    return resize_crop(Image.fromarray(pixels).convert("RGB"), size)


@pytest.mark.parametrize("size", [16, 32])
def test_a_raised_digit_comes_back(size: int) -> None:
    gaps = []
    for digit in digits.load(["train"])[0][:60]:
        raised = _raised(digit, size)
        small = to_native(Image.fromarray(raised), 8)
        assert small.size == (8, 8)
        gaps.append(abs(resize_crop(small, size).astype(int) - raised))
    # Beyond one grey level only rounding, of Pillow's pass along one side and then along the other.
    assert np.max(gaps) <= 2
    assert (np.array(gaps) > 1).mean() < 0.0005


def test_a_photograph_that_is_not_square_comes_back_and_fine_detail_goes() -> None:
    y, x = np.mgrid[:30, :20]
    smooth = np.stack([4 * y + 3 * x + 30, 200 - 5 * x, 90 + 0 * x], -1).astype(np.uint8)
    raised = Image.fromarray(smooth).resize((64, 96), Image.Resampling.BICUBIC)
    small = to_native(raised, 20)
    assert small.size == (20, 30)
    assert abs(np.asarray(small).astype(int) - smooth).max() <= 1
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    passed = resize_crop(to_native(noise, 8), 64)
    assert passed.std() < 0.3 * np.asarray(noise).std()
    assert to_native(raised, 64) is raised


def test_synthetic_images_are_read_through_the_native_resolution_and_real_ones_as_they_are(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    small = digits.load(["train"])[0][:3]
    folder = place.synthetic("any")
    rows = []
    for label, pixels in enumerate(small):
        # What a perfect generator would draw, and then one pixel that no raised image has.
        drawn = _raised(pixels, 16).copy()
        drawn[8, 8] ^= 255 if label == 2 else 0
        data = png(drawn)
        name = f"{label}.png"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        rows.append(SyntheticImage(name, label, toy.CLASSES[label], 0, "", 0, 0, {}, None, sha256(data)))
    write_metadata(folder, rows)
    facts = {"source": "toy", "template": "{class}", "invariances": (), "shots": 1, "seed": 0}
    split = Split(classes=toy.CLASSES, train=(), selection=(), native=8, **facts)
    real = np.stack([_raised(pixels, 16) for pixels in small]).astype(int)
    passed = arrays.synthetic(folder, split, 16).images.astype(int)
    assert abs(passed[:2] - real[:2]).max() <= 2
    as_drawn = arrays.synthetic(folder, Split(classes=toy.CLASSES, train=(), selection=(), **facts), 16).images
    assert np.array_equal(as_drawn[2], np.asarray(read_rgb(folder / "2.png")))
    assert abs(passed[2, 8, 8] - as_drawn[2, 8, 8]).max() > 40
    unchanged = arrays.synthetic(folder, Split(classes=toy.CLASSES, train=(), selection=(), native=16, **facts), 16)
    assert np.array_equal(unchanged.images, as_drawn)


def test_prepare_says_the_native_size_of_the_shots(raw: dict[str, Any], workspace: Workspace, tmp_path: Path) -> None:
    place = workspace
    prepare.run(toy.parse(raw), place)
    assert read_split(place.splits).native == 8
    for name, sides in (("cat", [(40, 30), (50, 36)]), ("dog", [(36, 90), (60, 70)])):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for index in range(8):
            size = sides[index % 2]
            pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            (tmp_path / "raw" / name / f"{index}.png").write_bytes(png(pixels))
    raw["prepare"]["source"] = f"imagefolder:{tmp_path / 'raw'}"
    raw["selection"] = "extra:1"
    prepare.run(toy.parse(raw), place)
    split = read_split(place.splits)
    drawn = sorted(min(read_rgb(place.cell / sample.path).size) for sample in split.train)
    assert split.native == drawn[len(drawn) // 2]
    assert drawn[0] < drawn[-1]
