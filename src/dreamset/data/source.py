"""A source of real images: its images, its classes, and the parts that images may go to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dreamset.core.images import Decoding


class Rejected(NamedTuple):
    """A file that cannot be used, the reason, and the index of its class."""

    file: str
    reason: str
    label: int


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
        size: width and height in pixels as people see it, or None as ``path``.
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
    size: tuple[int, int] | None = None
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
        template: the caption, with ``{class}`` for the class name, or ``{a class}`` for the name with its article.
        invariances: changes of an image that keep its label.
        train: the images that shots are drawn from.
        selection: selection images, or None where ``prepare`` draws them from ``train``.
        test: test images, or None where ``prepare`` draws them from ``train``.
        rejected: every file that cannot be used, with the reason.
        names: the class names for captions, or None where ``splits.spoken`` of ``classes`` serves.
        clip_templates: the captions of CLIP as it is, with ``{class}``, or None where ``template`` serves.
        published: the split is the literature's and cannot be corrected; training images that copy its test images are
            left out instead of refused.
        warnings: what was read otherwise than a person might expect, one sentence each.
    """

    classes: tuple[str, ...]
    template: str
    invariances: tuple[str, ...]
    train: list[Image]
    selection: list[Image] | None
    test: list[Image] | None
    rejected: list[Rejected] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    clip_templates: tuple[str, ...] | None = None
    published: bool = False
    warnings: tuple[str, ...] = ()
