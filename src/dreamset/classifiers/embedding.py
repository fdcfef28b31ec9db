"""Features of images in the model's CLIP as it is, for filters, retrieval and the weights of synthetic images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F

from dreamset.classifiers import autocast, to_float

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dreamset.classifiers.clip import Clip

_BATCH: Final = 256  # images whose features are computed at once


def embed(clip: Clip, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return unit float32 features (n, d) of RGB images (n, h, h, 3) uint8."""
    device, parts = clip.shift.device, []
    for at in range(0, len(images), _BATCH):
        with torch.inference_mode(), autocast(device):
            pixels = to_float(torch.from_numpy(images[at : at + _BATCH]).to(device), clip)
            features = clip.model.encode_image((pixels - clip.shift) / clip.scale).float()
        parts.append(F.normalize(features, dim=-1).cpu())
    unit: NDArray[np.float32] = torch.cat(parts).numpy()
    return unit
