"""ResNet-50 for larger images, torchvision's, trained from scratch (He et al. 2016).

Its stem reduces each side to a quarter before the first block, so images need 64 pixels or more. As with ResNet-20, its
accuracy after training on synthetic images alone is the classification accuracy score, CAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.classifiers.scratch import TRANSFORM, WEIGHTS
from dreamset.core.strict import Range
from dreamset.params.model import ScratchRow

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dreamset.data.splits import Split
    from dreamset.params.model import Model
# How others use it: `logits` takes the result of `read`. The card of a delivered classifier prints both.
PROGRAM: Final = """
from torchvision.models import resnet50

network = resnet50(num_classes=len(record["classes"])).eval()
network.load_state_dict(load_file("model.safetensors"))


def logits(images):
    return network(images * 2 - 1)
"""


@dataclass(frozen=True)
class Row(ScratchRow):
    """``train.resnet50`` of a model's row."""

    program: ClassVar[str | None] = PROGRAM
    later: ClassVar[bool] = False

    # The stem reduces each side to a quarter before the first block.
    native: ClassVar[tuple[int, int]] = (64, 224)
    size: Annotated[int, Range(low=64)] | Literal["native"]


def network(classes: int, size: int, label_smoothing: float) -> nn.Module:
    """Return an initialised network.

    Args:
        classes: outputs.
        size: pixels of the square images, 64 or more.
        label_smoothing: of the training loss, 0..1.
    """
    import torch
    from torch import Tensor, nn
    from torchvision.models import resnet50

    class ResNet50(nn.Module):
        """The network."""

        def __init__(self) -> None:
            super().__init__()
            self.size, self.label_smoothing = size, label_smoothing
            self.network = resnet50(weights=None, num_classes=classes)
            self.to(memory_format=torch.channels_last)

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
            logits: Tensor = self.network((images * 2 - 1).contiguous(memory_format=torch.channels_last))
            return logits

    return ResNet50()


def build(row: Row, model: Model, split: Split, root: Path) -> nn.Module:
    """Return an initialised network for the classes of ``split``."""
    return network(len(split.classes), row.side(split.native), row.label_smoothing)


def save(classifier: nn.Module, folder: Path) -> dict[str, Any]:
    """Write the weights as safetensors under torchvision's names, and return the facts that ``load`` needs."""
    from safetensors.torch import save_file

    state = classifier.get_submodule("network").state_dict()
    save_file({name: value.cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)
    transform = {"size": classifier.size, **TRANSFORM}
    return {"weights": WEIGHTS, "transform": transform, "base": None, "base_commit": None, "base_sha256": None}


def load(folder: Path, record: dict[str, Any]) -> nn.Module:
    """Return the network that ``save`` wrote."""
    from dreamset.weights import tensors

    classifier = network(len(record["classes"]), record["transform"]["size"], 0.0)
    tensors.fill(classifier.get_submodule("network"), folder / WEIGHTS, tensors.AGAIN)
    return classifier
