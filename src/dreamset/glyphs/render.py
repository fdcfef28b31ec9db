"""The renderer of glyphs: a pure function from (seed, index) to a small image of a glyph and its attributes.

A generator keyed by (seed, index) alone draws every number behind image ``index``, so batch size and order change
nothing. Ink is bright, the ground is dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dreamset.glyphs.fonts import CHARACTERS, FIELD, GLYPH, atlas, usable_fonts
from dreamset.glyphs.look import Look

SIZE: Final = 16
ATTRIBUTES: Final = (
    "bold",
    "thin",
    "slanted",
    "serif",
    "sans",
    "mono",
    "wavy",
    "uneven",
    "blurry",
    "low resolution",
    "faint",
)

# Characters that share a shape under random scale and slant count as one class wherever accuracy is measured.
# (J and j differ by a dot, which vanishes at eight pixels a side.)
_ONE_SHAPE: Final = ("0Oo", "1Il", "Cc", "Jj", "Kk", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Yy", "Zz")
_LEAST_SIDE: Final = 8  # pixels, of the coarsest resolution
_UNIFORMS, _NORMALS = 16, 3 * 16 + 1


@cache
def groups() -> tuple[str, ...]:
    """The merged classes as strings of their characters, ordered by the first character."""
    merged = {character: group for group in _ONE_SHAPE for character in group}
    return tuple(dict.fromkeys(merged.get(character, character) for character in CHARACTERS))


@cache
def group_of() -> NDArray[np.int64]:
    """The index into :func:`groups` of each of ``CHARACTERS``: (62,) int64."""
    return np.array([next(i for i, g in enumerate(groups()) if c in g) for c in CHARACTERS], dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """Rendered images with their characters, fonts and attributes.

    Attributes:
        images: (n, 3, 16, 16) float32 in -1..1, grey in three channels.
        characters: (n,) int64 into ``CHARACTERS``.
        fonts: (n,) int64 into :func:`usable_fonts`.
        attributes: (n, len(ATTRIBUTES)) bool.
    """

    images: torch.Tensor
    characters: NDArray[np.int64]
    fonts: NDArray[np.int64]
    attributes: NDArray[np.bool_]

    @property
    def groups(self) -> NDArray[np.int64]:
        """The merged class of each image: (n,) int64."""
        return group_of()[self.characters]


def split_pairs(held_out: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Split the (character, font) pairs into those for training and those held out: two (62, fonts) bool tables.

    Args:
        held_out: number of fonts held out for each character.
        seed: the seed of the choice.
    """
    fonts = len(usable_fonts())
    rng = np.random.default_rng(seed)
    test = np.zeros((len(CHARACTERS), fonts), dtype=np.bool_)
    for row in test:
        row[rng.permutation(fonts)[:held_out]] = True
    return ~test, test


class Glyphs:
    """An endless data set of glyphs with random access."""

    def __init__(self, look: Look, seed: int, pairs: NDArray[np.bool_]) -> None:
        """Args:
        look: the range of the shapes' variation.
        seed: the seed of all images.
        pairs: (62, fonts) bool, the (character, font) pairs that may be drawn.
        """
        self._look = look
        self._seed = seed
        self._fonts_of = [np.flatnonzero(row) for row in pairs]
        self._characters = np.flatnonzero(pairs.any(axis=1))
        shapes = atlas()
        self._fields = torch.from_numpy(shapes.fields)
        self._half_widths = shapes.half_widths
        self._slanted = np.array([font.slanted for font in shapes.fonts])
        self._families = np.array([[font.family == f for f in ("serif", "sans", "mono")] for font in shapes.fonts])

    def batch(self, start: int, count: int) -> Batch:
        """Render the images ``start`` to ``start + count``, without the last."""
        uniforms = np.empty((count, _UNIFORMS), dtype=np.float32)
        normals = np.empty((count, _NORMALS), dtype=np.float32)
        for row in range(count):
            rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, start + row], dtype=np.uint64)))
            uniforms[row] = rng.random(_UNIFORMS, dtype=np.float32)
            normals[row] = rng.standard_normal(_NORMALS, dtype=np.float32)
        return self._render(uniforms, normals)

    def _render(self, u: NDArray[np.float32], z: NDArray[np.float32]) -> Batch:
        look, n = self._look, len(u)
        characters = self._characters[(u[:, 0] * len(self._characters)).astype(np.int64)]
        choices = [self._fonts_of[c] for c in characters]
        fonts = np.array([f[int(x * len(f))] for f, x in zip(choices, u[:, 1], strict=True)], dtype=np.int64)

        size = look.size_min + (SIZE - look.size_min) * u[:, 2]
        scale = size / GLYPH  # output pixels per pixel of the field
        natural = self._half_widths[fonts, characters] * scale
        target = look.stroke_min * (look.stroke_max / look.stroke_min) ** u[:, 3]
        weight = np.clip(target - natural, -look.erode * natural, look.dilate)
        shear = look.shear * (2 * u[:, 4] - 1)
        elastic = look.elastic * u[:, 5] ** 2
        uneven = look.uneven * u[:, 6] ** 2
        blur = look.blur * np.clip(2 * u[:, 7] - 1, 0, 1)
        coarse = u[:, 8] < look.low_resolution
        side = np.where(coarse, _LEAST_SIDE + np.floor(u[:, 9] ** 1.5 * (SIZE - _LEAST_SIDE)), SIZE).astype(np.int64)
        ink = look.ink_min + (1 - look.ink_min) * u[:, 10]
        ground = np.clip(look.ground * (2 * u[:, 11] - 1), 0, 1)

        distance = self._warped(characters, fonts, u, z, scale, shear, elastic)
        rough = _smooth_noise(z[:, 32:48].reshape(n, 1, 4, 4))[:, 0]
        distance = distance * _column(scale) + _column(weight) + _column(uneven) * rough
        cover = (distance * (FIELD / SIZE) + 0.5).clamp(0, 1)
        shrink = torch.from_numpy(_gaussians(blur)) @ _resamplers()[torch.from_numpy(side - _LEAST_SIDE)]
        grey = (shrink @ cover @ shrink.mT).clamp(0, 1)
        grey = _column(ground) + _column(ink - ground) * grey
        images = (2 * grey - 1)[:, None].expand(n, 3, SIZE, SIZE).contiguous()

        stroke = np.clip(natural + weight, 0, None)
        attributes = [
            stroke > look.bold_from,
            stroke < look.thin_to,
            shear + 0.2 * self._slanted[fonts] > 0.18,
            *self._families[fonts].T,
            elastic > 0.5 * look.elastic,
            uneven > 0.5 * look.uneven,
            blur > 0.4 * look.blur,
            side <= 11,
            ink - ground < look.ink_min + 0.05,
        ]
        return Batch(images, characters, fonts, np.stack(attributes, axis=1))

    def _warped(
        self,
        characters: NDArray[np.int64],
        fonts: NDArray[np.int64],
        u: NDArray[np.float32],
        z: NDArray[np.float32],
        scale: NDArray[np.floating[Any]],
        shear: NDArray[np.floating[Any]],
        elastic: NDArray[np.floating[Any]],
    ) -> torch.Tensor:
        """The distance fields after a random affine map and a smooth displacement: (n, FIELD, FIELD)."""
        look, n = self._look, len(u)
        angle = np.deg2rad(look.rotation) * (2 * u[:, 12] - 1)
        stretch = np.exp(look.aspect * np.clip(z[:, 48], -2, 2))
        zoom = scale * FIELD / SIZE
        cos, sin = np.cos(angle), np.sin(angle)
        rotate = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
        # The map leads from the image back to the field, hence the inverse of each part.
        skew = np.zeros((n, 2, 2), dtype=np.float32)
        # One axis shrinks and none grows, so that a wide letter stays inside the image.
        skew[:, 0, 0], skew[:, 0, 1] = np.maximum(1, 1 / stretch), shear
        skew[:, 1, 1] = np.maximum(1, stretch)
        linear = skew @ rotate / zoom[:, None, None]
        room = np.minimum(look.shift, (SIZE - scale * GLYPH) / 2 + 0.5)
        shift = room[:, None] * (2 * u[:, 13:15] - 1) / (SIZE / 2)
        theta = np.concatenate([linear, (linear @ shift[:, :, None])], axis=-1).astype(np.float32)
        grid = F.affine_grid(torch.from_numpy(theta), [n, 1, FIELD, FIELD], align_corners=False)
        bend = (
            _smooth_noise(z[:, :32].reshape(n, 2, 4, 4)) * torch.from_numpy(elastic / (SIZE / 2))[:, None, None, None]
        )
        fields = self._fields[torch.from_numpy(fonts), torch.from_numpy(characters)][:, None]
        return F.grid_sample(fields, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)[:, 0]


def _column(values: NDArray[np.floating[Any]]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None]


def _smooth_noise(coarse: NDArray[np.float32]) -> torch.Tensor:
    """Spread noise (n, c, 4, 4) smoothly over the field: (n, c, FIELD, FIELD)."""
    small = torch.from_numpy(np.ascontiguousarray(coarse))
    middle = F.interpolate(small, size=(16, 16), mode="bicubic", align_corners=True)
    return F.interpolate(middle, size=(FIELD, FIELD), mode="bilinear", align_corners=True)


def _gaussians(sigma: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Blurs along one axis as matrices (n, SIZE, SIZE) whose rows sum to one; sigma in pixels, 0 is no blur."""
    offsets = np.arange(SIZE)[:, None] - np.arange(SIZE)[None, :]
    kernel: NDArray[np.floating[Any]] = np.exp(-0.5 * (offsets[None] / np.maximum(sigma, 0.05)[:, None, None]) ** 2)
    kernel /= kernel.sum(-1, keepdims=True)
    return kernel.astype(np.float32)


@cache
def _resamplers() -> torch.Tensor:
    """Matrices (9, SIZE, FIELD) that average FIELD pixels to 8..16 along one axis, then resize bicubically to SIZE."""
    matrices = []
    for side in range(_LEAST_SIDE, SIZE + 1):
        edges = torch.arange(side + 1) * (FIELD / side)
        pixels = torch.arange(FIELD)
        overlap = torch.minimum(edges[1:, None], pixels + 1.0) - torch.maximum(edges[:-1, None], pixels)
        down = overlap.clamp(min=0) * (side / FIELD)
        eye = torch.eye(side)[None, None]
        up = F.interpolate(eye, size=(SIZE, side), mode="bicubic", align_corners=False, antialias=True)
        matrices.append(up[0, 0] @ down)
    return torch.stack(matrices)
