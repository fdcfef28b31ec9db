"""The parameters of the bundled base: ``models/base/params.yaml`` as frozen, validated types."""

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
    """The range of the glyphs' variation; lengths are in pixels of the 16-pixel image unless stated otherwise."""

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
    """The choice of the (character, font) pairs that training leaves out."""

    held_out_fonts: Count
    seed: Seed


@dataclass(frozen=True)
class Training:
    """The optimisation of a network."""

    seed: Seed
    steps: Count
    batch: Count
    learning_rate: Positive
    weight_decay: Amount
    threads: Count


@dataclass(frozen=True)
class Diffusion(Training):
    """The optimisation of the U-Net."""

    caption_dropout: Share
    ema: Share


@dataclass(frozen=True)
class Distillation(Training):
    """The optimisation of the few-step student."""

    solver_steps: Annotated[int, Range(low=2, high=50)]
    guidance: Positive
    first_share: Share
    ema: Share


@dataclass(frozen=True)
class Autoencoder(Training):
    """The optimisation of the autoencoder."""

    kl_weight: Amount


@dataclass(frozen=True)
class Score:
    """The settings of the finished base's measurement."""

    seed: Seed
    glyphs_per_pair: Count
    images_per_class: Annotated[int, Range(low=6)]  # the picture of samples needs 6
    steps: Count
    guidance: Amount
    threads: Count


@dataclass(frozen=True)
class Params:
    """All parameters of ``models/base/params.yaml``."""

    look: Look
    source: Source
    clip: Training
    polish: Training
    judge: Training
    vae: Autoencoder
    unet: Diffusion
    student: Distillation
    cas: Training
    score: Score


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: a parameter is wrong; the sentence names the file and the key.
    """
    try:
        return build(Params, read_yaml(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
