"""Labelled images as one array of squares, decoded once. The labels come from the manifests."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dreamset.core.errors import InputError
from dreamset.core.images import rgb
from dreamset.core.resizing import resize_crop, to_native
from dreamset.data import packed
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dreamset.data.splits import Sample, Split

_BLOCK: Final = 256  # images that are decoded between two writes, and so are in memory at once
_THREADS: Final = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Labelled:
    """Images with their labels.

    Attributes:
        images: (n, size, size, 3) uint8, RGB.
        labels: (n,) int64.
        names: the files, as a manifest names them.
        weights: (n,) float32, of each image in a loss, with a mean of 1; None: all alike.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def real(samples: Iterable[Sample], cell: Path, size: int, scratch: Path | None = None) -> Labelled:
    """Return real images of a split, ``size`` pixels square.

    Args:
        samples: rows of a manifest.
        cell: the folder that their paths are relative to.
        size: pixels; the shortest side is resized to it and the centre is kept.
        scratch: folder for a nameless file that holds the pixels while they are in use. Memory then does not grow
            with their number. None: the pixels are in memory.

    Raises:
        InputError: a file is missing or differs from the one in the split, or ``scratch`` has no room.
    """
    rows = [(sample.path, sample.label, sample.sha256) for sample in samples]
    return _read(rows, cell, size, "dreamset prepare", scratch)


def synthetic(
    folder: Path,
    split: Split,
    size: int,
    scratch: Path | None = None,
    most: Sequence[int] | None = None,
    *,
    copies: bool = True,
) -> Labelled:
    """Return the images of a synthetic dataset, ``size`` pixels square, after checking them against its metadata.

    ``drawn`` reads the images.

    Args:
        folder: the dataset.
        split: the classes, and the real images beside them.
        size: pixels.
        scratch: as for ``real``.
        most: as for ``listed``.
        copies: as for ``listed``.

    Raises:
        InputError: a file is missing or changed, the classes differ from those of ``split``, or ``scratch`` has no
            room.
    """
    return drawn(
        listed(folder, split, most, copies=copies), folder, split, size, f"dreamset generate {folder.name}", scratch
    )


def listed(
    folder: Path, split: Split, most: Sequence[int] | None = None, *, copies: bool = True
) -> list[tuple[str, int, str]]:
    """Return (path, label, sha256) of every image of a synthetic dataset, as ``drawn`` takes them.

    Args:
        folder: the dataset.
        split: holds the classes of the dataset.
        most: the largest number of images of each label, by label; the first ones are taken. None: all images.
        copies: whether copies of drawn images are among them; without, they are counted in ``most`` all the same.

    Raises:
        InputError: the dataset holds no images, or its classes differ from those of ``split``.
    """
    rows = read_metadata(folder)
    command = f"dreamset generate {folder.name}"
    for row in rows:
        if not 0 <= row.label < len(split.classes) or split.classes[row.label] != row.class_name:
            raise InputError(f"{folder}: holds class {row.class_name!r}, unlike the splits; run `{command}` again.")
    if not rows:
        raise InputError(f"{folder}: holds no images; run `{command}` again.")
    left = dict(enumerate(most)) if most is not None else dict.fromkeys(range(len(split.classes)), len(rows))
    files = []
    for row in rows:
        left[row.label] -= 1
        if left[row.label] >= 0 and (copies or row.copy_of is None):
            files.append((row.file_name, row.label, row.sha256))
    return files


def drawn(
    files: list[tuple[str, int, str]], folder: Path, split: Split, size: int, command: str, scratch: Path | None = None
) -> Labelled:
    """Return images that a base drew or that were retrieved, ``size`` pixels square, made to look like the real ones.

    Where ``split.native`` is below their resolution, the images are reduced to it and then enlarged as real ones are.
    Where the real images have one channel, only the luminance of the drawn ones is kept.

    Args:
        files: (path, label, sha256) of each image, paths relative to ``folder``.
        folder: the folder that the paths are relative to, in either layout.
        split: the real images beside them.
        size: pixels; the shortest side is resized to it and the centre is kept.
        command: the command that makes the files again; the error message names it.
        scratch: as for ``real``.

    Raises:
        InputError: a file is missing or changed, or ``scratch`` has no room.
    """
    grey = split.channels == 1
    return _read(files, folder, size, command, scratch, packed.reader, split.native, grey=grey)


def _read(
    rows: list[tuple[str, int, str]],
    folder: Path,
    size: int,
    command: str,
    scratch: Path | None,
    reader: Callable[[Path, str], packed.Read] = packed.files,
    native: int | None = None,
    *,
    grey: bool = False,
) -> Labelled:
    read = reader(folder, command)

    def decode(row: tuple[str, int, str]) -> NDArray[np.uint8]:
        image = rgb(read(row[0], row[2]))
        image = image.convert("L").convert("RGB") if grey else image
        return resize_crop(to_native(image, native) if native else image, size)

    shape = (len(rows), size, size, 3)
    blocks = _decoded(rows, decode)
    images = mapped(blocks, shape, scratch) if scratch and rows else _in_memory(blocks, shape)
    labels = np.array([label for _, label, _ in rows], np.int64)
    return Labelled(images, labels, tuple(name for name, _, _ in rows))


def _decoded(
    rows: Sequence[tuple[str, int, str]], decode: Callable[[tuple[str, int, str]], NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield blocks of images in order; threads are enough, as Pillow and hashlib release the interpreter's lock."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rows), _BLOCK):
            yield np.stack(list(pool.map(decode, rows[start : start + _BLOCK])))


def _in_memory(blocks: Iterator[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    images, end = np.empty(shape, np.uint8), 0
    for block in blocks:
        images[end : end + len(block)] = block
        end += len(block)
    return images


def mapped(blocks: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], scratch: Path) -> NDArray[np.uint8]:
    """Return an array over a mapped file without a name; its room is free again when the array or the process ends.

    Args:
        blocks: the array in pieces, along its first axis.
        shape: of the whole.
        scratch: folder of the file.

    Raises:
        InputError: ``scratch`` has no room.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            # A full disk is an error when the file is written; through the mapping it would be a fatal signal.
            for block in blocks:
                file.write(block.data)
            file.flush()
            return np.asarray(np.memmap(file, np.uint8, "r+", shape=shape))
    except OSError as error:
        need = np.prod(shape, dtype=float) / 1e9
        raise InputError(
            f"{scratch}: has no room for {need:.1f} GB of decoded images ({error}); free some space."
        ) from error
