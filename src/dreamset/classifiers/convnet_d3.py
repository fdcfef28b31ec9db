"""ConvNetD3 for small images, trained from scratch: the network that scores distilled datasets (Zhao et al. 2021).

It has three blocks of a 3x3 convolution, instance norm, ReLU and 2x2 average pooling, then a linear layer. In the
challenge that arXiv 2408.08610 entered, 128 channels wide, it scored synthetic sets. It learns by SGD, its rate falls
to a tenth in the middle, and its images are augmented as in differentiable siamese augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.classifiers import scratch
from dreamset.classifiers.scratch import save
from dreamset.core.strict import Range
from dreamset.params.model import Augmentation, Optimizer, ScratchRow
from dreamset.params.values import Count

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["Row", "build", "load", "network", "save"]

_BLOCKS: Final = 3
# How others use it: `logits` takes the result of `read`. The card of a delivered classifier prints both.
PROGRAM: Final = """
weights = load_file("model.safetensors")


def logits(images):
    x = images * 2 - 1
    for i in range(3):
        x = F.conv2d(x, weights[f"convs.{i}.weight"], weights[f"convs.{i}.bias"], padding=1)
        x = F.group_norm(x, x.shape[1], weights[f"norms.{i}.weight"], weights[f"norms.{i}.bias"])
        x = F.avg_pool2d(x.relu(), 2)
    return F.linear(x.flatten(1), weights["head.weight"], weights["head.bias"])
"""


@dataclass(frozen=True)
class Row(ScratchRow):
    """``train.convnet_d3`` of a model's row."""

    program: ClassVar[str | None] = PROGRAM
    optimizer: ClassVar[Optimizer] = "sgd"
    augmentation: ClassVar[Augmentation] = "siamese"
    native: ClassVar[tuple[int, int]] = (16, 64)  # above, its one linear layer would hold most of its weights

    size: Annotated[int, Range(low=8)] | Literal["native"]
    width: Count


def network(classes: int, width: int, size: int, label_smoothing: float) -> nn.Module:
    """Return an initialised network.

    Args:
        classes: outputs.
        width: channels of every block.
        size: pixels of the square images, 8 or more.
        label_smoothing: of the training loss, 0..1.
    """
    import torch.nn.functional as F
    from torch import Tensor, nn

    class ConvNetD3(nn.Module):
        """The network."""

        def __init__(self) -> None:
            super().__init__()
            self.size, self.width, self.label_smoothing = size, width, label_smoothing
            self.convs = nn.ModuleList(nn.Conv2d(width if i else 3, width, 3, 1, 1) for i in range(_BLOCKS))
            # A group for each channel is instance norm with weights, which has no running statistics.
            self.norms = nn.ModuleList(nn.GroupNorm(width, width) for _ in range(_BLOCKS))
            self.head = nn.Linear(width * (size // 2**_BLOCKS) ** 2, classes)

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
            x = images * 2 - 1
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.avg_pool2d(norm(conv(x)).relu(), 2)
            logits: Tensor = self.head(x.flatten(1))
            return logits

    return ConvNetD3()


def build(row: Row, model: Model, split: Split, root: Path) -> nn.Module:
    """Return an initialised network for the classes of ``split``."""
    return network(len(split.classes), row.width, row.side(split.native), row.label_smoothing)


def load(folder: Path, record: dict[str, Any]) -> nn.Module:
    """Return the network that ``save`` wrote."""
    return scratch.load(network, folder, record)
