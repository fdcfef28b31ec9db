"""Image classifiers: one file each, one common shape.

A classifier is an ``nn.Module`` with ``size`` (pixels of the square it sees), ``label_smoothing`` and a
``forward`` from (n, 3, size, size) float RGB in 0..1 to (n, classes) logits; its trainable parameters are those that
require a gradient. Its file, named as it is, holds

- ``Row``: its settings in a model's row, whether it is trained from scratch, and how others use it;
- ``build(row, model, split, root) -> nn.Module``: ready to train, initialised from torch's global generator;
- ``save(classifier, folder)``: writes its weights, so that others can read them;
- ``load(folder, record) -> nn.Module``: back from ``save``, with ``record`` the content of ``classifier.json``;
- ``save_more(classifier, folder)``, where its program reads further files: writes these.

Heavy libraries are imported inside these functions: ``params.yaml`` is read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.classifiers import clip_lora, clip_zeroshot, linear_probe, resnet20, resnet50
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dreamset.data.splits import Split
    from dreamset.params.model import ClassifierRow, Model

# Every classifier, in the order in which they stand in for one another where one is to be delivered.
_FILES: Final = {
    file.__name__.rpartition(".")[2]: file
    for file in (
        resnet20,
        clip_lora,
        resnet50,
        linear_probe,
        clip_zeroshot,
    )
}
# The settings of those that are trained.
ROWS: Final[Mapping[str, type[ClassifierRow]]] = {
    name: file.Row for name, file in _FILES.items() if hasattr(file, "Row")
}
RECORD = "classifier.json"
BATCH = 256  # images that a classifier is asked about at once


def _file(name: str) -> ModuleType:
    if name not in _FILES:
        *others, last = _FILES
        raise InputError(f"{name}: is no classifier; there are {', '.join(others)} and {last}.")
    return _FILES[name]


def build(name: str, model: Model, split: Split, root: Path) -> nn.Module:
    """An untrained classifier of the classes of ``split``.

    Args:
        name: of the classifier.
        model: the row of ``models`` with its settings.
        split: class names, and the captions that CLIP compares an image with.
        root: what relative paths of the row start from.

    Raises:
        InputError: there is no such classifier.
    """
    classifier: nn.Module = _file(name).build(model.train.rows.get(name), model, split, root)
    return classifier


def save(classifier: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Write weights and ``classifier.json``; ``record`` holds at least ``classifier``.

    ``load`` wants ``classes`` in it, and CLIP's ``prompts``. ``temperature``, where it is there, is what
    ``Predictor.probabilities`` divides the logits by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = _file(record["classifier"]).save(classifier, folder)
    write_json(folder / RECORD, record | facts)


def save_more(name: str, classifier: nn.Module, folder: Path) -> None:
    """Write further files beside a saved classifier that its ``program`` reads."""
    if hasattr(_file(name), "save_more"):
        _file(name).save_more(classifier, folder)


def classes(folder: Path) -> tuple[str, ...]:
    """The classes of a saved classifier, in the order of its logits."""
    return tuple(read_json(folder / RECORD, "dreamset train")["classes"])


def load(folder: Path) -> Predictor:
    """A trained classifier as it was saved."""
    record = read_json(folder / RECORD, "dreamset train")
    classifier = _file(record["classifier"]).load(folder, record)
    return Predictor(classifier, tuple(record["classes"]), record.get("temperature", 1.0))


class Predictor:
    """A classifier in evaluation mode, from uint8 images to logits, and from logits to probabilities."""

    def __init__(self, classifier: nn.Module, classes: tuple[str, ...], temperature: float = 1.0) -> None:
        from dreamset.core import device

        self.device = device.pick()
        self.classifier = classifier.to(self.device).eval()
        self.classes, self.temperature = classes, temperature
        self.size: int = classifier.size  # type: ignore[assignment]

    def logits(self, images: NDArray[np.uint8], batch: int = BATCH) -> NDArray[np.float32]:
        """Float32 logits (n, classes) of RGB images (n, h, w, 3), resized to what the classifier sees."""
        import numpy as np
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = to_float(torch.from_numpy(images[start : start + batch]).to(self.device), self.classifier)
                with autocast(self.device):
                    parts.append(self.classifier(pixels).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 probabilities (n, classes) of logits of the same shape, at the classifier's temperature."""
        import numpy as np

        from dreamset.classifiers.calibration import log_softmax

        return np.exp(log_softmax(logits / self.temperature)).astype(np.float32)


def autocast(where: torch.device) -> torch.autocast:
    """bfloat16 arithmetic on CUDA, float32 elsewhere: on CPUs bfloat16 is often the slower one."""
    import torch

    return torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda")


def stored(size: int, resolution: int) -> int:
    """Side, pixels, of the squares that a classifier is trained on.

    A random crop is taken from a copy that is an eighth larger than what the classifier sees: 256 pixels for a CLIP
    of 224, as evaluation does. A crop of a quarter of the area is then enlarged by 7/4, where one from an original
    of 512 pixels would be reduced by 7/8: such crops are softer here. Nothing is stored beyond the model's own
    resolution.

    Args:
        size: what the classifier sees, pixels.
        resolution: of the model's images, pixels.
    """
    return min(resolution, round(size * 8 / 7))


def seen(size: int, resolution: int) -> int:
    """Side, pixels, of the squares that a classifier is scored on: exactly what it sees, or the model's resolution."""
    return min(resolution, size)


def to_float(images: Tensor, classifier: nn.Module, largest: int | None = None) -> Tensor:
    """(n, h, h, 3) uint8 to float (n, 3, size, size) in 0..1, antialiased where it must shrink or grow.

    With ``largest`` the result is between what the classifier sees and that many pixels: nothing in between is resized.
    """
    import torch.nn.functional as F

    pixels = images.permute(0, 3, 1, 2).float() / 255
    size: int = classifier.size  # type: ignore[assignment]
    side = min(max(pixels.shape[-1], size), max(largest or size, size))
    if pixels.shape[-2:] != (side, side):
        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return pixels
