"""Real shots beside each recipe's images, by class: as one PNG, and as strips for the page."""

from __future__ import annotations

import importlib.util
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

from dreamset.errors import InputError
from dreamset.images import read_rgb, resize_crop
from dreamset.report.evidence import REAL
from dreamset.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.report.evidence import Evidence

SMALL: Final = 48  # px: up to here a picture is magnified by whole factors, beyond it is shrunk
MOST_CLASSES: Final = 60  # on one sheet, and on the page
PAGES: Final = "pages"
_TILE: Final = 48  # px on the sheet, at least
_THUMBNAIL: Final = 96
_GAP: Final = 4
_MARGIN: Final = 24
_BLOCK_GAP: Final = 28
_HEADER: Final = 34
_LABEL: Final = 220
_PAPER: Final = (255, 255, 255)
_INK: Final = (28, 27, 25)


@dataclass(frozen=True)
class Block:
    """The pictures of one source: the first ones of every class, by label; never chosen."""

    name: str
    by_label: list[list[Image.Image]]

    @property
    def columns(self) -> int:
        """Pictures of the class that has the most."""
        return max((len(pictures) for pictures in self.by_label), default=0)


@dataclass(frozen=True)
class Shown:
    """Files of a source that are looked at: the first ones of every class, by label, and the command that made them."""

    name: str
    folder: Path
    made_by: str
    by_label: list[list[str]]


def shown(evidence: Evidence) -> list[Shown]:
    """What of the shots, where they may be shown, then of each active recipe, is looked at."""
    count, classes = evidence.params.report.images_per_class, len(evidence.split.classes)
    shots: list[list[str]] = [[] for _ in range(classes)]
    for shot in evidence.split.train:
        shots[shot.label].append(shot.path)
    found = [Shown(REAL, evidence.workspace.cell, "dreamset prepare", [own[:count] for own in shots])]
    if not evidence.params.report.show_real:
        found = []
    for recipe in evidence.params.active:
        folder = evidence.workspace.synthetic(recipe)
        files: list[list[str]] = [[] for _ in range(classes)]
        for image in read_metadata(folder):
            if image.label < classes and len(files[image.label]) < count:
                files[image.label].append(image.file_name)
        found.append(Shown(recipe, folder, f"dreamset generate {recipe}", files))
    return found


def blocks(evidence: Evidence, sources: Sequence[Shown], first: int = 0) -> list[Block]:
    """Pictures of ``MOST_CLASSES`` classes from ``first`` on, as squares at the model's resolution or as thumbnails."""
    return [
        Block(
            source.name,
            [
                [picture(evidence, source.folder / file, source.made_by) for file in own]
                for own in source.by_label[first : first + MOST_CLASSES]
            ],
        )
        for source in sources
    ]


def further(classes: int) -> list[tuple[int, str]]:
    """Contact sheets beside the first one: the label that each begins with, and its path in the results."""
    starts = range(MOST_CLASSES, classes, MOST_CLASSES)
    return [(start, f"{PAGES}/contact_sheet_{number}.png") for number, start in enumerate(starts, 2)]


def picture(evidence: Evidence, path: Path, made_by: str) -> Image.Image:
    """A file as the square that the models see, shrunk where that is larger than a thumbnail."""
    size = evidence.params.base.resolution
    try:
        image = Image.fromarray(resize_crop(read_rgb(path), size))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be shown ({reason}); run `{made_by}` again.") from error
    return image if size <= SMALL else image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)


def strip(pictures: Sequence[Image.Image], columns: int) -> Image.Image | None:
    """Pictures in rows of ``columns`` on a transparent ground, at their own size."""
    if not pictures:
        return None
    size = pictures[0].width
    step = size + max(1, size // 16)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    made = Image.new("RGBA", (columns * step - step + size, rows * step - step + size), (0, 0, 0, 0))
    for index, image in enumerate(pictures):
        made.paste(image, (index % columns * step, index // columns * step))
    return made


def contact_sheet(sources: Sequence[Block], names: Sequence[str]) -> Image.Image:
    """One row per class and a block of columns per source, under the sources' names."""
    sources = [block for block in sources if block.columns]
    if not sources:
        return Image.new("RGB", (2 * _MARGIN, 2 * _MARGIN), _PAPER)
    first = next(image for block in sources for pictures in block.by_label for image in pictures)
    tile = first.width * -(-_TILE // first.width)
    step = tile + _GAP
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
    """A class name on one line of at most ``width`` px, cut with an ellipsis."""
    # Controls and line breaks would move the pen; no name needs more letters than fit in the narrowest glyphs.
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
    """DejaVu Sans, which holds many scripts, out of matplotlib's folder: importing matplotlib costs a second."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    built_in = ImageFont.load_default(size)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    return built_in
