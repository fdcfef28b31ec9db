"""Image classifiers: one module each, one common shape.

A classifier is an ``nn.Module`` with ``size`` (pixels of the square it sees), ``label_smoothing`` and a
``forward`` from (n, 3, size, size) float RGB in 0..1 to (n, classes) logits; its trainable parameters are those that
require a gradient. A module of this package offers

- ``build(model, split, root) -> Classifier``: ready to train, initialised from torch's global generator;
- ``save(classifier, folder)``: its weights, so that others can read them;
- ``load(folder, record) -> Classifier``: back from ``save``, with ``record`` the content of ``classifier.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dreamset.data.splits import Split
    from dreamset.params.model import Model

# Classifiers that know nothing but what they are trained on: on synthetic images alone their accuracy is CAS.
FROM_SCRATCH: Final = ("resnet20", "resnet50")
RECORD = "classifier.json"
BATCH = 256  # images that a classifier is asked about at once


def _module(name: str) -> Any:
    """The module of a classifier; imported late, for open_clip alone costs seconds."""
    # Spelled out, so that whoever reads the imports of a stage (dvc.yaml lists them) finds these.
    if name == "resnet20":
        from dreamset.classifiers import resnet20

        return resnet20
    if name == "resnet50":
        from dreamset.classifiers import resnet50

        return resnet50
    if name == "clip_lora":
        from dreamset.classifiers import clip_lora

        return clip_lora
    if name == "linear_probe":
        from dreamset.classifiers import linear_probe

        return linear_probe
    if name == "clip_zeroshot":
        from dreamset.classifiers import clip_zeroshot

        return clip_zeroshot
    raise InputError(
        f"{name}: is no classifier; there are resnet20, resnet50, clip_lora, linear_probe and clip_zeroshot."
    )


def build(name: str, model: Model, split: Split, root: Path) -> nn.Module:
    """An untrained classifier of the classes of ``split``.

    Args:
        name: resnet20, resnet50, clip_lora, linear_probe or clip_zeroshot.
        model: the row of ``models`` with its width, rank and so on.
        split: class names, and the captions that CLIP compares an image with.
        root: what relative paths of the row start from.
    """
    classifier: nn.Module = _module(name).build(model, split, root)
    return classifier


def identity(root: Path, name: str) -> dict[str, Any]:
    """What a row's ``clip`` is on this machine, as ``dreamset.weights.hub.identity`` tells it: name, commit, sha256.

    Raises:
        InputError: it is not there, or is nothing that open_clip reads.
    """
    from dreamset.weights.pretrained import find

    found = find(root, name)
    return {"name": found.name, "commit": found.commit, "sha256": found.sha256}


def save(classifier: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Write weights and ``classifier.json``; ``record`` holds at least ``classifier``.

    ``load`` wants ``classes`` in it, and CLIP's ``prompts``. ``temperature``, where it is there, is what
    ``Predictor.probabilities`` divides the logits by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = _module(record["classifier"]).save(classifier, folder)
    write_json(folder / RECORD, record | facts)


def classes(folder: Path) -> tuple[str, ...]:
    """The classes of a saved classifier, in the order of its logits."""
    return tuple(read_json(folder / RECORD, "dreamset train")["classes"])


def load(folder: Path) -> Predictor:
    """A trained classifier as it was saved."""
    record = read_json(folder / RECORD, "dreamset train")
    classifier = _module(record["classifier"]).load(folder, record)
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
