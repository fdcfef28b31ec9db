"""Image classifiers: one file each, with the same functions.

A classifier is an ``nn.Module`` with ``size`` (pixels of the square it sees), ``label_smoothing`` and a ``forward``
from (n, 3, size, size) float RGB in 0..1 to (n, classes) logits. Its trainable parameters are those that require a
gradient. The file has the name of the classifier and holds

- ``Row``: the settings in a model's row, whether it is trained from scratch, and the program with which others use it;
- ``build(row, model, split, root) -> nn.Module``: returns it ready to train, initialised from torch's global generator;
- ``save(classifier, folder)``: writes its weights, so that others can read them;
- ``load(folder, record) -> nn.Module``: reads what ``save`` wrote; ``record`` is the content of ``classifier.json``;
- ``save_more(classifier, folder)``, if its program reads further files: writes these.

A classifier that also learns from soft labels (Hinton et al. 2015) has ``soft_labels``: their share of the loss, 0..1,
and the temperature; None: there are none. It then has ``with_teacher(images)``, which returns its own logits and those
of its teacher, both (n, classes), and without a gradient for the teacher.

``simple`` is a family: it has an object for each of its classifiers, which are fitted (``simple_fit``) and not trained.

Heavy libraries are imported inside these functions: ``params.yaml`` is read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import (
    classifier_tuning,
    clip_lora,
    clip_zeroshot,
    convnet_d3,
    linear_probe,
    prompt_tuning,
    resnet20,
    resnet50,
    simple,
    vpt,
)
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dreamset.data.splits import Split
    from dreamset.params.model import ClassifierRow, Model

# Every classifier. If the one to deliver was not trained, the first of the others that was takes its place.
_FILES: Final = {
    file.__name__.rpartition(".")[2]: file
    for file in (
        resnet20,
        clip_lora,
        resnet50,
        linear_probe,
        classifier_tuning,
        prompt_tuning,
        vpt,
        convnet_d3,
        clip_zeroshot,
    )
} | simple.BY_NAME
# The types of the rows of those that are trained.
ROWS: Final[Mapping[str, type[ClassifierRow]]] = {
    name: file.Row for name, file in _FILES.items() if hasattr(file, "Row")
}
RECORD = "classifier.json"
BATCH = 256  # images that a classifier predicts at once


def program(name: str, record: Mapping[str, Any]) -> str | None:
    """Return the code with which others use a saved classifier of a record; None where it cannot be delivered."""
    file = _file(name)
    code: str | None = file.Row.program if hasattr(file, "Row") else getattr(file, "program", lambda _: None)(record)
    return code


def _file(name: str) -> Any:
    if name not in _FILES:
        *others, last = _FILES
        raise InputError(f"{name}: is no classifier; there are {', '.join(others)} and {last}.")
    return _FILES[name]


def build(name: str, model: Model, split: Split, root: Path) -> nn.Module:
    """Return an untrained classifier of the classes of ``split``.

    Args:
        name: of the classifier.
        model: the row of ``models`` with its settings.
        split: gives the class names, and the captions that CLIP compares an image with.
        root: the folder that relative paths of the row start from.

    Raises:
        InputError: there is no such classifier.
    """
    classifier: nn.Module = _file(name).build(model.train.rows.get(name), model, split, root)
    return classifier


def save(classifier: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Write weights and ``classifier.json``; ``record`` holds at least ``classifier``.

    ``load`` needs its ``classes`` and, for CLIP, its ``prompts``. ``Predictor.probabilities`` divides the logits by
    ``temperature``, or by 1 where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = _file(record["classifier"]).save(classifier, folder)
    write_json(folder / RECORD, record | facts)


def save_more(name: str, classifier: nn.Module, folder: Path) -> None:
    """Write the further files that the ``program`` of a saved classifier reads."""
    if hasattr(_file(name), "save_more"):
        _file(name).save_more(classifier, folder)


def classes(folder: Path) -> tuple[str, ...]:
    """Return the classes of a saved classifier, in the order of its logits."""
    return tuple(read_json(folder / RECORD, "dreamset train")["classes"])


def load(folder: Path) -> Predictor:
    """Return a predictor with a saved classifier.

    Raises:
        InputError: the folder holds no classifier, its weights are not whole or are no numbers, or its record and its
            weights are not of the same classes.
    """
    from dreamset.weights import tensors

    record = read_json(folder / RECORD, "dreamset train")
    try:
        names = tuple(record["classes"])
        if len(record.get("prompts", names)) != len(names):
            raise InputError(
                f"{folder / RECORD}: has {len(names)} classes and captions of {len(record['prompts'])}; "
                f"{tensors.AGAIN}."
            )
        classifier = _file(record["classifier"]).load(folder, record)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / RECORD}: is not whole ({error} is missing or wrong); {tensors.AGAIN}.") from error
    return Predictor(classifier, names, record.get("temperature", 1.0))


class Predictor:
    """A classifier in evaluation mode: uint8 images to logits, and logits to probabilities."""

    def __init__(self, classifier: nn.Module, classes: tuple[str, ...], temperature: float = 1.0) -> None:
        from dreamset.core import device

        self.device = device.pick()
        self.classifier = classifier.to(self.device).eval()
        self.classes, self.temperature = classes, temperature
        self.size: int = classifier.size  # type: ignore[assignment]

    def logits(self, images: NDArray[np.uint8], batch: int = BATCH) -> NDArray[np.float32]:
        """Return float32 logits (n, classes) of RGB images (n, h, w, 3), resized to the classifier's input.

        Raises:
            InputError: some are no numbers, so that they name no class.
        """
        import numpy as np
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = to_float(torch.from_numpy(images[start : start + batch]).to(self.device), self.classifier)
                with autocast(self.device):
                    parts.append(self.classifier(pixels).float().cpu().numpy())
        logits = np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)
        if not np.isfinite(logits).all():
            raise InputError(
                "the classifier gives NaN or infinite logits, which name no class; train it again with a lower lr in "
                "models.*.train."
            )
        return logits

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 probabilities (n, classes) of logits of the same shape, at the classifier's temperature."""
        import numpy as np

        from dreamset.classifiers.calibration import log_softmax

        return np.exp(log_softmax(logits / self.temperature)).astype(np.float32)


def autocast(where: torch.device) -> torch.autocast:
    """Return a context of bfloat16 arithmetic on CUDA, and of float32 elsewhere: bfloat16 is often slower on CPUs."""
    import torch

    return torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda")


def finest(native: int | None, resolution: int) -> int:
    """Return the side, in pixels, beyond which no image that a classifier learns from or is scored on has detail.

    Args:
        native: median of the shortest sides of the shots' files, pixels; None: unknown.
        resolution: side of the model's images, pixels.
    """
    return max(native or resolution, resolution)


def stored(size: int, finest: int) -> int:
    """Return the side, in pixels, of the squares that a classifier is trained on.

    Random crops come from a copy that is an eighth larger than the classifier's input: 256 pixels for a CLIP of 224.
    A crop of a quarter of the area is then enlarged by 7/4. From an original of 512 pixels it would be reduced by 7/8,
    so such crops are softer here.

    Args:
        size: side of the classifier's input, pixels.
        finest: the largest side that is of use, pixels: see the function of this name.
    """
    return min(finest, round(size * 8 / 7))


def seen(size: int, finest: int) -> int:
    """Return the side, in pixels, of the squares that a network is scored on: its input, or ``finest`` if smaller."""
    return min(finest, size)


def to_float(images: Tensor, classifier: nn.Module, largest: int | None = None) -> Tensor:
    """Return (n, h, h, 3) uint8 as float (n, 3, size, size) in 0..1, resized with antialiasing where sizes differ.

    With ``largest``, sides between the classifier's input and ``largest`` pixels stay as they are.
    """
    import torch.nn.functional as F

    pixels = images.permute(0, 3, 1, 2).float() / 255
    size: int = classifier.size  # type: ignore[assignment]
    side = min(max(pixels.shape[-1], size), max(largest or size, size))
    if pixels.shape[-2:] != (side, side):
        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return pixels
