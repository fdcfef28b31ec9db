"""``params.yaml`` as frozen, validated types: parsed once, at the edge.

Defaults stand in ``params.yaml`` alone; a field here says only which values are allowed, and ``rules`` what must hold
between them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from dreamset import rules
from dreamset.errors import InputError
from dreamset.strict import EMPTY, Range, build, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dreamset.hub import Part


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]

# Of each class the same number, every image, or a number for each class by its name.
Shots = Count | Literal["all"] | dict[str, Count]

Scheduler = Literal["dpmsolver++", "ddim", "pndm", "unipc", "euler_ancestral"]
Invariance = Literal["hflip", "vflip", "rotation", "colour"]
Saving = Literal["gradient_checkpointing", "attention_slicing", "vae_slicing", "offload"]
ClassifierName = Literal["resnet20", "resnet50", "clip_lora", "linear_probe"]


# Classifiers that can be taken away, in the order in which they stand in for one another.
DELIVERED: Final = ("resnet20", "clip_lora", "resnet50")

# What differs between the cells of a table, what changes no number of theirs, and rows that they do not use.
_NO_SETTING: Final = (
    "shots",
    "seed",
    "active",
    "primary",
    "accept_licence",
    "deliver",
    "expect",
    "report",
    "track",
    "models",
    "after",
    "tune",
)

# Of a study; the rest of its section says where it runs.
_CHOOSING: Final = ("trials", "sampler", "pruner", "objectives", "max_seconds_per_image", "max_fid")


@dataclass(frozen=True)
class Prepare:
    """Section ``prepare``."""

    source: str
    few_shot: str | None
    template: str | None
    invariances: tuple[Invariance, ...] | None
    test_share: Annotated[float, Range(low=0.05, high=0.9)]
    # Pillow refuses larger images whatever is asked of it.
    max_pixels: Annotated[int, Range(low=1, high=178_956_970)]
    max_rejected: Natural
    max_near_duplicates: Natural
    window: tuple[float, ...] | None


@dataclass(frozen=True)
class Expect:
    """Section ``expect``."""

    per_class: Annotated[int, Range(low=2, high=100)]
    steps: Annotated[int, Range(low=1, high=1000)]
    classes: Count


@dataclass(frozen=True)
class Adapt:
    """Section ``adapt``."""

    weight_decay: Share
    max_grad_norm: Positive
    checkpoint_every: Count
    sample_images: Annotated[int, Range(low=1, high=16)]
    sample_steps: Annotated[int, Range(low=1, high=1000)]


@dataclass(frozen=True)
class Tune:
    """Section ``tune``."""

    trials: Count
    sampler: Literal["tpe", "gp", "random"]
    pruner: Literal["hyperband", "successive_halving", "median", "none"]
    objectives: Literal["cas", "cas_and_seconds"]
    max_seconds_per_image: Positive | None
    max_fid: Positive | None
    storage: str
    heartbeat_s: Count
    grace_s: Count
    retries: Natural

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped early: not for a second objective or a limit known at the end alone."""
        return self.pruner != "none" and self.objectives == "cas" and self.max_fid is None


@dataclass(frozen=True)
class Generate:
    """Section ``generate``."""

    per_class: Count | Literal["balance"] | None
    redraws: Annotated[int, Range(low=0, high=20)]
    max_redrawn_share: Share


@dataclass(frozen=True)
class Train:
    """Section ``train``."""

    classifiers: tuple[ClassifierName, ...]
    baselines: tuple[ClassifierName, ...]
    real_weight: Share
    selections: Count
    configurations: Count
    # Ravuri and Vinyals (2019) define CAS by a synthetic set that is as large as the real one.
    scales: tuple[Count, ...] | Literal["ravuri_vinyals"]


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


@dataclass(frozen=True)
class Deliver:
    """Section ``deliver``."""

    precision: Annotated[float, Range(above=0, below=1)]


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
    stand in for the schedule's.
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
    context_length: Annotated[int, Range(low=1, high=1000)] | None = None
    unconditional: Literal["zero", "learned"] | None = None
    class_dropout: Share | None = None
    epoch: Annotated[float, Range(above=0, high=1)] | None = None
    lr: Positive | None = None
    epochs: Count | None = None
    search: Search | None = None

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
class ResNet20:
    """``train.resnet20`` of a model's row."""

    size: Annotated[int, Range(low=8)]
    width: Count
    lr: Positive
    weight_decay: Share
    label_smoothing: Share
    warmup: Natural
    steps: Count
    batch: Annotated[int, Range(low=2)]
    schedule: Literal["cosine", "plateau"]


@dataclass(frozen=True)
class ResNet50:
    """``train.resnet50`` of a model's row."""

    # Its stem reduces four times before the first block.
    size: Annotated[int, Range(low=64)]
    lr: Positive
    weight_decay: Share
    label_smoothing: Share
    warmup: Natural
    steps: Count
    batch: Annotated[int, Range(low=2)]
    schedule: Literal["cosine", "plateau"]


@dataclass(frozen=True)
class ClipLora:
    """``train.clip_lora`` of a model's row."""

    rank: Annotated[int, Range(low=1, high=1024)]
    alpha: Positive
    dropout: Annotated[float, Range(low=0, high=0.9)]
    lr: Positive
    weight_decay: Share
    warmup: Natural
    steps: Count
    batch: Annotated[int, Range(low=2)]


@dataclass(frozen=True)
class LinearProbe:
    """``train.linear_probe`` of a model's row."""

    lr: Positive
    weight_decay: Share
    warmup: Natural
    steps: Count
    batch: Annotated[int, Range(low=2)]


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
    """A row of ``models``. ``generator``, ``clip`` and ``judge`` are names as ``dreamset.hub`` locates them."""

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


@dataclass(frozen=True)
class Params:
    """The whole of ``params.yaml``."""

    model: str
    shots: Shots
    seed: Annotated[int, Range(low=0, high=2**31 - 1)]
    active: tuple[str, ...]
    after: Annotated[dict[str, str], EMPTY]
    selection: str
    accept_licence: bool
    primary: str
    prepare: Prepare
    expect: Expect
    adapt: Adapt
    tune: Tune
    generate: Generate
    train: Train
    evaluate: Evaluate
    deliver: Deliver
    report: Report
    track: Track
    recipes: dict[str, Recipe]
    models: dict[str, Model]

    @property
    def base(self) -> Model:
        """The row of ``models`` that ``model`` names."""
        return self.models[self.model]

    @property
    def per_class(self) -> int:
        """Synthetic images per class; with ``balance``, of the class that has the most shots."""
        given = self.generate.per_class
        return self.base.generate.per_class if given is None or given == "balance" else given

    @property
    def scales(self) -> tuple[int, ...]:
        """Sizes of the synthetic sets that CAS is measured by, as multiples of the number of shots; rising."""
        return (1,) if self.train.scales == "ravuri_vinyals" else self.train.scales

    def synthetic_per_class(self, real: Sequence[int]) -> tuple[int, ...]:
        """Synthetic images of each class that are made, by label: those to train on, or more where ``scales`` ask so.

        Args:
            real: shots of each class.
        """
        most = max(self.scales, default=0)
        return tuple(max(own, most * shots) for own, shots in zip(self.training_per_class(real), real, strict=True))

    def training_per_class(self, real: Sequence[int]) -> tuple[int, ...]:
        """Synthetic images of each class that every arm but the scales learns from, the first ones, by label.

        Args:
            real: shots of each class. With ``balance`` shots and synthetic images together are as many in each.
        """
        if self.generate.per_class != "balance":
            return (self.per_class,) * len(real)
        return tuple(self.per_class + max(real) - count for count in real)

    def shots_of(self, class_name: str) -> int | None:
        """How many images of a class are to be learned from; None: all."""
        if isinstance(self.shots, dict):
            return self.shots[class_name]
        return None if self.shots == "all" else self.shots

    def selection_of(self, class_name: str) -> int:
        """Labelled images of a class, beside the shots, that may choose a step or a configuration."""
        rule, _, count = self.selection.partition(":")
        shots = self.shots_of(class_name)
        if rule == "coop":
            return 4 if shots is None else min(shots, 4)
        return int(count or 0)

    @property
    def primary_recipe(self) -> str:
        """The active recipe that the verdict is about."""
        adapted = [name for name in self.active if self.recipes[name].adapter != "none"]
        return next(name for name in (self.primary, *adapted, *self.active) if name in self.active)

    @property
    def primary_classifier(self) -> str:
        """The trained classifier that the verdict is about."""
        wanted = (self.base.train.deliver, *DELIVERED)
        return next(name for name in wanted if name in self.train.classifiers)

    @property
    def sets_apart(self) -> bool:
        """Whether ``prepare`` sets selection images apart; ``fixed`` has none, and ``cv`` makes folds in ``train``."""
        return self.selection not in ("fixed", "cv")

    def setting(self, recipes: Iterable[str]) -> dict[str, Any]:
        """What runs of several seeds and numbers of shots must have in common to stand in one table."""
        setting = {name: value for name, value in to_dict(self).items() if name not in _NO_SETTING}
        base = to_dict(self.base)
        del setting["evaluate"]["smallest_gain"], setting["evaluate"]["worst_pairs"]
        return setting | {"base": base, "recipes": {name: self.making(name) for name in recipes}}

    def lineage(self, recipe: str) -> tuple[str, ...]:
        """The recipes that ``recipe`` starts from, the first one first, and itself."""
        parent = self.after.get(recipe)
        return (recipe,) if parent is None else (*self.lineage(parent), recipe)

    def steps_back(self, recipe: str) -> tuple[str, ...]:
        """The active recipes that ``recipe`` is one step beyond: its own row before its study, and what it starts from.

        What the step is worth is the difference from them.
        """
        row, parent = self.recipes[recipe], self.after.get(recipe)
        untuned = [
            name
            for name in self.active
            if row.search is not None
            and self.recipes[name] == dataclasses.replace(row, search=None)
            and self.after.get(name) == parent
        ]
        return (*untuned, *([] if parent is None else [parent]))

    def making(self, recipe: str) -> dict[str, Any]:
        """What the images of ``recipe`` depend on: its row, those it starts from, and how studies choose for them."""
        rows = [self.recipes[name] for name in self.lineage(recipe)]
        studied = any(row.search is not None for row in rows)
        return {
            "rows": [to_dict(row) for row in rows],
            "tune": {key: getattr(self.tune, key) for key in _CHOOSING} if studied else None,
        }

    def sampler(self, recipe: str) -> Sampler:
        """The model's sampler with the overrides of ``recipe``."""
        mine, base = self.recipes[recipe].sampler, self.base.generate
        return Sampler(
            mine.scheduler or base.scheduler,
            mine.steps or base.steps,
            base.guidance if mine.guidance is None else mine.guidance,
            mine.strength,
        )

    def schedule(self, recipe: str) -> AdaptSchedule:
        """The schedule of the model's row for what ``recipe`` trains, with the recipe's own lr and epochs."""
        row, rows = self.recipes[recipe], self.base.adapt
        by_adapter = {"class_encoder": rows.class_encoder, "unet": rows.whole_unet}
        schedule = by_adapter.get(row.adapter, rows.dataset if row.scope == "dataset" else rows.class_)
        return dataclasses.replace(schedule, lr=row.lr or schedule.lr, epochs=row.epochs or schedule.epochs)

    def with_values(self, recipe: str, values: Mapping[str, Any]) -> Params:
        """The same with ``values`` for knobs of a recipe: those of its sampler, ``epoch``, ``lr`` or ``epochs``."""
        row = self.recipes[recipe]
        sampler = {name: value for name, value in values.items() if hasattr(row.sampler, name)}
        others = {name: value for name, value in values.items() if name not in sampler}
        changed = dataclasses.replace(row, sampler=dataclasses.replace(row.sampler, **sampler), **others)
        return dataclasses.replace(self, recipes=self.recipes | {recipe: changed})


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: one sentence naming the key and what is allowed.
    """
    return parse(read_yaml(path), str(path))


def parse(raw: object, file: str = "params.yaml") -> Params:
    """Check a mapping as ``yaml.safe_load`` gives it; see ``load``."""
    try:
        params = build(Params, raw)
        # One list from here on: what starts from another's result is a recipe like the others.
        params = dataclasses.replace(params, active=(*params.active, *params.after))
        rules.check(params)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return params


def to_dict(value: Any) -> Any:
    """Dataclasses as plain mappings, for printing, hashing and tracking."""
    return dataclasses.asdict(value)
