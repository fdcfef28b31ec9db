"""Features of images in the network that only scores: it neither draws, filters nor classifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from dreamset.judge import load_judge

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_SIZE = 16  # what the judge sees, pixels


class Judge:
    """The judge of a model's row, from uint8 images to features."""

    def __init__(self, folder: Path) -> None:
        self.network = load_judge(folder)

    def features(self, images: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
        """Features (n, 64) of RGB images (n, h, w, 3), resized to 16 pixels."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
                if pixels.shape[-2:] != (_SIZE, _SIZE):
                    pixels = F.interpolate(pixels, (_SIZE, _SIZE), mode="bicubic", antialias=True).clamp(0, 1)
                parts.append(self.network.features(pixels * 2 - 1).numpy())
        return np.concatenate(parts)
