"""Augmentation of whole batches, every image with its own random numbers; MixUp and CutMix of a batch with itself.

The list is DataDream's: RandAugment (2 operations, magnitude 9 of 30), random resized crop, horizontal flip, colour
jitter, greyscale, blur, solarize. All operations that move pixels become one affine map and one resampling. Those that
scale brightness, contrast or saturation become one factor each. Two of RandAugment's operations are identities here:
posterize, which at this magnitude moves a value by less than 1/128, and equalize.

Changes that may not keep a label are left out: flips and free rotation unless the source declares them, and without
``colour`` all changes of values except sharpness and blur. Tilts of 9 degrees, or 18 where both operations tilt one
way, and shears and shifts of RandAugment's size are taken to keep every label: a hand-held camera makes them, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection

_MAGNITUDE = 9 / 30  # RandAugment's default, as a share of each operation's range
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_PHOTOMETRIC = ("brightness", "contrast", "saturation", "autocontrast", "solarize")
_STILL = ("identity", "identity", "identity", "sharpness")  # identity itself, equalize and posterize; sharpness
_LUMA = (0.299, 0.587, 0.114)


class Augment:
    """Random label-preserving changes of a batch.

    Args:
        invariances: changes that the source declares label-preserving: some of hflip, vflip, rotation, colour.
        crop: smallest share of an image's area that a random crop keeps, 0..1.
        seed: seed of the generator; equal seeds give equal sequences of batches.
        operations: how many operations RandAugment draws for each image.
    """

    def __init__(self, invariances: Collection[str], crop: float, seed: int, operations: int = 2) -> None:
        self.allowed = frozenset(invariances)
        self.crop = crop
        self.draws = operations
        self.operations = _STILL + _GEOMETRIC + (_PHOTOMETRIC if "colour" in self.allowed else ())
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """Return a changed copy of images, on their device.

        Crop and change of size are one bilinear resampling without antialiasing, so h should not be far above size.

        Args:
            images: (n, 3, h, h) float in 0..1.
            size: pixels of the result; None: h.

        Returns:
            (n, 3, size, size) float in 0..1.
        """
        n = len(images)
        size = size or images.shape[-1]
        chosen = torch.randint(len(self.operations), (n, self.draws), generator=self.generator)
        signs = torch.randint(2, (n, self.draws), generator=self.generator) * 2.0 - 1.0
        # By operation (n, draws): the sign of each draw of it, 0 where another one was drawn.
        drawn = {
            name: torch.where(chosen == index, signs, 0.0)
            for index, name in enumerate(self.operations)
            if name != "identity"
        }
        matrices = self._matrices(n, drawn).to(images.device)
        grid = F.affine_grid(matrices[:, :2], [n, 3, size, size], align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if "colour" in self.allowed:
            images = self._colours(images, drawn)
        return self._focus(images, drawn["sharpness"]).clamp(0, 1)

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return torch.rand(n, generator=self.generator) * (high - low) + low

    def _chance(self, n: int, p: float) -> Tensor:
        return torch.rand(n, generator=self.generator) < p

    def _matrices(self, n: int, drawn: dict[str, Tensor]) -> Tensor:
        """Return the maps from output to input coordinates, both in -1..1: (n, 3, 3)."""
        # The angle is bounded however often it is drawn, for not every angle keeps a label.
        angle = drawn["rotate"].sum(1).clamp(-2, 2) * math.radians(30 * _MAGNITUDE)
        if "rotation" in self.allowed:
            angle = angle + self._uniform(n, -math.pi, math.pi)
        warp = _identity(n)
        warp[:, 0, 0] = warp[:, 1, 1] = angle.cos()
        warp[:, 0, 1], warp[:, 1, 0] = -angle.sin(), angle.sin()
        shear = _identity(n)
        shear[:, 0, 1] = drawn["shear_x"].sum(1) * 0.3 * _MAGNITUDE
        shear[:, 1, 0] = drawn["shear_y"].sum(1) * 0.3 * _MAGNITUDE
        # The range is 150 of 331 pixels, and an image is 2 wide in these coordinates.
        shear[:, 0, 2] = drawn["translate_x"].sum(1) * 2 * 150 / 331 * _MAGNITUDE
        shear[:, 1, 2] = drawn["translate_y"].sum(1) * 2 * 150 / 331 * _MAGNITUDE
        return warp @ shear @ self._crops(n)

    def _crops(self, n: int) -> Tensor:
        """Return random resized crops of ratio 3/4 to 4/3, with the flips that are allowed, as maps (n, 3, 3)."""
        area = self._uniform(n, self.crop, 1.0)
        ratio = self._uniform(n, math.log(3 / 4), math.log(4 / 3)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        crop = _identity(n)
        crop[:, 0, 2] = self._uniform(n, -1, 1) * (1 - width)
        crop[:, 1, 2] = self._uniform(n, -1, 1) * (1 - height)
        for axis, (side, flip) in enumerate(((width, "hflip"), (height, "vflip"))):
            mirrored = self._chance(n, 0.5) & (flip in self.allowed)
            crop[:, axis, axis] = torch.where(mirrored, -side, side)
        return crop

    def _colours(self, images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Apply RandAugment's colour operations, and colour jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8."""
        n, where = len(images), images.device
        jittered = self._chance(n, 0.8)
        factors = {}
        for name, strength in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
            jitter = torch.where(jittered, self._uniform(n, 1 - strength, 1 + strength), 1.0)
            # Each time that RandAugment drew it, the factor is 1 +- 0.9 * magnitude.
            factors[name] = (jitter * (1 + 0.9 * _MAGNITUDE * drawn[name]).prod(1)).to(where)[:, None, None, None]
        factors["saturation"] *= (~self._chance(n, 0.2)).to(where)[:, None, None, None]
        images = (images * factors["brightness"]).clamp(0, 1)
        mean = _grey(images).mean((1, 2, 3), keepdim=True)
        images = (mean + factors["contrast"] * (images - mean)).clamp(0, 1)
        turn = torch.where(jittered, self._uniform(n, -0.1, 0.1), 0.0).to(where)
        images = _saturate_and_turn(images, factors["saturation"], turn)
        images = torch.where(_any(drawn["autocontrast"]).to(where), _stretch(images), images)
        # Solarize inverts values above a threshold; a threshold above 1 inverts none.
        threshold = torch.where(_any(drawn["solarize"])[:, 0, 0, 0], 1 - _MAGNITUDE, 2.0)
        threshold = torch.where(self._chance(n, 0.2), 0.5, threshold).to(where)[:, None, None, None]
        return torch.where(images >= threshold, 1 - images, images)

    def _focus(self, images: Tensor, sharpness: Tensor) -> Tensor:
        """Apply RandAugment's sharpness, and Gaussian blur with probability 0.2."""
        n, size = len(images), images.shape[-1]
        # DataDream blurs with a deviation of up to 2 pixels at 224; here it is the same share of the image, and half
        # a pixel at least.
        widest = max(2 * size / 224, 0.5)
        sigma = torch.where(self._chance(n, 0.2), self._uniform(n, 0.1 * widest, widest), 0.0)
        amount = sharpness.sum(1) * 0.9 * _MAGNITUDE
        changed, blurred = (part.nonzero()[:, 0] for part in (amount, sigma))
        if len(changed):
            rows = changed.to(images.device)
            picked = images[rows]
            soft = _convolve(picked, torch.full((len(changed), 3), 1 / 3))
            images = images.index_copy(0, rows, picked + amount[changed, None, None, None].to(images) * (picked - soft))
        if len(blurred):
            reach = math.ceil(3 * widest)
            kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma[blurred, None]) ** 2)
            rows = blurred.to(images.device)
            images = images.index_copy(0, rows, _convolve(images[rows], kernel / kernel.sum(1, keepdim=True)))
        return images


class Mix:
    """A blend of each image of a batch with another one: MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Args:
        mixup: alpha of the Beta distribution that MixUp's share is drawn from; 0: no MixUp.
        cutmix: alpha of the Beta distribution of CutMix's share; 0: no CutMix. With both, each batch draws one of them.
        seed: seed of the generator.
    """

    def __init__(self, mixup: float, cutmix: float, seed: int) -> None:
        self.kinds = [kind for kind in (("mixup", mixup), ("cutmix", cutmix)) if kind[1] > 0]
        self.rng = np.random.default_rng(seed)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return mixed images (n, 3, h, w), the row (n,) int64 mixed into each, and the share of the first, 0..1."""
        unmixed = torch.arange(len(images), device=images.device)
        if not self.kinds:
            return images, unmixed, 1.0
        kind, alpha = self.kinds[self.rng.integers(len(self.kinds))]
        share = float(self.rng.beta(alpha, alpha))
        other = torch.from_numpy(self.rng.permutation(len(images))).to(images.device)
        if kind == "mixup":
            return share * images + (1 - share) * images[other], other, share
        height, width = images.shape[-2:]
        top, left = (int(self.rng.integers(side)) for side in (height, width))
        half = math.sqrt(1 - share) / 2
        rows = slice(max(0, round(top - half * height)), min(height, round(top + half * height)))
        columns = slice(max(0, round(left - half * width)), min(width, round(left + half * width)))
        mixed = images.clone()
        mixed[:, :, rows, columns] = images[other][:, :, rows, columns]
        # The share is recomputed, for the box may reach over the border and consists of whole pixels.
        cut = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, other, 1 - cut


def _identity(n: int) -> Tensor:
    return torch.eye(3).repeat(n, 1, 1)


def _any(drawn: Tensor) -> Tensor:
    return (drawn != 0).any(1)[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _stretch(images: Tensor) -> Tensor:
    """Return the images with each channel stretched to 0..1; a constant channel stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _saturate_and_turn(images: Tensor, saturation: Tensor, turn: Tensor) -> Tensor:
    """Return the images with chroma scaled, and turned about the axis of greys by a share of the colour circle."""
    grey = _grey(images)
    chroma = images - grey
    angle = (2 * math.pi * turn)[:, None, None, None]
    # Rodrigues' formula about (1, 1, 1): a hue turn that is linear, unlike HSV's, and leaves greys alone.
    across = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / math.sqrt(3)
    along = chroma.mean(1, keepdim=True)
    turned = chroma * angle.cos() + across * angle.sin() + along * (1 - angle.cos())
    return (grey + saturation * turned).clamp(0, 1)


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Return each (3, h, w) image convolved with its separable kernel, a row of (n, k); edges are repeated."""
    n, channels, height, width = images.shape
    kernels = kernels.to(images).repeat_interleave(channels, 0)
    reach = kernels.shape[1] // 2
    flat = F.pad(images, (reach, reach, reach, reach), mode="replicate").reshape(
        1, n * channels, height + 2 * reach, -1
    )
    flat = F.conv2d(flat, kernels[:, None, None, :], groups=n * channels)
    flat = F.conv2d(flat, kernels[:, None, :, None], groups=n * channels)
    return flat.reshape(n, channels, height, width)
