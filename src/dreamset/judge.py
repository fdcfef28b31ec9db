"""The judge: a small convolutional classifier of glyphs, used only to score images.

It shares neither weights nor random numbers nor architecture with the networks that make or filter
images, so that its features are fair ground for FID and KID.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FEATURES: Final = 64
WEIGHTS, CONFIG = "judge.safetensors", "config.json"


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        same = inward == outward and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inward, outward, 1, stride, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first_norm(self.first(images)))
        out: torch.Tensor = torch.relu(self.second_norm(self.second(inner)) + self.shortcut(images))
        return out


class Judge(nn.Module):
    """A residual network over 16-pixel pictures.

    Attributes:
        class_names: the classes in the order of the logits; characters of one shape stand in one name.
    """

    def __init__(self, class_names: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.width = width
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.Sequential(
            _Block(width, width, 1),
            _Block(width, FEATURES, 2),
            _Block(FEATURES, FEATURES, 1),
            _Block(FEATURES, FEATURES, 2),
        )
        # Position matters to a glyph, so the last 4x4 map is flattened and not averaged.
        self.embed = nn.Linear(FEATURES * 16, FEATURES)
        self.classify = nn.Linear(FEATURES, len(self.class_names))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate features, (n, 64), of float images (n, 3, 16, 16) in -1..1."""
        maps = self.blocks(torch.relu(self.stem(images)))
        out: torch.Tensor = torch.tanh(self.embed(maps.flatten(1)))
        return out

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores, (n, classes), of float images (n, 3, 16, 16) in -1..1."""
        out: torch.Tensor = self.classify(self.features(images))
        return out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The same as :meth:`logits`."""
        return self.logits(images)


def save_judge(judge: Judge, folder: Path) -> None:
    """Write weights and configuration into an existing folder."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    config: dict[str, Any] = {"class_names": judge.class_names, "width": judge.width}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_judge(folder: Path) -> Judge:
    """The judge in ``folder`` (``models/base/judge``), on the CPU, in evaluation mode and frozen."""
    from safetensors.torch import load_file

    judge = Judge(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    judge.load_state_dict(load_file(folder / WEIGHTS))
    return judge.eval().requires_grad_(False)
