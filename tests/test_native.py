"""Synthetic images pass through the real ones' native resolution before anything sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import prepare, train
from dreamset.classifiers import fit
from dreamset.core.files import read_json, sha256
from dreamset.core.images import png, read_rgb
from dreamset.core.resizing import resize, resize_crop, to_native
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.splits import Sample, Split, read_split, read_test, write_split, write_test
from dreamset.data.synthetic import SyntheticImage, write_metadata
from dreamset.evaluate.logits import Images
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


def _sized(place: Workspace, side: int) -> Split:
    """Splits whose real images have so many pixels, of detail that a smaller image cannot hold."""
    split = toy.write_splits(place, selection=1)
    for path in sorted((place.cell / "data").rglob("*.png")):
        Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

    def anew(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        files = [(sample, (place.cell / sample.path).read_bytes()) for sample in samples]
        return tuple(dataclasses.replace(sample, sha256=sha256(data)) for sample, data in files)

    split = dataclasses.replace(split, train=anew(split.train), selection=anew(split.selection), native=side)
    write_split(place.splits, split)
    test = read_test(place.test_split)
    write_test(place.test_split, dataclasses.replace(test, test=anew(test.test)))
    return split


@pytest.mark.parametrize(
    ("native", "small", "large"), [(8, 16, 64), (28, 28, 64), (31, 31, 64), (105, 32, 105), (3000, 32, 224)]
)
def test_a_native_size_is_that_of_the_shots_within_what_the_network_is_for(native: int, small: int, large: int) -> None:
    params = toy.params(models__bundled__train__resnet50__size="native")
    rows: Any = params.base.train.rows
    assert (rows["resnet20"].side(native), rows["resnet50"].side(native)) == (small, large)
    assert rows["resnet20"].side(None) == 16
    fixed: Any = toy.params(models__bundled__train__resnet20__size=24).base.train.rows["resnet20"]
    assert fixed.side(native) == 24


def test_every_arm_sees_the_shots_own_size_and_no_real_image_is_lowered_to_the_bases(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = _sized(workspace, 28)
    toy.write_synthetic(workspace, "datadream_dset", per_class=3)
    params = toy.params(selection="extra:1", train__classifiers=["resnet20"], train__baselines=[])
    seen: dict[str, np.ndarray] = {}
    whole = fit.fit

    def spy(classifier: Any, sources: Any, selection: Any, *given: Any, **named: Any) -> Any:
        seen.update({source.name: source.data.images for source in sources} | {"selection": selection.images})
        return whole(classifier, sources, selection, *given, **named)

    monkeypatch.setattr(fit, "fit", spy)
    for arm in ("real", "datadream_dset"):
        train.run(params, workspace, arm)
    records = [read_json(path, "x") for path in sorted((workspace.cell / "models").rglob("classifier.json"))]
    assert len(records) == 6
    assert {record["transform"]["size"] for record in records} == {28}
    files = np.stack([np.asarray(read_rgb(workspace.cell / sample.path)) for sample in split.train])
    assert np.array_equal(seen["real"], files)
    assert {images.shape[1] for images in seen.values()} == {28}
    scored = Images(params, workspace, split, read_test(workspace.test_split))
    assert scored.test(28).images.shape[1] == 28
    # The judge compares at what the base can draw: finer detail would be all that it sees.
    assert scored.judged(28).images.shape[1] == toy.SIZE


def test_of_a_long_strip_only_the_centre_is_enlarged() -> None:
    across = np.arange(2001, dtype=np.float32) / 2000
    pixels = np.stack([np.sin(9 * across), across, 1 - across], -1)[None].repeat(3, 0) * 100 + 100
    strip = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    for image in (strip, strip.transpose(Image.Transpose.TRANSPOSE)):
        whole = resize(image, 24)
        left, top = (whole.width - 24) // 2, (whole.height - 24) // 2
        expected = np.asarray(whole.crop((left, top, left + 24, top + 24))).astype(int)
        assert np.abs(resize_crop(image, 24) - expected).max() <= 1
    before = Image.Image.resize
    sizes = []

    def watched(self: Image.Image, size: tuple[int, int], *args: object, **more: object) -> Image.Image:
        sizes.append(size)
        return before(self, size, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", watched)
        resize_crop(strip, 24)
    assert sizes == [(16 * 24, 24)]
