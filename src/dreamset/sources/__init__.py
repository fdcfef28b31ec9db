"""The sources of real images: one module per kind, and one branch in ``read``.

A source lists its images and the parts that they may go to; ``dreamset.prepare`` draws the shots.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.data.source import Image, Source
from dreamset.data.splits import spoken

if TYPE_CHECKING:
    from dreamset.core.images import Decoding
    from dreamset.params.sections import Prepare

__all__ = ["KINDS", "Image", "Source", "read"]

KINDS: Final = (
    *("digits", "imagefolder:PATH", "csv:FILE", "coop:FILE", "cifar10:PATH", "cifar100:PATH", "stl10:PATH"),
    "medmnist:FILE",
)


def read(prepare: Prepare) -> Source:
    """Read the source that ``prepare.source`` names.

    Raises:
        InputError: there is no such source, files are missing, or captions cannot distinguish two class names.
    """
    from dreamset.sources import arrays, coop, digits, imagefolder, listing, naming, presets

    kind, _, argument = prepare.source.partition(":")
    if argument.startswith("~"):
        raise InputError(f"prepare.source: {argument} begins with ~, which only a shell knows; write the whole path.")
    path, decoding = Path(argument), prepare.decoding
    if kind == "digits" and not argument:
        source = digits.read()
    elif not argument:
        kind, source = "", None
    elif kind == "imagefolder":
        source = naming.said(imagefolder.read(path, decoding))
    elif kind == "csv":
        source = naming.said(listing.read(path, decoding))
    elif kind == "coop":
        source = naming.said(coop.read(path, decoding, presets.FOLDERS))
    elif kind in presets.PRESETS:
        source = presets.read(kind, path, decoding)
    elif kind in arrays.CIFAR:
        source = arrays.read_cifar(kind, path)
    elif kind == "stl10":
        source = arrays.read_stl10(path)
    elif kind == "medmnist":
        source = arrays.read_medmnist(path)
    else:
        source = None
    if source is None:
        kinds = ", ".join([*KINDS, *(f"{name}:PATH" for name in presets.PRESETS)])
        raise InputError(
            f"prepare.source: expected one of {kinds}, got {prepare.source!r}; write for example "
            "imagefolder:data/raw into params.yaml, or say it with quotes of both kinds: -S "
            "\"prepare.source='imagefolder:data/raw'\"."
        )
    _check_classes(source, prepare.source)
    return _changed(source, prepare.decoding)


def _changed(source: Source, decoding: Decoding) -> Source:
    """Change the pictures that a source has without files; files are changed as they are read."""
    if not decoding.changes:
        return source
    from dreamset.sources.reading import changed

    def part(images: list[Image] | None) -> list[Image] | None:
        return images and [image if image.pixels is None else changed(image, decoding) for image in images]

    return replace(source, train=part(source.train) or [], selection=part(source.selection), test=part(source.test))


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
