"""The augmentation of dataset distillation: one kind of change for each batch (Zhao and Bilen 2021, DSA).

Its list is colour, crop, cutout, flip, scale and rotate, its strengths those of the paper. Each image has its own
random numbers, and only the kind is shared. Nothing is distilled here, so no second batch is changed alike. Kinds that
may not keep a label are left out: flips, rotations and colours unless the source declares them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection

_NEEDS: Final = {"crop": None, "cutout": None, "scale": None, "flip": "hflip", "rotate": "rotation", "colour": "colour"}
_SHIFT: Final = 0.125  # of crop: the largest shift, share of the side
_HOLE: Final = 0.5  # side of cutout's square, share of the side
_SCALE: Final = 1.2  # the largest factor by which scale enlarges or reduces each side
_ANGLE: Final = 15.0  # the largest turn of rotate, degrees
_BRIGHTNESS: Final = 0.25  # the range of brightness is 1 in the paper, in units of a deviation, taken to be 0.25
_SATURATION: Final = 2.0  # the largest factor of saturation
_CONTRAST: Final = 0.5  # the least factor of contrast, which goes up to this plus 1


class Siamese:
    """Random label-preserving changes of a batch, all of one kind.

    Args:
        invariances: changes that the source declares label-preserving: some of hflip, vflip, rotation, colour.
        seed: seed of the generator; equal seeds give equal sequences of batches.
    """

    def __init__(self, invariances: Collection[str], seed: int) -> None:
        self.kinds = [kind for kind, need in _NEEDS.items() if need is None or need in invariances]
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """Return a changed copy of images, on their device.

        What a change uncovers takes the mean colour of the batch.

        Args:
            images: (n, 3, h, h) float in 0..1.
            size: pixels of the result; None: h.

        Returns:
            (n, 3, size, size) float in 0..1.
        """
        if size is not None and size != images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=self.generator))]
        mean = images.mean((0, 2, 3), keepdim=True)
        changed: Tensor = getattr(self, f"_{kind}")(images - mean)
        return (changed + mean).clamp(0, 1)

    def _uniform(self, images: Tensor, low: float, high: float) -> Tensor:
        """Return a random number for each image, (n, 1, 1, 1)."""
        drawn = torch.rand(len(images), generator=self.generator) * (high - low) + low
        return drawn.to(images.device)[:, None, None, None]

    def _warp(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Return images resampled by maps (n, 2, 3) from output to input coordinates, both in -1..1."""
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _crop(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        matrices = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
        for axis in (0, 1):
            shift = (self._uniform(images, -1, 1)[:, 0, 0, 0] * _SHIFT * side).round()  # whole pixels
            matrices[:, axis, 2] = 2 * shift / side
        return self._warp(images, matrices)

    def _cutout(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        at = torch.arange(side, device=images.device)
        hole = torch.ones_like(images[:, :1], dtype=torch.bool)
        for axis in (2, 3):
            centre = self._uniform(images, 0, side).floor()
            near = (at - centre >= -(_HOLE * side) / 2) & (at - centre < _HOLE * side / 2)  # (n, 1, 1, side)
            hole = hole & (near if axis == 3 else near.transpose(2, 3))
        return images.masked_fill(hole, 0.0)

    def _scale(self, images: Tensor) -> Tensor:
        matrices = torch.zeros(len(images), 2, 3, device=images.device)
        for axis in (0, 1):
            matrices[:, axis, axis] = self._uniform(images, 1 / _SCALE, _SCALE)[:, 0, 0, 0]
        return self._warp(images, matrices)

    def _flip(self, images: Tensor) -> Tensor:
        return torch.where(self._uniform(images, 0, 1) < 0.5, images.flip(3), images)

    def _rotate(self, images: Tensor) -> Tensor:
        angle = self._uniform(images, -_ANGLE, _ANGLE)[:, 0, 0, 0] * math.pi / 180
        matrices = torch.zeros(len(images), 2, 3, device=images.device)
        matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
        matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
        return self._warp(images, matrices)

    def _colour(self, images: Tensor) -> Tensor:
        images = images + self._uniform(images, -0.5, 0.5) * _BRIGHTNESS
        grey = images.mean(1, keepdim=True)
        images = grey + self._uniform(images, 0, _SATURATION) * (images - grey)
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + self._uniform(images, _CONTRAST, _CONTRAST + 1) * (images - mean)
