"""A row of ``models`` in ``params.yaml``: everything that depends on the size of the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from dreamset.core.strict import Range
from dreamset.params.values import Count, Natural, Positive, Saving, Scheduler, Share

if TYPE_CHECKING:
    from dreamset.weights.hub import Part


# Classifiers that can be taken away, in the order in which they stand in for one another.
DELIVERED: Final = ("resnet20", "clip_lora", "resnet50")


@dataclass(frozen=True)
class AdaptSchedule:
    """Length of the training of one adapter; ``weight_decay`` and ``max_grad_norm`` where ``adapt``'s are not meant."""

    lr: Positive
    warmup: Natural
    epochs: Count
    max_steps: Count
    batch: Count
    weight_decay: Share | None = None
    max_grad_norm: Positive | None = None

    def steps(self, images: int) -> int:
        """Optimizer steps for ``images`` shots."""
        return min(self.epochs * math.ceil(images / self.batch), self.max_steps)


@dataclass(frozen=True)
class ModelAdapt:
    """``adapt`` of a model's row; ``class_`` is the key ``class``."""

    caption_dropout: Share
    ema: Annotated[float, Range(low=0, below=1)]
    together: Count
    sample_every: Count
    kept: Count
    dataset: AdaptSchedule
    class_: AdaptSchedule
    class_encoder: AdaptSchedule
    whole_unet: AdaptSchedule

    def place(self, share: float) -> int:
        """The nearest of the ``kept`` even places of a training, from 1, to a share of it."""
        return max(1, round(share * self.kept))


@dataclass(frozen=True)
class ModelGenerate:
    """``generate`` of a model's row."""

    per_class: Count
    batch: Count
    scheduler: Scheduler
    steps: Annotated[int, Range(low=1, high=1000)]
    guidance: Annotated[float, Range(low=0, high=50)]
    compile: bool


@dataclass(frozen=True)
class Sampler:
    """How images are drawn: a model's defaults with a recipe's overrides."""

    scheduler: Scheduler
    steps: int
    guidance: float
    strength: float | None = None

    @property
    def last_steps(self) -> int:
        """How many of the steps draw an image that starts from a real one: the share ``strength``, rounded down."""
        return self.steps if self.strength is None else int(self.steps * self.strength)


@dataclass(frozen=True)
class ModelTune:
    """``tune`` of a model's row: the classifier of the score, and the rungs that Hyperband prunes at."""

    classifier: Literal["resnet20", "resnet50"]
    steps: Count
    per_class: tuple[Count, ...]


@dataclass(frozen=True)
class ModelClassifier:
    """What the row of every classifier says of its training."""

    lr: Positive
    weight_decay: Share
    warmup: Natural
    steps: Count
    batch: Annotated[int, Range(low=2)]


@dataclass(frozen=True)
class ModelResNet(ModelClassifier):
    """What those of networks that are trained from scratch say."""

    label_smoothing: Share
    schedule: Literal["cosine", "plateau"]


@dataclass(frozen=True)
class ResNet20(ModelResNet):
    """``train.resnet20`` of a model's row."""

    size: Annotated[int, Range(low=8)]
    width: Count


@dataclass(frozen=True)
class ResNet50(ModelResNet):
    """``train.resnet50`` of a model's row."""

    # Its stem reduces four times before the first block.
    size: Annotated[int, Range(low=64)]


@dataclass(frozen=True)
class ClipLora(ModelClassifier):
    """``train.clip_lora`` of a model's row."""

    rank: Annotated[int, Range(low=1, high=1024)]
    alpha: Positive
    dropout: Annotated[float, Range(low=0, high=0.9)]


@dataclass(frozen=True)
class LinearProbe(ModelClassifier):
    """``train.linear_probe`` of a model's row."""


@dataclass(frozen=True)
class ModelTrain:
    """``train`` of a model's row."""

    deliver: Literal["resnet20", "clip_lora", "resnet50"]
    crop: Annotated[float, Range(above=0, high=1)]
    resnet20: ResNet20
    resnet50: ResNet50
    clip_lora: ClipLora
    linear_probe: LinearProbe


@dataclass(frozen=True)
class Model:
    """A row of ``models``. ``generator``, ``clip`` and ``judge`` are names as ``dreamset.weights.hub`` locates them."""

    generator: str
    variant: str | None
    clip: str
    judge: str
    retrieval: str | None
    licence: str
    resolution: Annotated[int, Range(low=8)]
    dtype: Literal["float32", "bfloat16", "float16"]
    memory: tuple[Saving, ...]
    adapt: ModelAdapt
    generate: ModelGenerate
    tune: ModelTune
    train: ModelTrain

    @property
    def pretrained(self) -> tuple[str, Part, str | None]:
        """The generator, as ``hub.locate`` and ``hub.identity`` take it."""
        return self.generator, "generator", self.variant
