"""The two layouts of a synthetic dataset on disk, and the one reader of both.

A small dataset is class folders of PNG files. Above ``generate.pack`` images it is WebDataset shards: tar files, so
that DVC hashes tens of files. ``index.json`` says in which tar each image lies, and where. ``metadata.jsonl`` is the
same in both layouts, and so is all that depends on it.

- A sample is three members: ``<class folder>/<index>.png``, ``.cls`` with the label, and ``.json`` with the row of
  ``metadata.jsonl``. WebDataset cuts a name at its first dot, so that images whose names had further dots would become
  one sample, without a word; class folders and indices have none.
- A tar holds the same span of indices of all classes, index by index. So whoever streams one tar after the other sees
  all classes, and further images, or the replacement of one, leave most tars as they are.
- Members have no time, owner or rights of their own: the same images give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any, Final, Protocol

from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, read_json, sha256
from dreamset.data.synthetic import columns_of, line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dreamset.data.synthetic import SyntheticImage

INDEX: Final = "index.json"
TARS: Final = "images-*.tar"
_IN_TAR: Final = 2500  # images of a tar, or one index of all classes where that is more
_BLOCK: Final = 512  # bytes; what a tar consists of
_END: Final = bytes(2 * _BLOCK)
_HEADER: Final = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # mode 644, and time and owner 0


class Read(Protocol):
    """Reads a file of a folder."""

    def __call__(self, name: str, expected: str | None = None) -> bytes:
        """Return the content of a file, which is named as ``metadata.jsonl`` names it.

        Raises:
            InputError: it is missing, or its sha256 is not the expected one; None: any will do.
        """


def write(
    folder: Path,
    images: Sequence[SyntheticImage],
    read: Callable[[int], bytes],
    width: int,
    columns: Sequence[str] | None = None,
) -> None:
    """Write images as tars with an index; ``metadata.jsonl`` is left to ``write_metadata``.

    Args:
        folder: the dataset, which has no tars yet.
        images: all of them, in the order of ``metadata.jsonl``.
        read: returns the PNG file of an image by its place among ``images``.
        width: images of one index, of all classes and with all copies; it decides which indices share a tar.
        columns: of the members ``.json``; None: those of ``write_metadata``.
    """
    depth, columns = max(1, _IN_TAR // width), columns or columns_of(images)
    # The sort is stable: copies follow their image.
    ordered = sorted(range(len(images)), key=lambda at: (images[at].index, images[at].label))
    tars = []
    for number, (_, part) in enumerate(itertools.groupby(ordered, lambda at: images[at].index // depth)):
        name, places = f"images-{number:05d}.tar", dict[str, tuple[int, int]]()
        with (folder / name).open("wb") as file:
            for at in part:
                image, data = images[at], read(at)
                key = image.file_name.removesuffix(".png")
                assert "." not in key, key
                places[image.file_name] = (file.tell() + _BLOCK, len(data))
                file.write(_member(image.file_name, data))
                file.write(_member(f"{key}.cls", str(image.label).encode()))
                file.write(_member(f"{key}.json", line(image, columns).encode()))
            file.write(_END)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        tars.append(json.dumps({"file": name, "bytes": size, "images": places}))
    lines = (f"{',' if number else ''}\n{tar}" for number, tar in enumerate(tars))
    pieces = itertools.chain([f'{{"images": {len(images)}, "tars": ['], lines, ["\n]}\n"])
    atomic_write(folder / INDEX, map(str.encode, pieces))


def _member(name: str, data: bytes) -> bytes:
    """Return a file as a member of a tar: header, content, and zeros up to a whole block.

    ``TarInfo.tobuf`` gives the same, at three times the cost: in all as much as a twentieth of drawing in one step.
    """
    header, title = bytearray(_HEADER), name.encode()
    assert len(title) < 100, name
    header[: len(title)] = title
    header[124:135] = b"%011o" % len(data)
    header[148:156] = b" " * 8  # so it counts in its own sum
    header[148:155] = b"%06o\0" % sum(header)
    return b"".join((header, data, bytes(-len(data) % _BLOCK)))


def is_packed(folder: Path) -> bool:
    """Return whether a dataset is tars."""
    return (folder / INDEX).is_file() or any(folder.glob(TARS))


def reader(folder: Path, command: str | None = None) -> Read:
    """Return the function that reads the images of a dataset, whatever its layout; several threads may call it.

    Args:
        folder: the dataset.
        command: makes the dataset again; None: ``dreamset generate`` with the folder's name.

    Raises:
        InputError: a tar is missing or cut short, or the index is missing, damaged or of other tars.
    """
    command = command or f"dreamset generate {folder.name}"
    if not is_packed(folder):
        return files(folder, command)
    places = _places(folder, command)

    def read(name: str, expected: str | None = None) -> bytes:
        if name not in places:
            raise InputError(f"{folder / INDEX}: has no {name}, which metadata.jsonl lists; run `{command}` again.")
        tar, start, size = places[name]
        with tar.open("rb", buffering=0) as file:
            return _checked(os.pread(file.fileno(), size, start), expected, f"{tar}, {name}", command)

    return read


def files(folder: Path, command: str) -> Read:
    """Return the function that reads single files of a folder, as ``reader`` does."""

    def read(name: str, expected: str | None = None) -> bytes:
        path = folder / name
        return _checked(path.read_bytes() if path.is_file() else None, expected, str(path), command)

    return read


def _checked(data: bytes | None, expected: str | None, where: str, command: str) -> bytes:
    if data is None or (expected is not None and sha256(data) != expected):
        raise InputError(f"{where}: is missing or was changed; run `{command}` again.")
    return data


def _places(folder: Path, command: str) -> dict[str, tuple[Path, int, int]]:
    """Return the tar, the first byte and the number of bytes of each image, by its name."""
    index: Any = read_json(folder / INDEX, command)
    places: dict[str, tuple[Path, int, int]] = {}
    try:
        for tar in index["tars"]:
            path, size = folder / tar["file"], tar["bytes"]
            if not path.is_file():
                raise InputError(f"{path}: is missing; run `{command}` again.")
            if path.stat().st_size != size:
                raise InputError(f"{path}: has {path.stat().st_size} bytes in place of {size}; run `{command}` again.")
            places |= {name: (path, start, length) for name, (start, length) in tar["images"].items()}
        count = index["images"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / INDEX}: is no index of tars ({error!r}); run `{command}` again.") from error
    if len(places) != count:
        raise InputError(f"{folder / INDEX}: lists {len(places)} images in place of {count}; run `{command}` again.")
    return places
