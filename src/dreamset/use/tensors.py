"""``dreamset export --tensors``: a synthetic dataset as one array, with the names of its classes beside it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import shards
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, check_target, sha256_file, write_json
from dreamset.core.images import read_rgb, to_native
from dreamset.core.progress import bar
from dreamset.core.strict import listed
from dreamset.data import decisions
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dreamset.core.workspace import Workspace
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
        InputError: the dataset is missing, changed or has rejected images, the folder is not empty, or the size or the
            normalisation is unknown.
    """
    import numpy as np
    from safetensors.numpy import save

    check_target(target, "--tensors", folder=True)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; name a new folder, or empty it.")
    if normalise not in (None, OWN, *KNOWN):
        raise InputError(f"--normalise: expected one of {listed((*KNOWN, OWN))}, got {normalise!r}; or leave it out.")
    split, source = read_split(workspace.splits), workspace.synthetic(recipe)
    height, width = _sides(size, min(split.native or params.base.resolution, params.base.resolution))
    rows = read_metadata(source)
    rejected = decisions.count(decisions.read(workspace.review(recipe)), rows).rejected
    if rejected:
        raise InputError(
            f"{workspace.review(recipe)}: rejects {rejected} of the pictures in {source}; run `dreamset generate "
            f"{recipe}` first, which replaces them."
        )
    images = np.empty((len(rows), 3, height, width), np.uint8)
    with bar(total=len(rows), what="tensors", unit="image") as progress:
        for at, row in enumerate(rows):
            path = source / row.file_name
            if not path.is_file() or sha256_file(path) != row.sha256:
                raise InputError(f"{path}: is missing or was changed; run `dreamset generate {recipe}` again.")
            image = read_rgb(path)
            image = image.convert("L").convert("RGB") if split.channels == 1 else image
            image = to_native(image, split.native) if split.native else image
            images[at] = _fitted(image, height, width).transpose(2, 0, 1)
            progress.update()
    values, mean, std = _normalised(images, normalise)
    record = {
        "recipe": recipe,
        "synthetic": True,
        "licence": params.drawn_licence(recipe),
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "mean": mean,
        "std": std,
        "classes": list(split.classes),
        "labels": [row.class_name for row in rows],
        "files": [row.file_name for row in rows],
        "copy_of": [row.copy_of for row in rows],
    }
    labels = np.array([row.label for row in rows], np.int64)
    about = {"classes": json.dumps(split.classes, ensure_ascii=False), "licence": params.base.licence}
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.assembling(target) as folder:
        atomic_write(folder / FILE, save({"images": values, "labels": labels}, about))
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


def _normalised(
    images: NDArray[np.uint8], normalise: str | None
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], list[float] | None, list[float] | None]:
    """Return the values, and the mean and standard deviation of values in 0..1 that they were normalised by."""
    import numpy as np

    if normalise is None:
        return images, None, None
    if normalise == OWN:
        channels = [images[:, channel].astype(np.float64) / 255 for channel in range(3)]
        mean = tuple(float(values.mean()) for values in channels)
        std = tuple(float(values.std()) or 1.0 for values in channels)
    else:
        mean, std = KNOWN[normalise]
    shape = (1, 3, 1, 1)
    values: NDArray[np.float32] = images.astype(np.float32)
    values /= np.float32(255)
    values -= np.array(mean, np.float32).reshape(shape)
    values /= np.array(std, np.float32).reshape(shape)
    return values, list(mean), list(std)
