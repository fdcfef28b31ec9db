"""ResNet-50 for larger images, torchvision's, trained from scratch (He et al. 2016).

Its stem leaves a quarter of each side to the first block, which takes images of 64 pixels or more. As with ResNet-20,
what it gets right after training on synthetic images alone is the classification accuracy score, CAS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from dreamset.classifiers.resnet20 import TRANSFORM, WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.data.splits import Split
    from dreamset.params.model import Model


class ResNet50(nn.Module):
    """See the module.

    Args:
        classes: outputs.
        size: pixels of the square images, 64 or more.
        label_smoothing: of the training loss, 0..1.
    """

    def __init__(self, classes: int, size: int, label_smoothing: float) -> None:
        super().__init__()
        self.size, self.label_smoothing = size, label_smoothing
        self.network = resnet50(weights=None, num_classes=classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of (n, 3, size, size) images in 0..1."""
        logits: Tensor = self.network((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return logits


def build(model: Model, split: Split, root: Path) -> ResNet50:
    """An initialised network for the classes of ``split``."""
    row = model.train.resnet50
    return ResNet50(len(split.classes), row.size, row.label_smoothing)


def save(classifier: ResNet50, folder: Path) -> dict[str, Any]:
    """Weights as safetensors, named as torchvision names them; what ``load`` needs beside them."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    transform = {"size": classifier.size, **TRANSFORM}
    return {"weights": WEIGHTS, "transform": transform, "base": None, "base_commit": None, "base_sha256": None}


def load(folder: Path, record: dict[str, Any]) -> ResNet50:
    """A network as ``save`` wrote it."""
    from safetensors.torch import load_file

    classifier = ResNet50(len(record["classes"]), record["transform"]["size"], 0.0)
    classifier.network.load_state_dict(load_file(folder / WEIGHTS))
    return classifier
