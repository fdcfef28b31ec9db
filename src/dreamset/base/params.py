"""The parameters of the base: ``models/base/params.yaml`` parsed once into frozen, validated types."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml


class ParamsError(ValueError):
    """A parameter is unknown, missing, of the wrong type or out of range; the message names it."""


@dataclass(frozen=True)
class Look:
    """How far glyphs are varied; lengths in pixels of the 16-pixel picture unless said otherwise."""

    size_min: float
    shift: float
    rotation: float
    shear: float
    aspect: float
    stroke_min: float
    stroke_max: float
    erode: float
    dilate: float
    uneven: float
    elastic: float
    blur: float
    low_resolution: float
    ink_min: float
    ground: float
    bold_from: float
    thin_to: float


@dataclass(frozen=True)
class Source:
    """Which (character, font) pairs are kept from training."""

    held_out_fonts: int
    seed: int


@dataclass(frozen=True)
class Training:
    """One network's optimisation."""

    seed: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    threads: int


@dataclass(frozen=True)
class Diffusion(Training):
    """The U-Net's optimisation."""

    caption_dropout: float
    ema: float


@dataclass(frozen=True)
class Autoencoder(Training):
    """The VAE's optimisation."""

    kl_weight: float


@dataclass(frozen=True)
class Score:
    """How the finished base is measured."""

    seed: int
    glyphs_per_pair: int
    images_per_class: int
    steps: int
    guidance: float
    threads: int


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


# Keys that may be zero; every other number must be above it.
_MAY_BE_ZERO = {
    *(f"look.{field.name}" for field in dataclasses.fields(Look)),
    *(
        f"{s}.{k}"
        for s in ("source", "clip", "polish", "judge", "vae", "unet", "score")
        for k in ("seed", "weight_decay")
    ),
    "vae.kl_weight",
    "unet.caption_dropout",
    "score.guidance",
}


# Keys that are shares.
_AT_MOST_ONE = {
    *(f"look.{key}" for key in ("erode", "low_resolution", "ink_min", "ground")),
    "unet.caption_dropout",
    "unet.ema",
}


def _number(key: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ParamsError(f"{key} must be {'a whole number' if kind is int else 'a number'}, not {value!r}.")
    above = value >= 0 if key in _MAY_BE_ZERO else value > 0
    below = key not in _AT_MOST_ONE or value <= 1
    if not (math.isfinite(value) and above and below):
        lower = "zero or more" if key in _MAY_BE_ZERO else "above zero"
        upper = " and at most one" if key in _AT_MOST_ONE else ""
        raise ParamsError(f"{key} must be finite, {lower}{upper}, not {value!r}.")
    return kind(value)


def _build(cls: Any, raw: Any, prefix: str) -> Any:
    where = prefix.rstrip(".") or "params.yaml"
    if not isinstance(raw, dict):
        raise ParamsError(f"{where} must be a table of keys, not {raw!r}.")
    hints = get_type_hints(cls)
    for key in raw:
        if key not in hints:
            raise ParamsError(f"{prefix}{key} is not a known key; {where} takes {', '.join(hints)}.")
    for key in hints:
        if key not in raw:
            raise ParamsError(f"{prefix}{key} is missing.")
    values = {
        key: _build(hint, raw[key], f"{prefix}{key}.")
        if dataclasses.is_dataclass(hint)
        else _number(f"{prefix}{key}", raw[key], hint)
        for key, hint in hints.items()
    }
    return cls(**values)


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        ParamsError: in one sentence that names the key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ParamsError(f"{path} cannot be read: {error}.") from error
    params: Params = _build(Params, raw, "")
    return params
