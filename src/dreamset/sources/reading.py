"""The reading of image files: many at once, and none outside the folder that the user named."""

from __future__ import annotations

import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from dreamset.core import images
from dreamset.core.errors import InputError
from dreamset.core.files import sha256
from dreamset.core.formats import SUFFIXES, unread_words
from dreamset.core.images import BadImageError, Decoded, Decoding, decode, is_grey, thumbnail
from dreamset.core.progress import bar
from dreamset.data.source import Image, Rejected
from dreamset.sources.layout import copies_of

if TYPE_CHECKING:
    from collections.abc import Sequence


# Files given to the pool at once: enough to keep it busy, few enough that a million files need no million futures.
_BLOCK: Final = 2048
# Each thread may hold an image of prepare.max_pixels, and several copies of it during conversion.
_THREADS: Final = 16
# Allowance for a file's content beside its pixels: text, profiles, previews.
_EXTRA_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """An image file of a source; no link may lead out of its folder ``root``.

    Where ``group`` is the file itself, copies of one photograph, as names tell them, become a group.
    """

    path: Path
    root: Path
    name: str
    label: int
    group: str


def read_files(rows: Sequence[Row], decoding: Decoding, rejected: list[Rejected], what: str) -> list[Image]:
    """Decode every file once, on all cores (Pillow releases the interpreter's lock), in the order of ``rows``.

    Args:
        rows: the files.
        decoding: the largest size of an image, and the window of more than 8 bits.
        rejected: receives every file that cannot be used.
        what: the text beside the progress bar.
    """
    read_images = []
    real = {root: Path(os.path.realpath(root)) for root in {row.root for row in rows}}
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        bar(total=len(rows), what=what, unit="file") as progress,
    ):
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for row, read in zip(block, pool.map(partial(_read, real=real, decoding=decoding), block), strict=True):
                if isinstance(read, Image):
                    read_images.append(read)
                else:
                    rejected.append(Rejected(printable(row.path.as_posix()), read, row.label))
                progress.update()
    return read_images


def inside(name: str, where: str, folder: Path | None = None) -> str:
    """Check a listed path and return it with forward slashes and without ``.`` parts.

    Args:
        name: a relative path, with slashes of any kind.
        where: its place, for the sentence.
        folder: an absolute path below it is inside, too; None: no absolute path is.

    Raises:
        InputError: the path is empty, leads upwards, or is absolute and not in ``folder``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if folder is not None and path.is_absolute():
        for root in (Path(os.path.abspath(folder)), Path(os.path.realpath(folder))):  # noqa: PTH100 (links stay)
            if path.is_relative_to(root):
                path = path.relative_to(root)
                break
    drive = re.match(r"[A-Za-z]:/|[A-Za-z]:$", str(path)) is not None
    if not name.strip() or "\0" in name or drive or path.is_absolute() or ".." in path.parts or not path.parts:
        of = "the folder" if folder is None else f"the folder {folder}"
        raise InputError(f"{where}: {name[:80]!r} does not stay inside {of}; give a path relative to it.")
    return path.as_posix()


class Shelf:
    """The files of a folder as lists name them.

    A list may leave out the suffix of an image, and may write a name in another Unicode form than the file system.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: str, where: str) -> str:
        """Return the file that a listed path means, relative to the folder, or the path itself where there is none.

        Args:
            path: a result of ``inside``.
            where: its place, for the sentence.

        Raises:
            InputError: a path without a suffix means several images.
        """
        if os.path.isfile(self._root / path):  # noqa: PTH113 (a name may be too long to ask about)
            return path
        *folders, last = PurePosixPath(path).parts
        here = Path()
        for part in folders:
            here /= next(iter(self._in(here).get(unicodedata.normalize("NFC", part), [])), part)
        wanted, names = unicodedata.normalize("NFC", last), self._in(here)
        found = names.get(wanted) or [
            name for suffix in sorted({*SUFFIXES, *map(str.upper, SUFFIXES)}) for name in names.get(wanted + suffix, [])
        ]
        if len(found) > 1:
            raise InputError(f"{where}: {path} may be {' or '.join(map(printable, found))}; write the whole name.")
        return (here / found[0]).as_posix() if found else path

    def _in(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their composed form; none where it cannot be read."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(self._root / folder):  # noqa: PTH208
                    names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
            except OSError:
                names = {}  # the images in it are then reported as missing
            self._names[folder] = names
        return self._names[folder]


def printable(text: str) -> str:
    """Make text writable as UTF-8, whatever bytes a file name holds."""
    return text.encode("utf-8", "backslashreplace").decode()


def pixels_digest(shape: tuple[int, ...], data: bytes) -> str:
    """A hex digest of pixels that identifies a picture, whatever its file format."""
    return sha256(repr(shape).encode() + data)


def _read(row: Row, real: dict[Path, Path], decoding: Decoding) -> Image | str:
    """Read an image; return it, or the reason why it cannot be used."""
    try:
        return _image(row, real[row.root], decoding)
    except BadImageError as error:
        return printable(str(error))
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _image(row: Row, real: Path, decoding: Decoding) -> Image:
    decoded, data = opened(row.path, decoding, real)
    image = decoded.image
    alone = row.group in (row.name, row.path.as_posix())
    return Image(
        name=row.name,
        label=row.label,
        group=(copies_of(row.name) if alone else None) or row.group,
        pixels_sha256=pixels_digest(image.size, image.tobytes()),
        path=row.path,
        sha256=sha256(data),
        size=image.size,
        note=decoded.note,
        grey=is_grey(image),
        decoding=decoding if decoded.converted else None,
        thumbnail=thumbnail(image),
    )


def changed(image: Image, decoding: Decoding) -> Image:
    """Return an image of a source without files, with its pixels as ``images.changed`` makes them."""
    import numpy as np
    from PIL import Image as Picture

    assert image.pixels is not None
    picture, note = images.changed(Picture.fromarray(image.pixels).convert("RGB"), decoding)
    pixels = np.asarray(picture.convert("L") if image.pixels.ndim == 2 else picture)
    digest = pixels_digest(pixels.shape, pixels.tobytes())
    return replace(image, pixels=pixels, pixels_sha256=digest, note=note)


def opened(path: Path, decoding: Decoding, real: Path | None = None) -> tuple[Decoded, bytes]:
    """Open a file; return the result of ``images.decode`` and the file's bytes.

    Args:
        path: any file.
        decoding: the largest size of an image, and the window of more than 8 bits.
        real: the resolved folder that a link must not leave; None: a link may lead anywhere.

    Raises:
        BadImageError: the file is not a usable image.
        OSError: the file cannot be read.
    """
    if printable(path.as_posix()) != path.as_posix():
        raise BadImageError("name is not UTF-8; rename it")
    if not os.path.lexists(path):
        raise BadImageError("missing")
    if path.is_symlink() and path.is_dir():
        raise BadImageError("a link to a folder, which is not followed; copy the folder to its place")
    if real is not None and not Path(os.path.realpath(path)).is_relative_to(real):
        raise BadImageError("a link that leads out of the folder; copy the file into it")
    if not path.is_file():
        raise BadImageError("not a file")
    if path.suffix.lower() not in SUFFIXES:
        raise BadImageError(unread_words(path.suffix, _head(path)))
    if path.stat().st_size > 8 * decoding.max_pixels + _EXTRA_BYTES:
        raise BadImageError(f"too large for an image of {decoding.max_pixels} pixels")
    data = path.read_bytes()
    return decode(data, decoding), data


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)
