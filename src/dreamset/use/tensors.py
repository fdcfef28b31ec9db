"""``dreamset export --tensors``: a synthetic dataset as one array, with the names of its classes beside it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, check_target, write_json
from dreamset.core.images import rgb
from dreamset.core.progress import bar
from dreamset.core.resizing import to_native
from dreamset.core.strict import listed
from dreamset.data import current, decisions, packed
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.data.synthetic import SyntheticImage
    from dreamset.params import Params

FILE: Final = "images.safetensors"
NAMES: Final = "labels.json"
OWN: Final = "own"

# Mean and standard deviation by channel of values in 0..1.
KNOWN: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?")


def tensors(
    params: Params,
    workspace: Workspace,
    recipe: str,
    target: Path,
    size: str | None = None,
    normalise: str | None = None,
) -> dict[str, Any]:
    """Write the synthetic dataset of ``recipe`` as arrays, with all copies.

    ``images.safetensors`` holds ``images`` (n, 3, height, width), uint8 as they are or float32 normalised, and
    ``labels`` (n,) int64, numbers of ``classes``. ``labels.json`` has the classes, and for each image the name of its
    class and its file. Drawn images are as classifiers see them: no finer than the shots, and grey where these are.

    Args:
        params: gives the licence and the resolution.
        workspace: holds the dataset and the shots.
        recipe: a row of ``recipes``.
        target: a new or empty folder.
        size: ``HEIGHTxWIDTH`` or the side of a square in pixels; the shorter excess is cut off around the centre. None:
            the shots' size, at most the base's resolution.
        normalise: a name of ``KNOWN`` or ``own``, which takes mean and standard deviation of these images; None: values
            stay 0 to 255.

    Returns:
        The content of ``labels.json``.

    Raises:
        InputError: the dataset is missing, changed, of other settings or has rejected images, the folder is not empty,
            or the size or the normalisation is unknown.
    """
    import numpy as np

    from dreamset.data import arrays
    from dreamset.drawing import pools

    check_target(target, "--tensors", folder=True)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; name a new folder, or empty it.")
    if normalise not in (None, OWN, *KNOWN):
        raise InputError(f"--normalise: expected one of {listed((*KNOWN, OWN))}, got {normalise!r}; or leave it out.")
    current.check_images(params, workspace, recipe)
    split, source, row = read_split(workspace.splits), workspace.synthetic(recipe), params.recipes[recipe]
    height, width = _sides(size, min(split.native or params.base.resolution, params.base.resolution))
    rows = read_metadata(source)
    rejected = decisions.count(decisions.read(workspace.review(recipe)), rows).rejected
    if rejected:
        raise InputError(
            f"{workspace.review(recipe)}: rejects {rejected} of the pictures in {source}; run `dreamset generate "
            f"{recipe}` first, which replaces them."
        )
    images = arrays.mapped(
        _decoded(rows, packed.reader(source), split, height, width), (len(rows), 3, height, width), workspace.scratch
    )
    mean, std = _own(images) if normalise == OWN else KNOWN[normalise] if normalise else (None, None)
    record: dict[str, Any] = {
        "recipe": recipe,
        "synthetic": row.draws,
        # Of a folder that is searched nothing is known, and a card says the same.
        "licence": params.drawn_licence(recipe) if row.draws or pools.endless(params) else "other",
        "shape": list(images.shape),
        "dtype": "float32" if normalise else "uint8",
        "mean": mean and list(mean),
        "std": std and list(std),
        "classes": list(split.classes),
        "labels": [row.class_name for row in rows],
        "files": [row.file_name for row in rows],
        "copy_of": [row.copy_of for row in rows],
    }
    labels = np.array([row.label for row in rows], np.int64)
    about = {"classes": json.dumps(split.classes, ensure_ascii=False), "licence": record["licence"]}
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.assembling(target) as folder:
        atomic_write(folder / FILE, _pieces(images, labels, about, mean, std))
        write_json(folder / NAMES, record)
    return record


def _sides(size: str | None, usual: int) -> tuple[int, int]:
    """Return height and width in pixels."""
    if size is None:
        return usual, usual
    match = _SIZE.fullmatch(size)
    if match is None:
        raise InputError(f"--size: expected HEIGHTxWIDTH such as 32x32, or the side of a square, got {size!r}.")
    return int(match[1]), int(match[2] or match[1])


def _fitted(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Return an image resized, bicubic, to cover a rectangle, and cut to it: (height, width, 3) uint8."""
    import numpy as np
    from PIL import Image as Picture

    scale = max(height / image.height, width / image.width)
    sides = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != sides:
        image = image.resize(sides, Picture.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _decoded(
    rows: Sequence[SyntheticImage], read: packed.Read, split: Split, height: int, width: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images one by one, each (1, 3, height, width)."""
    with bar(total=len(rows), what="tensors", unit="image") as progress:
        for row in rows:
            image = rgb(read(row.file_name, row.sha256))
            image = image.convert("L").convert("RGB") if split.channels == 1 else image
            image = to_native(image, split.native) if split.native else image
            yield _fitted(image, height, width).transpose(2, 0, 1)[None].copy()
            progress.update()


def _own(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of values in 0..1, by channel."""
    import numpy as np

    counts = np.zeros((3, 256), np.int64)
    for image in images:
        counts += [np.bincount(plane.reshape(-1), minlength=256) for plane in image]
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return tuple(mean.tolist()), tuple(float(value) or 1.0 for value in np.sqrt(variance))


def _pieces(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    about: Mapping[str, str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Iterator[bytes]:
    """Yield a file of safetensors in pieces.

    The package would hold all images twice, and write the metadata in another order each time.
    """
    import numpy as np

    size = 1 if mean is None else 4
    ends = [0, labels.nbytes, labels.nbytes + size * images.size]
    header = json.dumps(
        {
            "__metadata__": about,
            "labels": {"dtype": "I64", "shape": list(labels.shape), "data_offsets": ends[:2]},
            "images": {"dtype": "U8" if mean is None else "F32", "shape": list(images.shape), "data_offsets": ends[1:]},
        },
        ensure_ascii=False,
    ).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header + labels.astype("<i8").tobytes()
    for image in images:
        if mean is None or std is None:
            yield image.tobytes()
            continue
        values = image.astype(np.float32)
        values /= np.float32(255)
        values -= np.array(mean, np.float32).reshape(3, 1, 1)
        values /= np.array(std, np.float32).reshape(3, 1, 1)
        yield values.astype("<f4").tobytes()
