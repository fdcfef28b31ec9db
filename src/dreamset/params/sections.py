"""The sections of ``params.yaml``: one for each stage that has parameters, and ``track``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from dreamset.core.strict import Range
from dreamset.params.values import METHODS, Count, Features, Invariance, Natural, Positive, Share

if TYPE_CHECKING:
    from dreamset.core.images import Decoding


@dataclass(frozen=True)
class Compute:
    """Section ``compute``: where the work is done. Of its keys ``threads`` alone changes the last digits of results."""

    executor: Literal["local", "ray"]
    workers: Count | None
    threads: Count | None
    ray_address: str | None
    store: str | None


@dataclass(frozen=True)
class Prepare:
    """Section ``prepare``."""

    source: str
    few_shot: str | None
    template: str | None
    clip_templates: tuple[str, ...] | None
    invariances: tuple[Invariance, ...] | None
    test_share: Annotated[float, Range(low=0.05, high=0.9)]
    # Pillow always refuses larger images.
    max_pixels: Annotated[int, Range(low=1, high=178_956_970)]
    max_rejected: Natural
    max_near_duplicates: Natural
    window: tuple[float, ...] | None
    invert: bool
    crop: Literal["object"] | None
    autocontrast: bool

    @property
    def decoding(self) -> Decoding:
        """How the files of the source are read."""
        from dreamset.core.images import Decoding

        window = None if self.window is None else (self.window[0], self.window[1])
        return Decoding(self.max_pixels, window, self.invert, self.crop, self.autocontrast)


@dataclass(frozen=True)
class Expect:
    """Section ``expect``."""

    per_class: Annotated[int, Range(low=2, high=100)]
    steps: Annotated[int, Range(low=1, high=1000)]
    classes: Count
    on_no_help: Literal["ask", "stop", "go"]


@dataclass(frozen=True)
class Adapt:
    """Section ``adapt``."""

    weight_decay: Share
    max_grad_norm: Positive
    checkpoint_every: Count
    sample_images: Annotated[int, Range(low=1, high=16)]
    sample_steps: Annotated[int, Range(low=1, high=1000)]


GROUP: Final = "group"  # of ``evaluate.slices``: the groups of the list of images


@dataclass(frozen=True)
class Tune:
    """Section ``tune``."""

    trials: Count
    sampler: Literal["tpe", "gp", "random"]
    pruner: Literal["hyperband", "successive_halving", "median", "none"]
    objectives: Literal["cas", "gain", "cas_and_seconds"]
    rescored: Natural
    max_seconds_per_image: Positive | None
    max_fid: Positive | None
    storage: str
    heartbeat_s: Count
    grace_s: Count
    retries: Natural

    @property
    def two(self) -> bool:
        """Whether there is a second objective, the seconds per image."""
        return self.objectives == "cas_and_seconds"

    @property
    def gains(self) -> bool:
        """Whether trials are scored by what their images add to the real ones, and not by what they teach alone."""
        return self.objectives == "gain"

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early: not with a second objective, nor a limit that only the end shows."""
        return self.pruner != "none" and not self.two and self.max_fid is None


@dataclass(frozen=True)
class Generate:
    """Section ``generate``."""

    per_class: Count | Literal["balance"] | None
    budget_s: Positive | None
    redraws: Annotated[int, Range(low=0, high=20)]
    max_redrawn_share: Share
    pack: Count


@dataclass(frozen=True)
class Train:
    """Section ``train``."""

    classifiers: tuple[str, ...]
    baselines: tuple[str, ...]
    simple: tuple[Features, ...]
    real_weight: Share
    selections: Count
    configurations: Count
    # Ravuri and Vinyals (2019) define CAS with a synthetic set as large as the real one.
    scales: tuple[Count, ...] | Literal["ravuri_vinyals"]
    # Older files have none of these keys.
    finish_on_real: Annotated[float, Range(low=0, below=1)] = 0.0
    finish_part: Literal["whole", "head"] = "whole"
    nearness: Annotated[float, Range(low=-5, high=5)] = 0.0
    scaled: tuple[Literal["synthetic", "both"], ...] = ("synthetic",)
    distillation: bool = False

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the classifiers that are trained, and not fitted."""
        return (*self.classifiers, *self.baselines)

    @property
    def simple_classifiers(self) -> tuple[str, ...]:
        """The names of the simple classifiers: each method on each of the features."""
        return tuple(f"{method}_{features}" for features in self.simple for method in METHODS)


@dataclass(frozen=True)
class Evaluate:
    """Section ``evaluate``."""

    protocol: Literal["test", "cv"] | None
    folds: Annotated[int, Range(low=2, high=20)]
    confidence: Annotated[float, Range(low=0.5, high=0.999)]
    bootstrap: Annotated[int, Range(low=100)]
    kid_subset: Annotated[int, Range(low=2)]
    smallest_gain: Annotated[float, Range(low=0, high=0.5)]
    worst_pairs: Annotated[int, Range(low=1, high=100)]
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deliver:
    """Section ``deliver``."""

    precision: Annotated[float, Range(above=0, below=1)]
    calibrate: bool


@dataclass(frozen=True)
class Report:
    """Section ``report``."""

    images_per_class: Annotated[int, Range(low=1, high=32)]
    show_real: bool


@dataclass(frozen=True)
class Track:
    """Section ``track``."""

    uri: str | None
    experiment: str
    timeout_s: Annotated[float, Range(low=1, high=600)]
