"""The knobs of a row of ``recipes``: each has one part of this file, with its allowed values and its defaults.

The rules that values alone do not tell stand in ``knob_rules``, and the words on cards in ``knob_words``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from dreamset.core.strict import Range
from dreamset.params.values import Positive, Scheduler, Share

# --- origin: whether images are drawn, or taken from the training images of the base.

Origin = Literal["generator", "retrieval"]

# --- adapter: the weights that are trained, with the knobs of each.

Adapter = Literal["none", "lora", "class_encoder", "unet"]
Scope = Literal["dataset", "class", "image", "shared"]
Unconditional = Literal["zero", "learned"]


@dataclass(frozen=True)
class Lora:
    """The rank and alpha of a LoRA, and the parts whose attention layers get it.

    With ``shared`` there is one B for each image of the training beside the one A.
    """

    rank: int
    alpha: float
    unet: bool
    text_encoder: bool
    shared: bool = False


# --- class_dropout: the share of images that teach a class encoder its null class, for unconditional: learned.

ClassDropout = Share

# --- mix: the LoRAs of a class that an image is drawn with, where each shot has its own; concentration: of dirichlet.

Mix = Literal["pair", "dirichlet"]
Concentration = Annotated[float, Range(low=0.01, high=1000)]
MIXES: Final = {"image": "pair", "shared": "dirichlet"}  # where not said
CONCENTRATION: Final = 1.0  # all weights that sum up to 1 are equally likely

# --- adapter_scales: n factors; image k of a class is drawn with the LoRA times the (k mod n)-th of them.

AdapterScales = tuple[Annotated[float, Range(low=0, high=2)], ...]

# --- epoch, lr, epochs: the share of the training after which weights are taken, and changes to the schedule.

Epoch = Annotated[float, Range(above=0, high=1)]

# --- preserve, diversity: weights of losses beside that of the noise, while an adapter trains; 0 where not said.

Weight = Annotated[float, Range(above=0, high=10)]

# --- prompt: the condition of the U-Net; with retrieval, the query for images. The knobs after it belong to it.

Prompt = Literal["template", "label", "description", "caption", "context", "class_vector"]
Templates = tuple[str, ...]
PROMPTS: Final = "data/prompts"  # the folder of descriptions and captions, which DVC watches
FILE: Final = "file:"
ASKED: Final = ("description", "caption", "context")  # these ask each image by itself

# --- init: whether an image starts from noise or from a shot.

Init = Literal["noise", "image"]

# --- init_mix: an image starts between two shots of its class; strength: by_shots follows the number of shots.

InitMix = Literal["pixels", "slerp"]
# IsSynth (arXiv 2210.07574) keeps less of each shot where a class has few: its steps of 100, by images per class.
_BY_SHOTS: Final = {1: 0.5, 2: 0.4, 4: 0.35, 8: 0.2, 16: 0.15}


def strength_by_shots(shots: int | None) -> float:
    """Return IsSynth's strength for a number of shots per class; of others that of the nearest by ratio; None: many."""
    if shots is None:
        return _BY_SHOTS[max(_BY_SHOTS)]
    return _BY_SHOTS[min(_BY_SHOTS, key=lambda known: (abs(math.log(known / shots)), known))]


# --- sampler: the changes of a recipe to its model's sampler.


@dataclass(frozen=True)
class SamplerOverrides:
    """The changes of a recipe to its model's sampler; None leaves a setting as it is."""

    scheduler: Scheduler | None = None
    steps: Annotated[int, Range(low=1, high=1000)] | None = None
    guidance: Annotated[float, Range(low=0, high=50)] | None = None
    strength: Annotated[float, Range(above=0, high=1)] | Literal["by_shots"] | None = None
    student: bool | None = None


# --- guide: what stands for the unconditional half of guidance, or pulls beside it; and how long.

Guide = Literal["adapted", "base", "other_class", "mode"]
GuideUntil = Annotated[float, Range(above=0, high=1)]
Pull = Annotated[float, Range(above=0, high=1)]
PULL: Final = 0.1

# --- filter: which candidates become images; filter_tries: the candidates of an image at most; first_round: of entropy.

Filter = Literal["none", "argmax", "threshold", "real_features", "k_of_n", "influence", "entropy"]
FilterTries = Annotated[int, Range(low=2, high=1000)]
SHOTS_FILTERS: Final = ("real_features", "k_of_n", "influence")  # filters that learn from the shots
TRIES: Final = 8
FIRST_ROUND: Final = 10

# --- post_augment: copies of each drawn image, changed only as its label allows.


@dataclass(frozen=True)
class PostAugment:
    """The copies of a drawn image: how many, and whether they are made at its size or at that of the real images."""

    copies: Annotated[int, Range(low=1, high=1000)]
    at: Literal["drawn", "target"] = "drawn"


# --- per_class, real_weight, finish_on_real, nearness: how many images there are, and how a classifier learns from them
# and the shots; in place of ``generate.per_class`` and the keys of ``train``.

FinishOnReal = Annotated[float, Range(low=0, below=1)]
Nearness = Annotated[float, Range(low=-5, high=5)]
BESIDE_SHOTS: Final = ("real_weight", "finish_on_real")  # knobs of classifiers that learn from the shots, too
OF_CLASSIFIERS: Final = (*BESIDE_SHOTS, "nearness")  # knobs that change no image

# A knob that is newer than existing records: a row that does not set it is recorded without it.
LATER: Final = {"later": True}

# --- search: the knobs that a study chooses.


@dataclass(frozen=True)
class Span:
    """The range that a study searches: from ``low`` to ``high``, or to a multiple of another study's best value."""

    low: float
    high: float | None = None
    high_times_best: Positive | None = None
    log: bool = False


@dataclass(frozen=True)
class Search:
    """The knobs that a recipe's study searches; each is a knob of the recipe or of its sampler.

    Of ``adapter_scales`` it is a single factor, that of all images.
    """

    guidance: Span | None = None
    steps: Span | None = None
    scheduler: tuple[Scheduler, ...] | None = None
    strength: Span | None = None
    epoch: Span | None = None
    lr: Span | None = None
    epochs: Span | None = None
    adapter_scales: Span | None = field(default=None, metadata=LATER)
    guide: tuple[Guide, ...] | None = field(default=None, metadata=LATER)
    guide_until: Span | None = field(default=None, metadata=LATER)
    filter: tuple[Filter, ...] | None = field(default=None, metadata=LATER)
    per_class: Span | None = field(default=None, metadata=LATER)
    real_weight: Span | None = field(default=None, metadata=LATER)
    finish_on_real: Span | None = field(default=None, metadata=LATER)
    nearness: Span | None = field(default=None, metadata=LATER)

    @property
    def knobs(self) -> tuple[str, ...]:
        """The names of the knobs that are searched."""
        return tuple(knob.name for knob in dataclasses.fields(self) if getattr(self, knob.name) is not None)
