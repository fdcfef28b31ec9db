"""A row of ``recipes`` in ``params.yaml``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from dreamset.core.strict import Range
from dreamset.params.values import Count, Positive, Scheduler, Share


@dataclass(frozen=True)
class SamplerOverrides:
    """What a recipe changes of its model's sampler."""

    scheduler: Scheduler | None = None
    steps: Annotated[int, Range(low=1, high=1000)] | None = None
    guidance: Annotated[float, Range(low=0, high=50)] | None = None
    strength: Annotated[float, Range(above=0, high=1)] | None = None


@dataclass(frozen=True)
class Span:
    """What a study searches of a number: from ``low`` to ``high``, or to so many times the best of another's study."""

    low: Annotated[float, Range(low=0)]
    high: Positive | None = None
    high_times_best: Positive | None = None
    log: bool = False


@dataclass(frozen=True)
class Search:
    """What a recipe's study searches; every name is a knob of the recipe or of its sampler."""

    guidance: Span | None = None
    steps: Span | None = None
    scheduler: tuple[Scheduler, ...] | None = None
    strength: Span | None = None
    epoch: Span | None = None
    lr: Span | None = None
    epochs: Span | None = None

    @property
    def knobs(self) -> tuple[str, ...]:
        """The names of what is searched."""
        return tuple(field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)


@dataclass(frozen=True)
class Recipe:
    """A row of ``recipes``. The knobs of an adapter are given where it is that adapter, and only there.

    With ``origin: retrieval`` nothing is adapted and nothing drawn; ``prompt`` is what images are searched by.
    ``epoch`` is the share of the training after which the weights are taken, and None its end; ``lr`` and ``epochs``
    stand in for the schedule's. Image k of a class is drawn with a LoRA times the (k mod n)-th of the n
    ``adapter_scales``; None: as it was trained.
    """

    adapter: Literal["none", "lora", "class_encoder", "unet"]
    prompt: Literal["template", "label", "class_vector"]
    sampler: SamplerOverrides
    origin: Literal["generator", "retrieval"] = "generator"
    init: Literal["noise", "image"] = "noise"
    scope: Literal["dataset", "class"] | None = None
    rank: Annotated[int, Range(low=1, high=1024)] | None = None
    alpha: Positive | None = None
    unet: bool | None = None
    text_encoder: bool | None = None
    adapter_scales: tuple[Annotated[float, Range(low=0, high=2)], ...] | None = None
    context_length: Annotated[int, Range(low=1, high=1000)] | None = None
    unconditional: Literal["zero", "learned"] | None = None
    class_dropout: Share | None = None
    epoch: Annotated[float, Range(above=0, high=1)] | None = None
    lr: Positive | None = None
    epochs: Count | None = None
    search: Search | None = None

    @property
    def strengths(self) -> tuple[float, ...]:
        """What the adapter is multiplied by, image by image of a class in turn."""
        return self.adapter_scales or (1.0,)

    @property
    def is_baseline(self) -> bool:
        """Whether adaptation is measured against it: nothing adapted, nothing tuned, no image starts from a shot."""
        return self.adapter == "none" and self.search is None and self.init == "noise"

    def lora(self) -> Lora:
        """The LoRA knobs, of a recipe that has them."""
        assert self.rank and self.alpha and self.unet is not None and self.text_encoder is not None
        return Lora(self.rank, self.alpha, self.unet, self.text_encoder)


@dataclass(frozen=True)
class Lora:
    """Which attention layers get a LoRA of which rank."""

    rank: int
    alpha: float
    unet: bool
    text_encoder: bool
