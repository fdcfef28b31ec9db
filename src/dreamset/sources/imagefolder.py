"""A folder of class folders, or of ``train/`` and ``test/`` that each hold class folders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreamset.errors import InputError
from dreamset.files import sha256
from dreamset.images import SUFFIXES, BadImageError, open_rgb
from dreamset.progress import bar
from dreamset.sources import Image, Source

if TYPE_CHECKING:
    from pathlib import Path

_DIGITS = re.compile(r"(\d+)")


def read(root: Path, max_pixels: int) -> Source:
    """Scan a folder; the class is the name of the sub-folder, sub-folders of it included.

    Files that cannot be used are listed with the reason in ``Source.rejected``; hidden files are skipped.

    Raises:
        InputError: no such folder, fewer than two classes, or train/ and test/ with different classes.
    """
    if not root.is_dir():
        raise InputError(f"prepare.source: {root} is no folder; give imagefolder:PATH of a folder of class folders.")
    names = {path.name for path in _folders(root)}
    rejected: list[tuple[str, str]] = []
    if names == {"train", "test"}:
        classes = _classes(root / "train")
        if classes != _classes(root / "test"):
            odd = sorted(set(classes) ^ set(_classes(root / "test")))
            raise InputError(
                f"{root}: train/ and test/ hold different classes ({', '.join(odd[:5])}); make them equal."
            )
        train = _scan(root / "train", classes, max_pixels, rejected)
        test = _scan(root / "test", classes, max_pixels, rejected)
    else:
        classes = _classes(root)
        train, test = _scan(root, classes, max_pixels, rejected), None
    return Source(
        classes=classes,
        template="a photo of a {class}",
        invariances=(),
        train=train,
        selection=None,
        test=test,
        rejected=rejected,
    )


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which 2.png stands before 10.png."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(name)]


def _folders(root: Path) -> list[Path]:
    return sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(path.name for path in _folders(root))
    if len(classes) < 2:
        raise InputError(f"{root}: holds {len(classes)} class folders; a classifier needs at least two.")
    return classes


def _scan(root: Path, classes: tuple[str, ...], max_pixels: int, rejected: list[tuple[str, str]]) -> list[Image]:
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"), key=lambda p: natural(p.as_posix()))
        if path.is_file() and not path.name.startswith(".")
    ]
    images = []
    for path, label in bar(files, what=f"reading {root.name}", unit="file"):
        try:
            images.append(_image(path, root, label, max_pixels))
        except (BadImageError, OSError) as error:
            rejected.append((path.as_posix(), str(error)))
    return images


def _image(path: Path, root: Path, label: int, max_pixels: int) -> Image:
    if path.suffix.lower() not in SUFFIXES:
        raise BadImageError(f"suffix {path.suffix or 'missing'}: not an image file")
    data = path.read_bytes()
    decoded = open_rgb(data, max_pixels)
    return Image(
        name=path.relative_to(root).as_posix(),
        label=label,
        group=path.as_posix(),
        sha256=sha256(data),
        pixels_sha256=sha256(repr(decoded.size).encode() + decoded.tobytes()),
        path=path,
    )
