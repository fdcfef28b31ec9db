"""The contact sheet: a row per class, a block of columns per source."""

from __future__ import annotations

import importlib.util
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

_TILE: Final = 48  # px on the sheet, at least
_GAP: Final = 4
_MARGIN: Final = 24
_BLOCK_GAP: Final = 28
_HEADER: Final = 34
_LABEL: Final = 220
_WIDTH: Final = 1400  # px for all pictures, about; more sources have fewer of each class
_FEWEST: Final = 3  # of each class and source, however many sources there are
_PAPER: Final = (255, 255, 255)
_INK: Final = (28, 27, 25)


@dataclass(frozen=True)
class Block:
    """The pictures of one source: the first ones of every class, by label; nobody chose them."""

    name: str
    by_label: list[list[Image.Image]]

    @property
    def columns(self) -> int:
        """Number of pictures of the class that has the most."""
        return max((len(pictures) for pictures in self.by_label), default=0)


def contact_sheet(sources: Sequence[Block], names: Sequence[str]) -> Image.Image:
    """Draw one row per class and a block of columns per source, under the sources' names.

    Of many sources only the first pictures of each class are drawn, so that a page shows the sheet at a readable size.
    """
    sources = [block for block in sources if block.columns]
    if not sources:
        return Image.new("RGB", (2 * _MARGIN, 2 * _MARGIN), _PAPER)
    first = next(image for block in sources for pictures in block.by_label for image in pictures)
    tile = first.width * -(-_TILE // first.width)
    step = tile + _GAP
    most = max(_FEWEST, _WIDTH // (len(sources) * step))
    sources = [Block(block.name, [pictures[:most] for pictures in block.by_label]) for block in sources]
    font, small = _font(16), _font(14)
    rows = len(sources[0].by_label)
    label = max(_width(small, _fitted(small, name, _LABEL)) for name in names[:rows]) + _BLOCK_GAP // 2
    lefts, left = [], _MARGIN + label
    for block in sources:
        lefts.append(left)
        # A block is at least as wide as its header, so that headers never meet.
        left += max(block.columns * step - _GAP, _width(font, _header(block))) + _BLOCK_GAP
    width, height = left - _BLOCK_GAP + _MARGIN, 2 * _MARGIN + _HEADER + rows * step - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, block in zip(lefts, sources, strict=True):
        draw.text((x, _MARGIN), _header(block), _INK, font)
    for row in range(rows):
        y = _MARGIN + _HEADER + row * step
        draw.text((_MARGIN, y + tile // 2), _fitted(small, names[row], _LABEL), _INK, small, anchor="lm")
        for x, block in zip(lefts, sources, strict=True):
            for column, image in enumerate(block.by_label[row]):
                sheet.paste(image.resize((tile, tile), Image.Resampling.NEAREST), (x + column * step, y))
    return sheet


def _header(block: Block) -> str:
    return "real shots" if block.name == "real" else block.name


def _fitted(font: ImageFont.FreeTypeFont, name: str, width: int) -> str:
    """Return a class name on one line of at most ``width`` px, cut with an ellipsis."""
    # Control characters and line breaks would move the pen; more than 200 letters never fit.
    plain = "".join(" " if unicodedata.category(letter).startswith(("C", "Z")) else letter for letter in name[:200])
    plain = " ".join(plain.split()) or "?"
    if plain == name and _width(font, plain) <= width:
        return plain
    cut = plain
    while cut and _width(font, f"{cut}…") > width:
        cut = cut[:-1]
    return plain if len(cut) == len(plain) == len(" ".join(name.split())) else f"{cut}…"


def _width(font: ImageFont.FreeTypeFont, line: str) -> int:
    return int(font.getlength(line)) + 1


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which covers many scripts, from matplotlib's folder; importing matplotlib takes a second."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    built_in = ImageFont.load_default(size)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    return built_in
