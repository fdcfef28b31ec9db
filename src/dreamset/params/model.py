"""A row of ``models`` in ``params.yaml``: all settings that depend on the size of the base."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.strict import REST, Range, build, join, one_of, refuse_others
from dreamset.params.values import Count, Natural, Positive, Saving, Scheduler, Share

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dreamset.params.values import Part

# Metadata of a key of a classifier that older files have not. At its default it stands in no key and in no setting.
LATER: Final = {"later": True}
Optimizer = Literal["adamw", "sgd"]
Augmentation = Literal["randaugment", "siamese"]


@dataclass(frozen=True)
class AdaptSchedule:
    """The schedule of the training of an adapter; None of ``weight_decay`` or ``max_grad_norm`` means ``adapt``'s."""

    lr: Positive
    warmup: Natural
    epochs: Count
    max_steps: Count
    batch: Count
    weight_decay: Share | None = None
    max_grad_norm: Positive | None = None

    def steps(self, images: int) -> int:
        """Return the number of optimizer steps for ``images`` shots."""
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
    image: AdaptSchedule
    shared: AdaptSchedule
    class_encoder: AdaptSchedule
    whole_unet: AdaptSchedule

    def schedule(self, key: str) -> AdaptSchedule:
        """Return the schedule of a key of the row: a scope of LoRAs, ``class_encoder`` or ``whole_unet``."""
        return {
            "dataset": self.dataset,
            "class": self.class_,
            "image": self.image,
            "shared": self.shared,
            "class_encoder": self.class_encoder,
            "whole_unet": self.whole_unet,
        }[key]

    def place(self, share: float) -> int:
        """Return the index, from 1, of the place nearest to a share of the training, among ``kept`` even ones."""
        return max(1, round(share * self.kept))


@dataclass(frozen=True)
class ModelGenerate:
    """``generate`` of a model's row."""

    per_class: Count
    batch: Count
    scheduler: Scheduler
    steps: Annotated[int, Range(low=1, high=1000)]
    guidance: Annotated[float, Range(low=0, high=50)]
    student: bool
    compile: bool


@dataclass(frozen=True)
class Student:
    """``student`` of a model's row: a U-Net, or a LoRA on the base's, that was distilled to draw in a few steps.

    An adapter that was trained on the base is used on it (arXiv 2311.05556).

    Attributes:
        weights: a name that ``dreamset.weights.hub`` locates: a folder with ``unet`` and, where it has a noise schedule
            of its own, ``scheduler``; or one with a LoRA's ``pytorch_lora_weights.safetensors``.
        licence: of the weights.
        scheduler: with which it draws.
        steps: inference steps.
        guidance: classifier-free guidance scale; 1, the prompt alone, where it was distilled from guided images.
    """

    weights: str
    licence: str
    scheduler: Scheduler
    steps: Annotated[int, Range(low=1, high=1000)]
    guidance: Annotated[float, Range(low=0, high=50)]

    @property
    def pretrained(self) -> tuple[str, Part]:
        """The weights, as arguments of ``hub.locate`` and ``hub.identity``."""
        return self.weights, "student"


@dataclass(frozen=True)
class Sampler:
    """The settings of drawing: a model's defaults with a recipe's overrides."""

    scheduler: Scheduler
    steps: int
    guidance: float
    strength: float | None = None
    student: bool = False

    @property
    def last_steps(self) -> int:
        """The number of steps for an image that starts from a real one: the share ``strength``, rounded down."""
        return self.steps if self.strength is None else int(self.steps * self.strength)


@dataclass(frozen=True)
class Epochs:
    """Optimizer steps that follow the number of images: passes over them, within limits."""

    epochs: Positive
    low: Count
    high: Count

    def steps(self, images: int, batch: int) -> int:
        """Return the number of steps. A pass has whole batches alone, as a loader that drops the last one."""
        return min(max(int(self.epochs * max(1, images // batch)), self.low), self.high)


@dataclass(frozen=True)
class ModelTune:
    """``tune`` of a model's row: the classifier that scores trials, and the rungs at which Hyperband prunes."""

    classifier: str
    steps: Count | Epochs
    per_class: tuple[Count, ...]

    def steps_at(self, rung: int, classes: int, batch: int) -> int:
        """Return the optimizer steps at ``rung`` images per class, in proportion to those at the last rung.

        Args:
            rung: images per class.
            classes: number of classes.
            batch: of the classifier.
        """
        last = self.per_class[-1]
        steps = self.steps if isinstance(self.steps, int) else self.steps.steps(last * classes, batch)
        return max(1, round(steps * rung / last))


@dataclass(frozen=True)
class ClassifierRow:
    """The settings that every trained classifier has in its row.

    A classifier's file extends this class by further settings, and sets two facts about the classifier.

    Attributes:
        from_scratch: whether it learns from its training images alone, without pretrained weights.
        program: Python code that defines ``logits(images)`` from the saved files without dreamset; None if the
            classifier cannot be delivered.
        optimizer: AdamW, or stochastic gradient descent with a momentum of 0.9.
        augmentation: DataDream's list (``classifiers.augment``) or that of dataset distillation (``siamese``).
        has_head: whether its last layer is linear and learns, so that it can be trained alone.
        later: whether older tables over seeds may have no row of it, so that an unused one does not tell tables apart.
    """

    from_scratch: ClassVar[bool] = False
    program: ClassVar[str | None] = None
    optimizer: ClassVar[Optimizer] = "adamw"
    augmentation: ClassVar[Augmentation] = "randaugment"
    has_head: ClassVar[bool] = False
    later: ClassVar[bool] = True

    lr: Positive
    weight_decay: Share
    warmup: Natural
    steps: Count | Epochs
    batch: Annotated[int, Range(low=2)]

    def recorded(self) -> dict[str, Any]:
        """Return the keys of the row, without those that came later and have their default."""
        later = {field.name: field.default for field in dataclasses.fields(self) if field.metadata == LATER}
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in later or value != later[name]
        }

    def course(self, images: int) -> Course:
        """Return the course of a training where every arm has ``images`` images at most.

        Where the steps follow the images, the warm-up takes a tenth of them at most.
        """
        warmup, steps = self.warmup, self.steps
        if isinstance(steps, Epochs):
            steps = steps.steps(images, self.batch)
            warmup = min(warmup, steps // 10)
        course = Course(self.lr, self.weight_decay, warmup, steps, self.batch)
        return dataclasses.replace(
            course, optimizer=self.optimizer, augmentation=self.augmentation, in_steps=self.in_steps
        )

    @property
    def in_steps(self) -> bool:
        """Whether the learning rate falls in steps, and not along a cosine."""
        return getattr(self, "schedule", None) == "step"


@dataclass(frozen=True)
class Course:
    """The course of a training; the fields are those of a classifier's row, with ``steps`` as a number."""

    lr: float
    weight_decay: float
    warmup: int
    steps: int
    batch: int
    optimizer: Optimizer = "adamw"
    augmentation: Augmentation = "randaugment"
    in_steps: bool = False


@dataclass(frozen=True)
class ScratchRow(ClassifierRow):
    """The settings of every network that is trained from scratch.

    Attributes:
        native: the least and the largest side, pixels, that ``size: native`` takes.
    """

    from_scratch: ClassVar[bool] = True
    has_head: ClassVar[bool] = True
    native: ClassVar[tuple[int, int]]

    size: int | Literal["native"]
    label_smoothing: Share
    schedule: Literal["cosine", "step", "plateau"]

    def side(self, shots: int | None) -> int:
        """Return the side, in pixels, of the squares that the network sees.

        Args:
            shots: median of the shortest sides of the shots' files; None, from an older ``prepare``: the least side.
        """
        least, largest = self.native
        return self.size if isinstance(self.size, int) else min(max(shots or least, least), largest)


@dataclass(frozen=True, kw_only=True)
class ClipRow(ClassifierRow):
    """The settings of every classifier that is trained on a pretrained CLIP."""

    label_smoothing: Share = dataclasses.field(default=0.0, metadata=LATER)


@dataclass(frozen=True)
class ModelTrain:
    """``train`` of a model's row; each key of ``rows`` is a key of ``train`` itself."""

    deliver: str
    crop: Annotated[float, Range(above=0, high=1)]
    rows: Annotated[dict[str, ClassifierRow], REST]

    def checked(
        self, classifiers: Mapping[str, type[ClassifierRow]], key: str, used: Collection[str] = ()
    ) -> ModelTrain:
        """Return a copy whose ``rows`` are checked; parsing alone leaves them as they are.

        Args:
            classifiers: the type of each classifier's row.
            key: the dotted key of this section in the file.
            used: names of classifiers that are trained, whose rows may not be missing; nor may that of ``deliver``.

        Raises:
            InputError: one sentence naming the key and what is allowed.
        """
        refuse_others(self.rows, ["deliver", "crop", *classifiers], key)
        one_of(self.deliver, [name for name, kind in classifiers.items() if kind.program], join(key, "deliver"))
        for name in classifiers:
            if name not in self.rows and name in (self.deliver, *used):
                raise InputError(f"{join(key, name)}: is missing, and {name} is used; give its row.")
        given = {name: kind for name, kind in classifiers.items() if name in self.rows}
        rows = {name: build(kind, self.rows[name], join(key, name)) for name, kind in given.items()}
        return dataclasses.replace(self, rows=rows)

    @property
    def delivered(self) -> tuple[str, ...]:
        """The classifiers that can be delivered; the first that is trained replaces one that is not."""
        return tuple(name for name, row in self.rows.items() if row.program is not None)

    @property
    def from_scratch(self) -> tuple[str, ...]:
        """The classifiers that start without pretrained weights."""
        return tuple(name for name, row in self.rows.items() if row.from_scratch)


@dataclass(frozen=True)
class Model:
    """A row of ``models``; ``generator``, ``clip`` and ``judge`` are names that ``dreamset.weights.hub`` locates."""

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
    # ``generator``: that draws in a few steps itself.
    student: Student | Literal["generator"] | None
    # Groups of words, of which CLIP reads one of each in a picture.
    attributes: dict[str, tuple[str, ...]] | None = None

    @property
    def pretrained(self) -> tuple[str, Part, str | None]:
        """The generator, as arguments of ``hub.locate`` and ``hub.identity``."""
        return self.generator, "generator", self.variant

    def draws_by_student(self, own: bool | None) -> bool:
        """Return whether the student draws, with a recipe's ``sampler.student`` or None where it says nothing."""
        return self.student != "generator" and (self.generate.student if own is None else own)

    @property
    def few_steps(self) -> Student | None:
        """The student, where it is a network of its own."""
        return self.student if isinstance(self.student, Student) else None

    def drawing(self, own: bool | None) -> ModelGenerate | Student:
        """Return what gives scheduler, steps and guidance; ``own`` as in ``draws_by_student``."""
        return self.few_steps if self.few_steps and self.draws_by_student(own) else self.generate
