"""Where real images come from: one module per kind of source, one row in ``read``.

A source says what its images are and which parts they may go to; ``dreamset.prepare`` draws the shots.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.data.splits import spoken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.images import Decoding
    from dreamset.params.sections import Prepare

KINDS: Final = ("digits", "imagefolder:PATH", "csv:FILE", "coop:FILE", "cifar10:PATH", "cifar100:PATH", "medmnist:FILE")


@dataclass(frozen=True)
class Image:
    """A usable image of a source.

    ``name`` identifies it in the source; ``path`` is its file and ``sha256`` of that file, or None where the source has
    no files and ``prepare`` writes the drawn ones from ``pixels`` (h, w, 3) or (h, w), uint8. ``pixels_sha256`` is of
    the decoded pixels, so that one picture stored twice is found whatever its file format. ``note`` says what was out
    of the ordinary in the file. ``grey``: its three channels are one. ``decoding`` is given where no reader but this
    one makes 8 bits of the file, and ``prepare`` writes the drawn ones anew. ``thumbnail`` is of ``images.thumbnail``,
    or None where ``pixels`` are there to make it of.
    """

    name: str
    label: int
    group: str
    pixels_sha256: str
    path: Path | None = None
    sha256: str | None = None
    note: str | None = None
    grey: bool = False
    decoding: Decoding | None = None
    thumbnail: bytes | None = field(default=None, compare=False, repr=False)
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Source:
    """Everything a source offers.

    ``names`` are the classes as captions say them, or None where ``splits.spoken`` of them will do. ``selection`` is
    None where selection images come out of the same pool as the shots, and ``test`` is None where ``prepare`` has to
    hold test images out of that pool. ``published``: the split is the literature's, which nobody may mend, so that
    copies of its test images among the others are passed over instead of refused.
    """

    classes: tuple[str, ...]
    template: str
    invariances: tuple[str, ...]
    train: list[Image]
    selection: list[Image] | None
    test: list[Image] | None
    rejected: list[tuple[str, str]] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    published: bool = False


def read(prepare: Prepare) -> Source:
    """The source that ``prepare.source`` names.

    Raises:
        InputError: no such source, files that are missing, or class names that a caption cannot tell apart.
    """
    from dreamset.core.images import Decoding
    from dreamset.sources import arrays, coop, digits, imagefolder, listing, presets

    kind, _, argument = prepare.source.partition(":")
    path, decoding = Path(argument), Decoding(prepare.max_pixels, _window(prepare))
    if kind == "digits" and not argument:
        source = digits.read()
    elif not argument:
        kind, source = "", None
    elif kind == "imagefolder":
        source = imagefolder.read(path, decoding)
    elif kind == "csv":
        source = listing.read(path, decoding)
    elif kind == "coop":
        source = coop.read(path, decoding)
    elif kind in presets.PRESETS:
        source = presets.read(kind, path, decoding)
    elif kind in arrays.CIFAR:
        source = arrays.read_cifar(kind, path)
    elif kind == "medmnist":
        source = arrays.read_medmnist(path)
    else:
        source = None
    if source is None:
        known = ", ".join([*KINDS, *(f"{name}:PATH" for name in presets.PRESETS)])
        raise InputError(
            f"prepare.source: expected one of {known}, got {prepare.source!r}; write for example imagefolder:data/raw."
        )
    _check_classes(source, prepare.source)
    return source


def _window(prepare: Prepare) -> tuple[float, float] | None:
    return None if prepare.window is None else (prepare.window[0], prepare.window[1])


def _check_classes(source: Source, where: str) -> None:
    if len(source.classes) < 2:
        raise InputError(f"{where}: holds {len(source.classes)} classes; a classifier needs at least two.")
    seen: dict[str, str] = {}
    for name, said in zip(source.classes, source.names or map(spoken, source.classes), strict=True):
        # CLIP reads captions in lower case.
        key = unicodedata.normalize("NFKC", said).casefold()
        if seen.setdefault(key, name) != name:
            raise InputError(
                f"{where}: classes {seen[key]!r} and {name!r} have the same caption, since case and underscores do "
                "not count; rename or merge them."
            )
