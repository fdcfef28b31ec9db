"""Where real images come from: one module per source, one row in ``read``.

A source says what its images are and which parts they may go to; ``dreamset.prepare`` draws the shots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dreamset.errors import InputError

if TYPE_CHECKING:
    from dreamset.params import Prepare


@dataclass(frozen=True)
class Image:
    """A usable image of a source.

    ``name`` identifies it in the source; ``path`` is its file, or None where the source has no files and ``data``
    holds a PNG that ``prepare`` writes out; ``pixels_sha256`` is of the decoded pixels, so that one picture stored
    twice is found whatever its file format.
    """

    name: str
    label: int
    group: str
    sha256: str
    pixels_sha256: str
    path: Path | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Source:
    """Everything a source offers.

    ``selection`` is None where selection images come out of the same pool as the shots, and ``test`` is None where
    ``prepare`` has to hold test images out of that pool.
    """

    classes: tuple[str, ...]
    template: str
    invariances: tuple[str, ...]
    train: list[Image]
    selection: list[Image] | None
    test: list[Image] | None
    rejected: list[tuple[str, str]] = field(default_factory=list)


def read(prepare: Prepare) -> Source:
    """The source that ``prepare.source`` names.

    Raises:
        InputError: no such source, or a folder that holds no classes.
    """
    from dreamset.sources import digits, imagefolder

    kind, _, argument = prepare.source.partition(":")
    if kind == "digits" and not argument:
        return digits.read()
    if kind == "imagefolder" and argument:
        return imagefolder.read(Path(argument), prepare.max_pixels)
    raise InputError(
        f"prepare.source: expected digits or imagefolder:PATH, got {prepare.source!r}; "
        "write for example imagefolder:data/raw."
    )
