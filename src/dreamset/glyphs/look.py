"""The parameters of the base: ``models/base/params.yaml`` parsed once into frozen, validated types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dreamset.core.errors import InputError
from dreamset.core.strict import Range, build, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

Count = Annotated[int, Range(low=1)]
Seed = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
Amount = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]


@dataclass(frozen=True)
class Look:
    """How far glyphs are varied; lengths in pixels of the 16-pixel picture unless said otherwise."""

    size_min: Amount
    shift: Amount
    rotation: Amount
    shear: Amount
    aspect: Amount
    stroke_min: Amount
    stroke_max: Amount
    erode: Share
    dilate: Amount
    uneven: Amount
    elastic: Amount
    blur: Amount
    low_resolution: Share
    ink_min: Share
    ground: Share
    bold_from: Amount
    thin_to: Amount


@dataclass(frozen=True)
class Source:
    """Which (character, font) pairs are kept from training."""

    held_out_fonts: Count
    seed: Seed


@dataclass(frozen=True)
class Training:
    """One network's optimisation."""

    seed: Seed
    steps: Count
    batch: Count
    learning_rate: Positive
    weight_decay: Amount
    threads: Count


@dataclass(frozen=True)
class Diffusion(Training):
    """The U-Net's optimisation."""

    caption_dropout: Share
    ema: Share


@dataclass(frozen=True)
class Autoencoder(Training):
    """The VAE's optimisation."""

    kl_weight: Amount


@dataclass(frozen=True)
class Score:
    """How the finished base is measured."""

    seed: Seed
    glyphs_per_pair: Count
    images_per_class: Annotated[int, Range(low=6)]  # as many as the picture of samples shows
    steps: Count
    guidance: Amount
    threads: Count


@dataclass(frozen=True)
class Params:
    """Everything that ``params.yaml`` holds."""

    look: Look
    source: Source
    clip: Training
    polish: Training
    judge: Training
    vae: Autoencoder
    unet: Diffusion
    score: Score


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: in one sentence that names the key.
    """
    try:
        return build(Params, read_yaml(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
