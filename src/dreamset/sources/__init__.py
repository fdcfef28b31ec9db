"""The sources of real images: one module per kind, and one branch in ``read``.

A source lists its images and the parts that they may go to; ``dreamset.prepare`` draws the shots.
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

    Attributes:
        name: identifies the image in the source.
        label: index of its class.
        group: name of its group, which must stay in one part.
        pixels_sha256: hash of the decoded pixels, equal for one picture stored twice, whatever the file formats.
        path: its file, or None where the source has no files and ``prepare`` writes the drawn images from ``pixels``.
        sha256: hash of the file, or None as ``path``.
        note: what is unusual about the file, or None.
        grey: its three channels are equal.
        decoding: given where only this project's reader converts the file to 8 bits; ``prepare`` then writes the drawn
            images as new files.
        thumbnail: the result of ``images.thumbnail``, or None where ``pixels`` are available to make it from.
        pixels: (h, w, 3) or (h, w) uint8, or None where ``path`` is given.
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
    """The classes and images of a source.

    Attributes:
        classes: names of the classes, in label order.
        template: the caption, with ``{class}`` in place of the class name.
        invariances: changes of an image that keep its label.
        train: the images that shots are drawn from.
        selection: selection images, or None where ``prepare`` draws them from ``train``.
        test: test images, or None where ``prepare`` draws them from ``train``.
        rejected: (file, reason) of every file that cannot be used.
        names: the class names for captions, or None where ``splits.spoken`` of ``classes`` serves.
        published: the split is the literature's and cannot be corrected; training images that copy its test images are
            left out instead of refused.
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
    """Read the source that ``prepare.source`` names.

    Raises:
        InputError: there is no such source, files are missing, or captions cannot distinguish two class names.
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
        kinds = ", ".join([*KINDS, *(f"{name}:PATH" for name in presets.PRESETS)])
        raise InputError(
            f"prepare.source: expected one of {kinds}, got {prepare.source!r}; write for example imagefolder:data/raw."
        )
    _check_classes(source, prepare.source)
    return source


def _window(prepare: Prepare) -> tuple[float, float] | None:
    return None if prepare.window is None else (prepare.window[0], prepare.window[1])


def _check_classes(source: Source, where: str) -> None:
    if len(source.classes) < 2:
        raise InputError(f"{where}: holds {len(source.classes)} classes; a classifier needs at least two.")
    by_caption: dict[str, str] = {}
    for name, caption in zip(source.classes, source.names or map(spoken, source.classes), strict=True):
        # CLIP reads captions in lower case.
        key = unicodedata.normalize("NFKC", caption).casefold()
        if by_caption.setdefault(key, name) != name:
            raise InputError(
                f"{where}: classes {by_caption[key]!r} and {name!r} have the same caption, since case and underscores "
                "do not count; rename or merge them."
            )
