"""Labelled images as one array of squares, decoded once; labels come from the manifests."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dreamset.core.errors import InputError
from dreamset.core.files import sha256_file
from dreamset.core.images import read_rgb, resize_crop, to_native
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dreamset.data.splits import Sample, Split

_BLOCK: Final = 256  # images that are decoded between two writes, and so in memory at once
_THREADS: Final = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Labelled:
    """``images`` (n, size, size, 3) uint8 RGB, ``labels`` (n,) int64, ``names`` of the files as a manifest has them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def real(samples: Iterable[Sample], cell: Path, size: int, scratch: Path | None = None) -> Labelled:
    """Real images of a split, ``size`` pixels square.

    Args:
        samples: rows of a manifest.
        cell: what their paths are relative to.
        size: pixels; the shortest side is resized to it and the centre is kept.
        scratch: folder for a nameless file that holds the pixels while they are in use, so that memory does not grow
            with their number; None: in memory.

    Raises:
        InputError: a file is gone or is not the one that was split, or ``scratch`` has no room.
    """
    rows = [(sample.path, sample.label, sample.sha256) for sample in samples]
    return _read(rows, cell, size, "dreamset prepare", scratch)


def synthetic(
    folder: Path, split: Split, size: int, scratch: Path | None = None, most: Sequence[int] | None = None
) -> Labelled:
    """A synthetic dataset, ``size`` pixels square, checked against its metadata.

    Images are read as ``drawn`` reads them.

    Args:
        folder: the dataset.
        split: the classes, and the real images beside them.
        size: pixels.
        scratch: as for ``real``.
        most: as for ``listed``.

    Raises:
        InputError: a file is gone or changed, the classes are not those of ``split``, or ``scratch`` has no room.
    """
    return drawn(listed(folder, split, most), folder, split, size, f"dreamset generate {folder.name}", scratch)


def listed(folder: Path, split: Split, most: Sequence[int] | None = None) -> list[tuple[str, int, str]]:
    """(path, label, sha256) of every image of a synthetic dataset, as ``drawn`` takes them.

    Args:
        folder: the dataset.
        split: its classes.
        most: of each label no more than so many images, the first ones; None: all.

    Raises:
        InputError: it holds no images, or its classes are not those of ``split``.
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
        if left[row.label] >= 0:
            files.append((row.file_name, row.label, row.sha256))
    return files


def drawn(
    files: list[tuple[str, int, str]], folder: Path, split: Split, size: int, command: str, scratch: Path | None = None
) -> Labelled:
    """Images that a base has drawn, or that were retrieved, ``size`` pixels square, as the real ones of ``split`` look.

    Where ``split.native`` is below their resolution, images pass through it, and are then raised as real ones are.
    Where the real images are of one channel, all that counts of the drawn ones is their luminance.

    Args:
        files: (path, label, sha256) of each, paths relative to ``folder``.
        folder: what the paths are relative to.
        split: the real images beside them.
        size: pixels; the shortest side is resized to it and the centre is kept.
        command: what makes the files again, for the error.
        scratch: as for ``real``.

    Raises:
        InputError: a file is gone or changed, or ``scratch`` has no room.
    """
    return _read(files, folder, size, command, scratch, split.native, grey=split.channels == 1)


def _read(
    rows: list[tuple[str, int, str]],
    folder: Path,
    size: int,
    command: str,
    scratch: Path | None,
    native: int | None = None,
    *,
    grey: bool = False,
) -> Labelled:
    def decode(row: tuple[str, int, str]) -> NDArray[np.uint8]:
        path = folder / row[0]
        if not path.is_file() or sha256_file(path) != row[2]:
            raise InputError(f"{path}: is missing or was changed; run `{command}` again.")
        image = read_rgb(path)
        image = image.convert("L").convert("RGB") if grey else image
        return resize_crop(to_native(image, native) if native else image, size)

    shape = (len(rows), size, size, 3)
    blocks = _decoded(rows, decode)
    images = _in_file(blocks, shape, scratch) if scratch and rows else _in_memory(blocks, shape)
    labels = np.array([label for _, label, _ in rows], np.int64)
    return Labelled(images, labels, tuple(name for name, _, _ in rows))


def _decoded(
    rows: Sequence[tuple[str, int, str]], decode: Callable[[tuple[str, int, str]], NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Blocks of images in order; Pillow and hashlib leave the interpreter's lock, so threads are enough."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rows), _BLOCK):
            yield np.stack(list(pool.map(decode, rows[start : start + _BLOCK])))


def _in_memory(blocks: Iterator[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    images, end = np.empty(shape, np.uint8), 0
    for block in blocks:
        images[end : end + len(block)] = block
        end += len(block)
    return images


def _in_file(blocks: Iterator[NDArray[np.uint8]], shape: tuple[int, ...], scratch: Path) -> NDArray[np.uint8]:
    """A mapped file without a name: its room is free again when the array goes, or when the process is killed."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            # Written and not stored through the mapping: a full disk is an error here, and a fatal signal there.
            for block in blocks:
                file.write(block.data)
            file.flush()
            return np.asarray(np.memmap(file, np.uint8, "r+", shape=shape))
    except OSError as error:
        need = np.prod(shape, dtype=float) / 1e9
        raise InputError(f"{scratch}: has no room for {need:.1f} GB of decoded images ({error}); make some.") from error
