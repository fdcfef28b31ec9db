"""Pictures of real shots and of each recipe's images by class, for the contact sheets and for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image

from dreamset.core.errors import InputError
from dreamset.core.images import rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.sheet import Block
from dreamset.data import packed
from dreamset.data.runs import REAL
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.report.evidence import Evidence

SMALL: Final = 48  # px: the page magnifies pictures up to this side by whole factors, and shrinks larger ones
MOST_CLASSES: Final = 60  # on one sheet, and on the page
PAGES: Final = "pages"
_THUMBNAIL: Final = 96
_SHOTS: Final = "dreamset prepare"


@dataclass(frozen=True)
class Source:
    """A source of pictures: what reads its files, the command that makes them, and its first ones of every class."""

    name: str
    read: packed.Read
    made_by: str
    by_label: list[list[str]]


def sources_of(evidence: Evidence) -> list[Source]:
    """Return the shots, unless ``report.show_real`` is off, then each active recipe."""
    count, classes = evidence.params.report.images_per_class, len(evidence.split.classes)
    shots: list[list[str]] = [[] for _ in range(classes)]
    for shot in evidence.split.train:
        shots[shot.label].append(shot.path)
    sources = [Source(REAL, shots_reader(evidence), _SHOTS, [paths[:count] for paths in shots])]
    if not evidence.params.report.show_real:
        sources = []
    for recipe in evidence.params.active:
        folder = evidence.workspace.synthetic(recipe)
        files: list[list[str]] = [[] for _ in range(classes)]
        for image in read_metadata(folder):
            if image.copy_of is None and image.label < classes and len(files[image.label]) < count:
                files[image.label].append(image.file_name)
        sources.append(Source(recipe, packed.reader(folder), f"dreamset generate {recipe}", files))
    return sources


def shots_reader(evidence: Evidence) -> packed.Read:
    """Return the function that reads shots."""
    return packed.files(evidence.workspace.cell, _SHOTS)


def blocks(evidence: Evidence, sources: Sequence[Source], first: int = 0) -> list[Block]:
    """Return pictures of ``MOST_CLASSES`` classes from label ``first`` on: squares or, of large ones, thumbnails."""
    return [
        Block(
            source.name,
            [
                [picture(evidence, source.read, file, source.made_by) for file in files]
                for files in source.by_label[first : first + MOST_CLASSES]
            ],
        )
        for source in sources
    ]


def further(classes: int) -> list[tuple[int, str]]:
    """Return the first label and the path in the results of every contact sheet but the first."""
    starts = range(MOST_CLASSES, classes, MOST_CLASSES)
    return [(start, f"{PAGES}/contact_sheet_{number}.png") for number, start in enumerate(starts, 2)]


def picture(evidence: Evidence, read: packed.Read, name: str, made_by: str = _SHOTS) -> Image.Image:
    """Return a file as the square that the models see, as a thumbnail where that is smaller."""
    size = evidence.params.base.resolution
    try:
        image = Image.fromarray(resize_crop(rgb(read(name)), size))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{name}: cannot be shown ({reason}); run `{made_by}` again.") from error
    return image if size <= SMALL else image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)


def strip(pictures: Sequence[Image.Image], columns: int) -> Image.Image | None:
    """Return pictures in rows of ``columns`` on a transparent ground, unscaled; None of no pictures."""
    if not pictures:
        return None
    size = pictures[0].width
    step = size + max(1, size // 16)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    image = Image.new("RGBA", (columns * step - step + size, rows * step - step + size), (0, 0, 0, 0))
    for index, tile in enumerate(pictures):
        image.paste(tile, (index % columns * step, index // columns * step))
    return image
