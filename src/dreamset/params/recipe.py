"""A row of ``recipes`` in ``params.yaml``.

Each knob has one part of this file: its allowed values. ``Recipe`` puts the knobs together; its properties answer the
questions of the rest of the program. The rules that values alone do not tell stand in ``knob_rules``, and the words on
cards in ``knob_words``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from dreamset.core.strict import Range
from dreamset.params.values import Count, Positive, Scheduler, Share

# --- origin: whether images are drawn, or taken from the training images of the base.

Origin = Literal["generator", "retrieval"]

# --- adapter: the weights that are trained, with the knobs of each.

Adapter = Literal["none", "lora", "class_encoder", "unet"]
Scope = Literal["dataset", "class", "image", "shared"]
Unconditional = Literal["zero", "learned"]

# --- class_dropout: the share of images that teach a class encoder its null class, for unconditional: learned.

ClassDropout = Share

# --- mix: the LoRAs of a class that an image is drawn with, where each shot has its own; concentration: of dirichlet.

Mix = Literal["pair", "dirichlet"]
Concentration = Annotated[float, Range(low=0.01, high=1000)]
_MIXES: Final = {"image": "pair", "shared": "dirichlet"}  # where not said
_CONCENTRATION: Final = 1.0  # all weights that sum up to 1 are equally likely

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
_PULL: Final = 0.1

# --- filter: which candidates become images; filter_tries: the candidates of an image at most; first_round: of entropy.

Filter = Literal["none", "argmax", "threshold", "real_features", "k_of_n", "influence", "entropy"]
FilterTries = Annotated[int, Range(low=2, high=1000)]
_SHOTS_FILTER: Final = ("real_features", "k_of_n", "influence")  # filters that learn from the shots
_TRIES: Final = 8
_FIRST_ROUND: Final = 10

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
_LATER: Final = {"later": True}

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
    adapter_scales: Span | None = field(default=None, metadata=_LATER)
    guide: tuple[Guide, ...] | None = field(default=None, metadata=_LATER)
    guide_until: Span | None = field(default=None, metadata=_LATER)
    filter: tuple[Filter, ...] | None = field(default=None, metadata=_LATER)
    per_class: Span | None = field(default=None, metadata=_LATER)
    real_weight: Span | None = field(default=None, metadata=_LATER)
    finish_on_real: Span | None = field(default=None, metadata=_LATER)
    nearness: Span | None = field(default=None, metadata=_LATER)

    @property
    def knobs(self) -> tuple[str, ...]:
        """The names of the knobs that are searched."""
        return tuple(knob.name for knob in dataclasses.fields(self) if getattr(self, knob.name) is not None)


# --- All knobs together.


@dataclass(frozen=True)
class Recipe:
    """A row of ``recipes``; it gives the knobs of its adapter, and of no other one.

    Where a knob is None, the value of the model's row or of the training holds.
    """

    adapter: Adapter
    prompt: Prompt
    sampler: SamplerOverrides
    origin: Origin = "generator"
    init: Init = "noise"
    scope: Scope | None = None
    rank: Annotated[int, Range(low=1, high=1024)] | None = None
    alpha: Positive | None = None
    unet: bool | None = None
    text_encoder: bool | None = None
    adapter_scales: AdapterScales | None = field(default=None, metadata=_LATER)
    context_length: Annotated[int, Range(low=1, high=1000)] | None = None
    unconditional: Unconditional | None = None
    class_dropout: ClassDropout | None = None
    epoch: Epoch | None = None
    lr: Positive | None = None
    epochs: Count | None = None
    search: Search | None = None
    preserve: Weight | None = field(default=None, metadata=_LATER)
    diversity: Weight | None = field(default=None, metadata=_LATER)
    init_mix: InitMix | None = field(default=None, metadata=_LATER)
    guide: Guide | None = field(default=None, metadata=_LATER)
    guide_until: GuideUntil | None = field(default=None, metadata=_LATER)
    pull: Pull | None = field(default=None, metadata=_LATER)
    filter: Filter | None = field(default=None, metadata=_LATER)
    filter_tries: FilterTries | None = field(default=None, metadata=_LATER)
    first_round: Count | None = field(default=None, metadata=_LATER)
    templates: Templates | None = field(default=None, metadata=_LATER)
    negative: str | None = field(default=None, metadata=_LATER)
    descriptions: str | None = field(default=None, metadata=_LATER)
    captions: str | None = field(default=None, metadata=_LATER)
    caption_dropout: Share | None = field(default=None, metadata=_LATER)
    mix: Mix | None = field(default=None, metadata=_LATER)
    concentration: Concentration | None = field(default=None, metadata=_LATER)
    post_augment: PostAugment | None = field(default=None, metadata=_LATER)
    per_class: Count | None = field(default=None, metadata=_LATER)
    real_weight: Share | None = field(default=None, metadata=_LATER)
    finish_on_real: FinishOnReal | None = field(default=None, metadata=_LATER)
    nearness: Nearness | None = field(default=None, metadata=_LATER)

    @property
    def draws(self) -> bool:
        """Whether a generator draws the images; otherwise they are retrieved."""
        return self.origin == "generator"

    @property
    def trains(self) -> bool:
        """Whether weights are trained."""
        return self.adapter != "none"

    @property
    def trains_lora(self) -> bool:
        """Whether the trained weights are LoRAs on attention layers."""
        return self.adapter == "lora"

    @property
    def trains_class_encoder(self) -> bool:
        """Whether the trained weights are vectors of the classes, in place of text."""
        return self.adapter == "class_encoder"

    @property
    def trains_unet(self) -> bool:
        """Whether the trained weights are those of the whole U-Net."""
        return self.adapter == "unet"

    @property
    def has_adapter_per_class(self) -> bool:
        """Whether each class has its separate adapter."""
        return self.scope == "class"

    @property
    def has_adapter_per_shot(self) -> bool:
        """Whether each shot has a LoRA of its own, so that images of one batch are drawn with different LoRAs."""
        return self.scope in ("image", "shared")

    @property
    def has_one_adapter(self) -> bool:
        """Whether all classes share one adapter, or there is none."""
        return self.scope in (None, "dataset")

    @property
    def trains_each_shot(self) -> bool:
        """Whether each shot is trained on by itself."""
        return self.scope == "image"

    @property
    def shares_down(self) -> bool:
        """Whether the LoRAs of a class have the same A, and are trained together."""
        return self.scope == "shared"

    @property
    def mixes_by(self) -> str | None:
        """How the LoRAs of an image are chosen, ``pair`` or ``dirichlet``; None where shots have none of their own."""
        return (self.mix or _MIXES[self.scope or ""]) if self.has_adapter_per_shot else None

    @property
    def concentration_of(self) -> float:
        """The concentration of the Dirichlet distribution of an image's weights."""
        return _CONCENTRATION if self.concentration is None else self.concentration

    @property
    def schedule(self) -> str:
        """The key under ``adapt`` of the model's row with the schedule of the training."""
        if self.trains_class_encoder:
            return "class_encoder"
        if self.trains_unet:
            return "whole_unet"
        return self.scope or "class"

    @property
    def strengths(self) -> tuple[float, ...]:
        """The factors of the adapter, which the images of a class take in turn."""
        return self.adapter_scales or (1.0,)

    @property
    def unit(self) -> int:
        """The fewest images of a class of which each strength of the adapter has as many, copies included."""
        return len(self.strengths) * (1 + self.copies) if len(self.strengths) > 1 else 1

    @property
    def asks_by_vectors(self) -> bool:
        """Whether learned vectors of the classes condition the U-Net; otherwise text does."""
        return self.prompt == "class_vector"

    @property
    def asks_alike(self) -> bool:
        """Whether all images of a class have one prompt."""
        return self.templates is None and self.prompt not in ASKED

    @property
    def describes(self) -> bool:
        """Whether prompts hold a sentence on the class."""
        return self.prompt == "description"

    @property
    def tells_captions(self) -> bool:
        """Whether prompts are captions of shots of the class."""
        return self.prompt == "caption"

    @property
    def tells_context(self) -> bool:
        """Whether prompts hold the attributes of a shot of any class."""
        return self.prompt == "context"

    @property
    def tells_shots(self) -> bool:
        """Whether prompts tell what is seen in shots: their captions, or their attributes."""
        return self.tells_captions or self.tells_context

    @property
    def reads_attributes(self) -> bool:
        """Whether CLIP reads attributes of the shots for its prompts."""
        return self.tells_context or self.captions == "attributes"

    @property
    def captions_file(self) -> str | None:
        """The file of its captions; None where they come from elsewhere."""
        given = self.captions or ""
        return given.removeprefix(FILE) if given.startswith(FILE) else None

    @property
    def captioner(self) -> str | None:
        """The model that writes its captions, a folder or ``hub:OWNER/NAME[@REVISION]``; None without one."""
        by_hand = self.captions in (None, "beside", "attributes") or self.captions_file is not None
        return None if by_hand else self.captions

    @property
    def needs_vectors_of_another(self) -> bool:
        """Whether it takes these vectors from the recipe that it starts from."""
        return self.trains_unet and self.asks_by_vectors

    @property
    def starts_from_shots(self) -> bool:
        """Whether an image is drawn over a shot; otherwise it starts from noise."""
        return self.init == "image"

    @property
    def pulls(self) -> bool:
        """Whether images are pulled toward shots while they are drawn."""
        return self.guide == "mode"

    @property
    def pull_share(self) -> float:
        """The share of the way to its shot that an image is pulled at each step; 0 where it is not."""
        return (_PULL if self.pull is None else self.pull) if self.pulls else 0.0

    @property
    def filters(self) -> bool:
        """Whether candidates are drawn for each image, of which a filter takes one."""
        return self.filter not in (None, "none")

    @property
    def tries(self) -> int:
        """The number of candidates that an image has at most."""
        return (self.filter_tries or _TRIES) if self.filters else 1

    @property
    def draws_all_tries(self) -> bool:
        """Whether a filter chooses among all candidates of an image; otherwise it takes the first that it accepts."""
        return self.filter in ("k_of_n", "entropy")

    @property
    def first(self) -> int:
        """The images of each class that are drawn without the filter, which learns from them; 0: none."""
        return (self.first_round or _FIRST_ROUND) if self.filter == "entropy" else 0

    @property
    def copies(self) -> int:
        """The number of copies that are made of each drawn image."""
        return 0 if self.post_augment is None else self.post_augment.copies

    def drawn(self, stored: int) -> int:
        """Return how many images have to be drawn for ``stored`` of them with their copies."""
        return -(-stored // (1 + self.copies))

    @property
    def learns_from_shots(self) -> bool:
        """Whether shots have a part in its images, so that these must not be scored by the same shots."""
        chosen_by_shots = {self.filter, *((self.search.filter or ()) if self.search else ())} & set(_SHOTS_FILTER)
        pulls = self.pulls or (self.search is not None and "mode" in (self.search.guide or ()))
        return self.trains or self.starts_from_shots or self.tells_shots or pulls or bool(chosen_by_shots)

    @property
    def is_tuned(self) -> bool:
        """Whether a study chooses some of its values."""
        return self.search is not None

    @property
    def is_baseline(self) -> bool:
        """Whether adaptation is measured against it: nothing is adapted or tuned, and no shot has a part in images."""
        chosen = self.is_tuned or self.starts_from_shots or self.pulls or self.tells_shots or self.filters
        return not (self.trains or chosen or self.post_augment)

    @property
    def plainer(self) -> tuple[Recipe, ...]:
        """The same row without its study, scales, filter, guide, mixture, copies, negative prompt, number or weights.

        The last one asks plainly.
        """
        return (
            dataclasses.replace(self, search=None),
            dataclasses.replace(self, adapter_scales=None),
            dataclasses.replace(self, filter=None, filter_tries=None, first_round=None),
            dataclasses.replace(self, guide=None, guide_until=None, pull=None),
            dataclasses.replace(self, init_mix=None),
            dataclasses.replace(self, post_augment=None),
            dataclasses.replace(self, negative=None),
            dataclasses.replace(self, per_class=None),
            dataclasses.replace(self, real_weight=None, finish_on_real=None, nearness=None),
            dataclasses.replace(self, prompt=self._plain_prompt, templates=None, descriptions=None, captions=None),
        )

    @property
    def _plain_prompt(self) -> Prompt:
        return "template" if self.prompt in ASKED else self.prompt

    def searches(self, knob: str) -> bool:
        """Return whether its study chooses a knob."""
        return self.search is not None and knob in self.search.knobs

    def training(self) -> Recipe:
        """Return the row with only the knobs that its training depends on, without its length and rate."""
        return Recipe(
            **{name: value for name, value in vars(self).items() if name not in _NO_TRAINING},
            sampler=SamplerOverrides(),
        )

    def recorded(self) -> dict[str, Any]:
        """Return the row as records hold it."""
        row = _without_later(self)
        return row | ({"search": _without_later(self.search)} if self.search is not None else {})

    def lora(self) -> Lora:
        """Return the LoRA knobs of a recipe that trains one."""
        assert self.rank and self.alpha and self.unet is not None and self.text_encoder is not None
        return Lora(self.rank, self.alpha, self.unet, self.text_encoder, self.shares_down)


def _without_later(row: Recipe | Search) -> dict[str, Any]:
    """Return the fields of a row, without the newer knobs that it does not set."""
    later = {knob.name for knob in dataclasses.fields(row) if knob.metadata.get("later")}
    return {name: value for name, value in dataclasses.asdict(row).items() if value is not None or name not in later}


_NO_TRAINING: Final = (
    *("sampler", "init", "init_mix", "epoch", "lr", "epochs", "adapter_scales", "search"),
    *("guide", "guide_until", "pull", "filter", "filter_tries", "first_round", "negative", "mix"),
    *("concentration", "post_augment", "per_class", *OF_CLASSIFIERS),
)


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
