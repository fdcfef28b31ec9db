"""ResNet-20 for small images, trained from scratch (He et al. 2016, section 4.2, CIFAR-10).

It has three stages of three basic blocks; shortcuts have no parameters. Trained on synthetic images alone and tested
on real ones, its accuracy is the classification accuracy score, CAS (Ravuri and Vinyals 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.classifiers import scratch
from dreamset.classifiers.scratch import save
from dreamset.core.strict import Range
from dreamset.params.model import ScratchRow
from dreamset.params.values import Count

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dreamset.data.splits import Split
    from dreamset.params.model import Model

__all__ = ["Row", "build", "load", "network", "save"]

# How others use it: `logits` takes the result of `read`. The card of a delivered classifier prints both.
PROGRAM: Final = """
weights = load_file("model.safetensors")


def norm(x, name):
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])


def logits(images):
    x = F.relu(norm(F.conv2d(images * 2 - 1, weights["stem.weight"], padding=1), "bn"))
    for i in range(9):
        block, stride = f"blocks.{i}", 2 if i in (3, 6) else 1
        y = F.relu(norm(F.conv2d(x, weights[f"{block}.conv1.weight"], stride=stride, padding=1), f"{block}.bn1"))
        y = norm(F.conv2d(y, weights[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
        x = F.max_pool2d(x, 3, stride, 1) if stride > 1 else x
        x = F.relu(y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))
    return F.linear(x.mean((2, 3)), weights["head.weight"], weights["head.bias"])
"""


@dataclass(frozen=True)
class Row(ScratchRow):
    """``train.resnet20`` of a model's row."""

    program: ClassVar[str | None] = PROGRAM
    later: ClassVar[bool] = False
    native: ClassVar[tuple[int, int]] = (16, 32)  # below, its last stage has 2 x 2 pixels; above, it is CIFAR's no more

    size: Annotated[int, Range(low=8)] | Literal["native"]
    width: Count


def network(classes: int, width: int, size: int, label_smoothing: float) -> nn.Module:
    """Return an initialised network.

    Args:
        classes: outputs.
        width: channels of the first stage; the next have two and four times as many.
        size: pixels of the square images.
        label_smoothing: of the training loss, 0..1.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Block(nn.Module):
        """Two 3x3 convolutions with a shortcut; the first may halve the resolution and widen."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.stride, self.wider = stride, outputs - inputs

        def forward(self, x: Tensor) -> Tensor:
            """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
            out = F.relu(self.bn1(self.conv1(x)), inplace=True)
            out = self.bn2(self.conv2(out))
            if self.stride > 1:
                x = F.max_pool2d(x, 3, self.stride, 1)
            if self.wider:
                x = F.pad(x, (0, 0, 0, 0, 0, self.wider))
            return F.relu(out + x, inplace=True)

    class ResNet20(nn.Module):
        """The network."""

        def __init__(self) -> None:
            super().__init__()
            self.size, self.width, self.label_smoothing = size, width, label_smoothing
            self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.bn = nn.BatchNorm2d(width)
            blocks, inputs = [], width
            for stage in range(3):
                for block in range(3):
                    outputs = width * 2**stage
                    blocks.append(Block(inputs, outputs, 2 if stage and not block else 1))
                    inputs = outputs
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(inputs, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            self.to(memory_format=torch.channels_last)

        def forward(self, images: Tensor) -> Tensor:
            """Return logits (n, classes) of (n, 3, size, size) images in 0..1."""
            x = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
            x = F.relu(self.bn(self.stem(x)), inplace=True)
            x = self.blocks(x).mean((2, 3))
            logits: Tensor = self.head(x)
            return logits

    return ResNet20()


def build(row: Row, model: Model, split: Split, root: Path) -> nn.Module:
    """Return an initialised network for the classes of ``split``."""
    return network(len(split.classes), row.width, row.side(split.native), row.label_smoothing)


def load(folder: Path, record: dict[str, Any]) -> nn.Module:
    """Return the network that ``save`` wrote."""
    return scratch.load(network, folder, record)
