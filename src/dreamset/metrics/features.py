"""The judge's features of images.

The judge draws, filters and chooses no synthetic image, and no classifier that learns from one uses it. Beside scoring
it gives features of the shots to simple classifiers of these alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from dreamset.core import device
from dreamset.weights.judge import Clip, Network, load_network
from dreamset.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Judge:
    """The network that scores the images of a model's row, from uint8 images to features.

    Args:
        place: the judge's folder, or the CLIP that stands in for it: what ``weights.judging.find`` returns.

    Attributes:
        size: side of its input, pixels.
        name: what its numbers are called by: ``judge``, or ``CLIP in place of the judge``.
    """

    def __init__(self, place: Path | Pretrained) -> None:
        self.device = device.pick()
        network: Network
        if isinstance(place, Pretrained):
            self.name, network = "CLIP in place of the judge", Clip(place.create()).eval().requires_grad_(False)
        else:
            self.name, network = "judge", load_network(place)
        self.network = network.to(self.device)
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
