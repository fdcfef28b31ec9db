"""Labelled JPEG files that cost as much to read as photographs do, so that no data set is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from dreamset.core.seeds import seed_for

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, classes: int, per_class: dict[str, int], size: int) -> Path:
    """Write ``<part>/<class>/<index>.jpg``: smooth colours, a shape per class, and grain.

    Args:
        folder: an empty one, or none yet.
        classes: how many; each has its own number of corners and hue.
        per_class: images per class of each part: train, test.
        size: pixels of both sides.
    """
    for part, count in per_class.items():
        for label in range(classes):
            target = folder / part / f"object {label:03d}"
            target.mkdir(parents=True)
            for index in range(count):
                random = np.random.default_rng(seed_for("picture", part, label, index))
                _picture(random, label, classes, size).save(target / f"{index:03d}.jpg", quality=90)
    return folder


def _picture(random: np.random.Generator, label: int, classes: int, size: int) -> Image.Image:
    smooth = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    colour = Image.new("HSV", (1, 1), (255 * label // classes, 200, 220)).convert("RGB").getpixel((0, 0))
    x, y, r = (float(value) * size for value in random.uniform((0.4, 0.4, 0.2), (0.6, 0.6, 0.4)))
    ImageDraw.Draw(smooth).regular_polygon((x, y, r), 3 + label % 7, float(random.uniform(0, 360)), fill=colour)
    grain = random.normal(0, 12, (size, size, 3))
    return Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))
