"""Labelled images in memory, decoded once; labels come from the manifests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dreamset.errors import InputError
from dreamset.files import sha256_file
from dreamset.images import read_rgb, resize_crop
from dreamset.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from dreamset.splits import Sample, Split


@dataclass(frozen=True)
class Labelled:
    """``images`` (n, size, size, 3) uint8 RGB, ``labels`` (n,) int64, ``names`` of the files as a manifest has them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def real(samples: Iterable[Sample], cell: Path, size: int) -> Labelled:
    """Real images of a split, ``size`` pixels square.

    Raises:
        InputError: a file is gone or is not the one that was split.
    """
    rows = [(sample.path, sample.label, sample.sha256) for sample in samples]
    return _read(rows, cell, size, "dreamset prepare")


def synthetic(folder: Path, split: Split, size: int) -> Labelled:
    """A synthetic dataset, ``size`` pixels square, checked against its metadata.

    Raises:
        InputError: a file is gone or changed, or the classes are not those of ``split``.
    """
    rows = read_metadata(folder)
    command = f"dreamset generate {folder.name}"
    for row in rows:
        if not 0 <= row.label < len(split.classes) or split.classes[row.label] != row.class_name:
            raise InputError(f"{folder}: holds class {row.class_name!r}, unlike the splits; run `{command}` again.")
    if not rows:
        raise InputError(f"{folder}: holds no images; run `{command}` again.")
    return _read([(row.file_name, row.label, row.sha256) for row in rows], folder, size, command)


def _read(rows: list[tuple[str, int, str]], folder: Path, size: int, command: str) -> Labelled:
    images = np.zeros((len(rows), size, size, 3), np.uint8)
    for index, (name, _, digest) in enumerate(rows):
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise InputError(f"{path}: is missing or was changed; run `{command}` again.")
        images[index] = resize_crop(read_rgb(path), size)
    labels = np.array([label for _, label, _ in rows], np.int64)
    return Labelled(images, labels, tuple(name for name, _, _ in rows))
