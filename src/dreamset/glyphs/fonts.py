"""Glyph shapes as distance fields: every character in every matplotlib font that really holds them all.

Adding a number to a signed distance field makes its shape bolder or thinner, unlike a bitmap. So one field per (font,
character) serves every stroke weight.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

CHARACTERS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase

# Sides in pixels of a stored field, and of the glyph inside it (the longer side); the margin lets a bold glyph grow.
FIELD: Final = 64
GLYPH: Final = 44


@dataclass(frozen=True)
class Font:
    """A font file, and the look that its name describes."""

    path: Path
    name: str
    family: str  # "serif", "sans" or "mono"
    bold: bool
    slanted: bool


@dataclass(frozen=True)
class Atlas:
    """All shapes: ``fields`` (fonts, characters, FIELD, FIELD) float32, and ``half_widths`` (fonts, characters).

    A field holds distances to the outline in pixels of the field, positive inside the ink. A half-width is that of a
    typical stroke.
    """

    fonts: tuple[Font, ...]
    fields: NDArray[np.float32]
    half_widths: NDArray[np.float32]


def _family(name: str) -> str:
    lower = name.lower()
    if "mono" in lower or lower == "cmtt10":
        return "mono"
    return "serif" if "serif" in lower or lower.startswith(("stix", "cmr", "cmb", "cmmi", "cmti")) else "sans"


def _describe(path: Path) -> Font:
    lower = path.stem.lower()
    bold = "bol" in lower.replace("bolique", "") or lower == "cmb10"
    slanted = any(part in lower for part in ("ita", "oblique", "cmmi", "cmti"))
    return Font(path, path.stem, _family(path.stem), bold, slanted)


def _bitmap(path: Path, character: str, size: int = 160) -> NDArray[np.bool_]:
    """A character drawn large and cropped to its ink; empty where the font draws nothing."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(path), size)
    canvas = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(canvas).text((size, size), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return np.zeros((0, 0), dtype=np.bool_)
    return np.asarray(canvas.crop(box)) > 127


def _signature(path: Path) -> NDArray[np.float32]:
    """All characters squeezed to 16x16, centred and scaled to unit length: (characters, 256)."""
    from PIL import Image

    rows = []
    for character in CHARACTERS:
        bitmap = _bitmap(path, character, 48)
        if bitmap.size == 0:
            return np.zeros((len(CHARACTERS), 256), dtype=np.float32)
        small = Image.fromarray(bitmap.astype(np.float32)).resize((16, 16), Image.Resampling.BOX)
        row = np.asarray(small, dtype=np.float32).ravel()
        row = row - row.mean()
        rows.append(row / (np.linalg.norm(row) + 1e-6))
    return np.stack(rows)


def _maps_all(path: Path) -> bool:
    from matplotlib.ft2font import FT2Font

    charmap = FT2Font(str(path)).get_charmap()
    return all(ord(character) in charmap for character in CHARACTERS)


@cache
def usable_fonts() -> tuple[Font, ...]:
    """The fonts shipped with matplotlib that hold all digits and letters, ordered by name.

    A character map alone is no proof: symbol fonts map letters to brackets and arrows. So each font's shapes are
    compared with those of a reference font: letters correlate above 0.3, symbols below 0.2.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    reference = _signature(folder / "DejaVuSerif.ttf")
    mapped = [path for path in sorted(folder.glob("*.ttf")) if _maps_all(path)]
    similar = [path for path in mapped if (_signature(path) * reference).sum(-1).mean() > 0.25]
    return tuple(_describe(path) for path in similar)


def _field(ink: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    """The distance field of a cropped bitmap, fitted into the frame, and the half-width of its typical stroke."""
    from PIL import Image
    from scipy.ndimage import distance_transform_edt, maximum_filter

    scale = GLYPH / max(ink.shape)
    frame = round(FIELD / scale)
    padded = np.zeros((frame, frame), dtype=np.bool_)
    top, left = (frame - ink.shape[0]) // 2, (frame - ink.shape[1]) // 2
    padded[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    inside = distance_transform_edt(padded)
    distance = (inside - distance_transform_edt(~padded)).astype(np.float32) * scale
    ridge = (maximum_filter(inside, 3) == inside) & (inside > 1)
    half_width = float(np.median(inside[ridge])) * scale if ridge.any() else 1.0
    small = Image.fromarray(distance).resize((FIELD, FIELD), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32), half_width


@cache
def atlas() -> Atlas:
    """The distance fields of every (font, character), computed once per process in a few seconds."""
    fonts = usable_fonts()
    fields = np.zeros((len(fonts), len(CHARACTERS), FIELD, FIELD), dtype=np.float32)
    widths = np.zeros((len(fonts), len(CHARACTERS)), dtype=np.float32)
    for i, font in enumerate(fonts):
        for j, character in enumerate(CHARACTERS):
            fields[i, j], widths[i, j] = _field(_bitmap(font.path, character))
    return Atlas(fonts, fields, widths)
