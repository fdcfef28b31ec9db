"""What ``prepare`` may do to every picture: invert it, cut it to its object, widen its contrast."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import delivered
import toy
from delivered import snippet_of
from dreamset import prepare
from dreamset.core.images import NO_OBJECT, Decoding, changed, decode
from dreamset.core.resizing import resize_crop
from dreamset.data.splits import read_split

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace

CROP = Decoding(10**6, crop="object")


def page(width: int, height: int, box: tuple[int, int, int, int], ground: Any = 255, ink: Any = 0) -> Image.Image:
    """A plain RGB picture with a filled box of (left, top, right, bottom)."""
    image = Image.new("RGB", (width, height), (ground,) * 3 if isinstance(ground, int) else ground)
    image.paste((ink,) * 3 if isinstance(ink, int) else ink, box)
    return image


def ink_box(image: Image.Image, ground: int = 255) -> tuple[int, int, int, int]:
    """Where the grey values are not ``ground``: left, top, right, bottom."""
    ys, xs = np.nonzero(np.asarray(image.convert("L")) != ground)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize(
    ("ground", "ink"),
    [(255, 0), (0, 255), (200, 160), ((30, 60, 200), (30, 60, 90))],  # the last differs in one channel alone
)
def test_an_object_is_cut_out_square_and_centred(ground: Any, ink: Any) -> None:
    image, words = changed(page(200, 120, (130, 20, 146, 60), ground, ink), CROP)
    # 40 px tall, and an eighth of it on every side.
    assert image.size == (50, 50)
    assert words == "cut to the object"
    left, top, right, bottom = ink_box(image, int(np.asarray(image.convert("L"))[0, 0]))
    assert (right - left, bottom - top) == (16, 40)
    assert abs(left - (50 - right)) <= 1 and abs(top - (50 - bottom)) <= 1


def test_what_reaches_beyond_the_picture_has_the_border_s_colour() -> None:
    image, _ = changed(page(40, 100, (0, 30, 20, 90), (250, 240, 10), 0), CROP)
    assert image.size == (75, 75)
    assert image.getpixel((0, 50)) == image.getpixel((74, 50)) == (250, 240, 10)


def test_thin_lines_count_and_specks_of_dust_do_not() -> None:
    pixels = np.full((600, 600), 255, np.uint8)
    pixels[200:400, 300] = 0
    pixels[300, 250:350] = 0
    pixels[5, 5] = 0
    image, _ = changed(Image.fromarray(pixels).convert("RGB"), CROP)
    # The ends of the line are outermost, too; no more than a hundredth of it is taken for dust.
    assert image.size[0] == image.size[1] and 240 <= image.size[0] <= 250
    assert (np.asarray(image.convert("L")) == 0).sum() >= 295


@pytest.mark.parametrize("box", [None, (50, 50, 53, 53)])
def test_a_blank_picture_and_a_speck_stay_whole(box: tuple[int, int, int, int] | None) -> None:
    blank = page(100, 80, box or (0, 0, 1, 1), ink=0 if box else 250)
    image, words = changed(blank, Decoding(10**6, crop="object", invert=True))
    assert image.size == (100, 80)
    assert words == f"inverted, {NO_OBJECT}"
    # Nor is the noise of a blank one stretched.
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(120, 130, (30, 30)).astype(np.uint8)).convert("RGB")
    assert changed(noise, Decoding(10**6, autocontrast=True))[0].tobytes() == noise.tobytes()


def test_an_object_of_four_pixels_is_cut_out() -> None:
    assert changed(page(100, 100, (50, 50, 54, 52)), CROP)[0].size == (5, 5)


def test_contrast_is_widened_without_a_cast() -> None:
    image, _ = changed(
        page(100, 100, (20, 20, 80, 80), (200, 180, 160), (150, 130, 110)), Decoding(1, autocontrast=True)
    )
    low, high = image.convert("L").getextrema()
    assert high - low > 200  # type: ignore[operator]
    red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
    assert red >= green >= blue


def test_files_of_every_kind_are_changed_as_they_are_read() -> None:
    def file(image: Image.Image, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return buffer.getvalue()

    both = Decoding(10**6, (0, 4000), invert=True, crop="object")
    deep = np.full((90, 90), 4000, np.uint16)
    deep[30:70, 30:70] = 0
    for image in (
        page(90, 90, (30, 30, 70, 70)).convert("L"),
        page(90, 90, (30, 30, 70, 70)).convert("1"),
        Image.fromarray(deep),
    ):
        decoded = decode(file(image), both)
        assert decoded.converted and decoded.note is not None and decoded.note.endswith("inverted, cut to the object")
        assert decoded.image.size == (50, 50)
        assert (decoded.image.getpixel((0, 0)), decoded.image.getpixel((25, 25))) == ((0,) * 3, (255,) * 3)
    # Transparency is put on white first, so that a dark object on nothing is a light one on black.
    clear = Image.new("RGBA", (90, 90), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (30, 30, 70, 70))
    assert decode(file(clear), both).image.tobytes() == decoded.image.tobytes()
    # Nothing asked for, nothing done.
    assert not decode(file(clear), Decoding(10**6)).converted


def test_prepare_changes_files_and_says_what_shows_no_object(raw: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("one", "two"):
        for i in range(6):
            left, top = (int(value) for value in rng.integers(5, 35, 2))
            wide, tall = (8 + i, 30) if label == "one" else (30, 8 + i)
            path = tmp_path / f"raw/{label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            page(90, 70, (left, top, left + wide, top + tall)).convert("L").save(path)
    page(90, 70, (0, 0, 0, 0)).convert("L").save(tmp_path / "raw/one/blank.png")
    raw["shots"] = "all"
    raw["prepare"] |= {"source": f"imagefolder:{tmp_path / 'raw'}", "invert": True, "crop": "object"}
    workspace = toy.Workspace.at(tmp_path / "cell")
    summary = prepare.run(toy.parse(raw), workspace)
    (warning,) = (text for text in summary["warnings"] if "prepare.crop" in text)
    assert warning.startswith("prepare.crop: 1 of 13 images show nothing of 4 px or more") and "blank.png" in warning
    split = read_split(workspace.splits)
    assert split.changes == {"invert": True, "crop": "object"}
    assert split.native is not None and split.native < 45  # of what was cut out
    for sample in split.train:
        with Image.open(workspace.cell / sample.path) as image:
            assert image.mode == "L" and image.getpixel((0, 0)) == 0
            assert (image.width == image.height) == (sample.note != f"grey; inverted, {NO_OBJECT}")


def test_a_source_without_files_is_changed_too(raw: dict[str, Any], workspace: Workspace) -> None:
    raw["shots"] = 1
    whole = toy.Workspace.at(workspace.root / "whole")
    prepare.run(toy.parse(raw), whole)
    raw["prepare"] |= {"invert": True}
    prepare.run(toy.parse(raw), workspace)
    split = read_split(workspace.splits)
    assert "changes" not in json.loads(whole.splits.read_text())
    for one, other in zip(read_split(whole.splits).train, split.train, strict=True):
        first, second = (np.asarray(Image.open(w.cell / s.path)) for w, s in ((whole, one), (workspace, other)))
        assert first.shape == (8, 8)
        np.testing.assert_array_equal(255 - first, second)
        assert other.note == "inverted"


def test_predict_and_the_card_change_files_as_prepare_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"invert": True, "crop": "object", "autocontrast": True}
    asked = {f"prepare__{name}": value for name, value in changes.items()}
    folder = delivered.world(tmp_path, "resnet20", **asked).classifier
    record = json.loads((folder / "classifier.json").read_text())
    assert record["preprocessing"]["changes"] == changes
    assert (
        "transparency put on white, inverted, cut to the object, contrast widened."
        in (folder / "README.md").read_text()
    )
    decoding = Decoding.recorded(record["preprocessing"])
    assert decoding.changes == changes
    rng = np.random.default_rng(0)
    page(80, 60, (10, 20, 35, 33), (240, 235, 220), (180, 40, 90)).save(folder / "photo.png")
    page(80, 60, (0, 0, 0, 0)).save(folder / "blank.png")
    page(61, 83, (30, 0, 32, 83), 90, 110).save(folder / "edge.png")
    Image.fromarray(rng.integers(0, 256, (40, 52, 4)).astype(np.uint8), "RGBA").save(folder / "noise.png")
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(snippet_of(folder), "card", "exec"), scope)
    for name in ("photo.png", "blank.png", "edge.png", "noise.png"):
        for kept in ({}, *({key: value} for key, value in changes.items()), changes):
            scope["record"]["preprocessing"]["changes"] = kept
            decoding = Decoding(10**6, None, **kept)  # type: ignore[arg-type]
            image = decode((folder / name).read_bytes(), decoding).image
            expected = resize_crop(image, 16).astype(np.float32).transpose(2, 0, 1)[None] / 255
            np.testing.assert_allclose(scope["read"](name), expected, atol=1e-6)
