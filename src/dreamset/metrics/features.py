"""The judge's features of images; the judge only scores, and neither draws, filters nor classifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from dreamset.core import device
from dreamset.metrics.judge import load_network

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Judge:
    """The judge of a model's row, which maps uint8 images to features; ``size`` is the side of its input, pixels."""

    def __init__(self, folder: Path) -> None:
        self.device = device.pick()
        self.network = load_network(folder).to(self.device)
        self.size = self.network.size

    def features(self, images: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
        """The float32 features (n, width) of RGB images (n, h, h, 3), which are resized to the judge's input."""
        size, parts = (self.size, self.size), []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                block = torch.from_numpy(images[start : start + batch]).to(self.device)
                pixels = block.permute(0, 3, 1, 2).float() / 255
                if pixels.shape[-2:] != size:
                    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
                parts.append(self.network.features(pixels * 2 - 1).cpu().numpy())
        return np.concatenate(parts)
