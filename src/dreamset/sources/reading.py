"""Image files, listed or found in folders: many read at once, and none outside the folder that was named."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from dreamset.errors import InputError
from dreamset.files import sha256
from dreamset.images import SUFFIXES, BadImageError, open_rgb
from dreamset.progress import bar
from dreamset.sources import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image as PillowImage

# Files handed to the pool at once: enough to keep it busy, few enough that a million files need no million futures.
_BLOCK: Final = 2048
# Each thread may hold an image of prepare.max_pixels, more than once while it is converted.
_THREADS: Final = 16
# What a file may hold beside its pixels: text, profiles, previews.
_EXTRA_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """An image file of a source; ``root`` is the folder that it may not leave by a link."""

    path: Path
    root: Path
    name: str
    label: int
    group: str


def read_files(rows: Sequence[Row], max_pixels: int, rejected: list[tuple[str, str]], what: str) -> list[Image]:
    """Decode every file once, on all cores (Pillow lets go of the interpreter's lock), in the order of ``rows``.

    Args:
        rows: the files.
        max_pixels: larger images are rejected before decoding.
        rejected: gets (file, reason) of every file that cannot be used.
        what: said beside the progress bar.
    """
    images = []
    real = {root: Path(os.path.realpath(root)) for root in {row.root for row in rows}}
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        bar(total=len(rows), what=what, unit="file") as progress,
    ):
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for row, read in zip(block, pool.map(partial(_read, real=real, max_pixels=max_pixels), block), strict=True):
                if isinstance(read, Image):
                    images.append(read)
                else:
                    rejected.append((printable(row.path.as_posix()), read))
                progress.update()
    return images


def inside(name: str, where: str) -> str:
    """A listed path, with forward slashes and without ``.`` parts.

    Raises:
        InputError: it is empty, absolute or leads upwards; ``where`` says where it stands.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name.strip() or "\0" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{where}: {name[:80]!r} does not stay inside the folder; give a path relative to it.")
    return path.as_posix()


def printable(text: str) -> str:
    """Text that can be written as UTF-8, whatever bytes a file name holds."""
    return text.encode("utf-8", "backslashreplace").decode()


def pixels_digest(shape: tuple[int, ...], data: bytes) -> str:
    """Hex digest by which one picture is known again, whatever its file format."""
    return sha256(repr(shape).encode() + data)


def _read(row: Row, real: dict[Path, Path], max_pixels: int) -> Image | str:
    """The image, or why it cannot be used."""
    try:
        return _image(row, real[row.root], max_pixels)
    except BadImageError as error:
        return printable(str(error))
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _image(row: Row, real: Path, max_pixels: int) -> Image:
    decoded, data, note = opened(row.path, max_pixels, real)
    return Image(
        name=row.name,
        label=row.label,
        group=row.group,
        pixels_sha256=pixels_digest(decoded.size, decoded.tobytes()),
        path=row.path,
        sha256=sha256(data),
        note=note,
    )


def opened(path: Path, max_pixels: int, real: Path | None = None) -> tuple[PillowImage, bytes, str | None]:
    """A file as ``images.open_rgb`` decodes it, its content, and what was out of the ordinary in it.

    Args:
        path: any file.
        max_pixels: larger images are refused before decoding.
        real: the resolved folder that a link must not leave; None: it may lead anywhere.

    Raises:
        BadImageError: it is no image that can be used.
        OSError: it cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BadImageError(f"suffix {path.suffix or 'missing'}: not an image file")
    if printable(path.as_posix()) != path.as_posix():
        raise BadImageError("name is not UTF-8; rename it")
    if not os.path.lexists(path):
        raise BadImageError("missing")
    if real is not None and not Path(os.path.realpath(path)).is_relative_to(real):
        raise BadImageError("a link that leads out of the folder; copy the file into it")
    if not path.is_file():
        raise BadImageError("not a file")
    if path.stat().st_size > 8 * max_pixels + _EXTRA_BYTES:
        raise BadImageError(f"too large for an image of {max_pixels} pixels")
    data = path.read_bytes()
    decoded, note = open_rgb(data, max_pixels)
    return decoded, data, note
