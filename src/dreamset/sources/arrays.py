"""Data sets stored as arrays instead of files: CIFAR, STL-10 and MedMNIST. Only the drawn images are written as PNG."""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dreamset.core.errors import InputError
from dreamset.core.images import is_grey
from dreamset.data.source import Image, Source
from dreamset.sources.reading import pixels_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

CIFAR: Final = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}

_ORGANS: Final = (
    *("bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver", "left lung"),
    *("right lung", "pancreas", "spleen"),
)
_ANY_WAY_UP: Final = ("hflip", "vflip", "rotation")


class _Set(NamedTuple):
    """One data set of MedMNIST: the words of its captions, and the changes that keep its labels."""

    template: str
    classes: tuple[str, ...]
    invariances: tuple[str, ...] = ()


MEDMNIST: Final = {
    "pathmnist": _Set(
        "a histology photo of {class}",
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
            *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        ),
        _ANY_WAY_UP,
    ),
    "dermamnist": _Set(
        "a dermatoscopic photo of {class}",
        (
            *("actinic keratosis", "basal cell carcinoma", "benign keratosis", "dermatofibroma", "melanoma"),
            *("melanocytic nevus", "vascular lesion"),
        ),
        _ANY_WAY_UP,
    ),
    "octmnist": _Set(
        "a retinal OCT scan of {class}",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "a normal retina"),
        ("hflip",),
    ),
    "pneumoniamnist": _Set("a chest X-ray of {class}", ("a normal lung", "pneumonia")),
    "retinamnist": _Set(
        "a fundus photo of diabetic retinopathy of {class}", tuple(f"grade {grade}" for grade in range(5))
    ),
    "breastmnist": _Set(
        "a breast ultrasound image of {class}", ("a malignant tumour", "no malignant tumour"), ("hflip",)
    ),
    "bloodmnist": _Set(
        "a microscope photo of a {class}",
        (
            *("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte"),
            *("neutrophil", "platelet"),
        ),
        _ANY_WAY_UP,
    ),
    "tissuemnist": _Set(
        "a microscope photo of kidney cortex cells: {class}",
        (
            *("collecting duct or connecting tubule", "distal convoluted tubule", "glomerular endothelial cells"),
            *("interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments"),
            "thick ascending limb",
        ),
        _ANY_WAY_UP,
    ),
    # A mirrored left kidney is a right one.
    "organamnist": _Set("an axial CT scan of the {class}", _ORGANS),
    "organcmnist": _Set("a coronal CT scan of the {class}", _ORGANS),
    "organsmnist": _Set("a sagittal CT scan of the {class}", _ORGANS),
}


def read_cifar(kind: str, root: Path) -> Source:
    """Read CIFAR-10 or CIFAR-100 through torchvision; selection images are drawn from the training images.

    Raises:
        InputError: files are missing, or their checksums differ from the published ones.
    """
    import numpy as np
    from torchvision import datasets

    reader = getattr(datasets, CIFAR[kind])
    try:
        # torchvision compares checksums before it opens the pickled files.
        train, test = (reader(root, train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{root}: holds no complete {reader.base_folder}; download {reader.url} and unpack it there."
        ) from error
    return Source(
        classes=tuple(train.classes),
        template="a photo of a {class}",
        invariances=("hflip",),
        train=_images("train", train.data, np.asarray(train.targets)),
        selection=None,
        test=_images("test", test.data, np.asarray(test.targets)),
        published=True,
    )


def read_stl10(root: Path) -> Source:
    """Read STL-10 through torchvision; selection images are drawn from the training images.

    Its images without labels are not read.

    Raises:
        InputError: files are missing, or their checksums differ from the published ones.
    """
    import numpy as np
    from torchvision import datasets

    reader = datasets.STL10
    try:
        train, test = (reader(root, split=part, download=False) for part in ("train", "test"))
        classes = tuple(train.classes)
    except (RuntimeError, OSError, AttributeError) as error:
        raise InputError(
            f"{root}: holds no complete {reader.base_folder}; download {reader.url} and unpack it there."
        ) from error
    return Source(
        classes=classes,
        template="a photo of a {class}",
        invariances=("hflip",),
        train=_images("train", np.ascontiguousarray(train.data.transpose(0, 2, 3, 1)), np.asarray(train.labels)),
        selection=None,
        test=_images("test", np.ascontiguousarray(test.data.transpose(0, 2, 3, 1)), np.asarray(test.labels)),
        published=True,
    )


def read_medmnist(file: Path) -> Source:
    """Read a file of MedMNIST with images of any size; selection images come from its validation part.

    Raises:
        InputError: it is not such a file, or it holds volumes or several labels per image.
    """
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            parts = {part: _checked(file, part, arrays) for part in ("train", "val", "test")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(
            f"{file}: is not a complete file of MedMNIST ({error}); download it from https://medmnist.com."
        ) from error
    count = 1 + max(int(labels.max()) for _, labels in parts.values())
    row, warnings = _set(file), tuple[str, ...]()
    if row is None or len(row.classes) < count:
        row = _Set("a photo of {class}", tuple(f"class {label}" for label in range(count)))
        warnings = (
            f"{file}: its name is that of no set of MedMNIST with {count} classes, so captions say 'class 0' and no "
            "change of an image is known to keep its label; if it is one of these, rename it, such as bloodmnist.npz: "
            f"{', '.join(MEDMNIST)}",
        )
    train, selection, test = (_images(part, *parts[part]) for part in ("train", "val", "test"))
    return Source(row.classes, row.template, row.invariances, train, selection, test, published=True, warnings=warnings)


def _set(file: Path) -> _Set | None:
    """The set that a file is named after, wherever the name stands in it; version 1 wrote organmnist_axial."""
    name = re.sub(r"[^a-z0-9]", "", file.stem.lower())
    for plane in ("axial", "coronal", "sagittal"):
        name = name.replace(f"organmnist{plane}", f"organ{plane[0]}mnist")
    return next((row for title, row in MEDMNIST.items() if title in name), None)


def _checked(file: Path, part: str, arrays: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Check and return a part's images, (n, h, w) or (n, h, w, 3) uint8, and its labels (n,)."""
    import numpy as np

    for key in (f"{part}_images", f"{part}_labels"):
        if key not in arrays:
            raise InputError(f"{file}: holds no array {key}; download it from https://medmnist.com.")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise InputError(
            f"{file}: {part}_images is {images.dtype} of shape {images.shape}; expected uint8 images, grey or RGB "
            "(sets of volumes cannot be used)."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images) or not len(labels):
        raise InputError(
            f"{file}: {part}_labels is {labels.dtype} of shape {labels.shape}; expected one class per image (sets with "
            "several labels per image cannot be used)."
        )
    if labels.min() < 0:
        raise InputError(f"{file}: {part}_labels holds {labels.min()}; expected classes from 0.")
    return images, labels.astype(np.int64)


def _images(part: str, pixels: NDArray[np.uint8], labels: Sequence[int] | NDArray[np.int64]) -> list[Image]:
    from PIL import Image as Picture

    images = []
    for row, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        name = f"{part}_{row:06d}"
        images.append(
            Image(
                name=name,
                label=int(label),
                group=name,
                pixels_sha256=pixels_digest(picture.shape, picture.tobytes()),
                grey=picture.ndim == 2 or is_grey(Picture.fromarray(picture)),
                pixels=picture,
            )
        )
    return images
