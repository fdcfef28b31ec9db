"""A row of ``recipes`` in ``params.yaml``: all its knobs, and the questions that the rest of the program asks of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from dreamset.core.strict import Range
from dreamset.params.knobs import (
    ASKED,
    CONCENTRATION,
    FILE,
    FIRST_ROUND,
    LATER,
    MIXES,
    OF_CLASSIFIERS,
    PULL,
    SHOTS_FILTERS,
    TRIES,
    Adapter,
    AdapterScales,
    ClassDropout,
    Concentration,
    Epoch,
    Filter,
    FilterTries,
    FinishOnReal,
    Guide,
    GuideUntil,
    Init,
    InitMix,
    Lora,
    Mix,
    Nearness,
    Origin,
    PostAugment,
    Prompt,
    Pull,
    SamplerOverrides,
    Scope,
    Search,
    Templates,
    Unconditional,
    Weight,
)
from dreamset.params.values import Count, Positive, Share


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
    adapter_scales: AdapterScales | None = field(default=None, metadata=LATER)
    context_length: Annotated[int, Range(low=1, high=1000)] | None = None
    unconditional: Unconditional | None = None
    class_dropout: ClassDropout | None = None
    epoch: Epoch | None = None
    lr: Positive | None = None
    epochs: Count | None = None
    search: Search | None = None
    preserve: Weight | None = field(default=None, metadata=LATER)
    diversity: Weight | None = field(default=None, metadata=LATER)
    init_mix: InitMix | None = field(default=None, metadata=LATER)
    guide: Guide | None = field(default=None, metadata=LATER)
    guide_until: GuideUntil | None = field(default=None, metadata=LATER)
    pull: Pull | None = field(default=None, metadata=LATER)
    filter: Filter | None = field(default=None, metadata=LATER)
    filter_tries: FilterTries | None = field(default=None, metadata=LATER)
    first_round: Count | None = field(default=None, metadata=LATER)
    templates: Templates | None = field(default=None, metadata=LATER)
    negative: str | None = field(default=None, metadata=LATER)
    descriptions: str | None = field(default=None, metadata=LATER)
    captions: str | None = field(default=None, metadata=LATER)
    caption_dropout: Share | None = field(default=None, metadata=LATER)
    mix: Mix | None = field(default=None, metadata=LATER)
    concentration: Concentration | None = field(default=None, metadata=LATER)
    post_augment: PostAugment | None = field(default=None, metadata=LATER)
    per_class: Count | None = field(default=None, metadata=LATER)
    real_weight: Share | None = field(default=None, metadata=LATER)
    finish_on_real: FinishOnReal | None = field(default=None, metadata=LATER)
    nearness: Nearness | None = field(default=None, metadata=LATER)

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
        return (self.mix or MIXES[self.scope or ""]) if self.has_adapter_per_shot else None

    @property
    def concentration_of(self) -> float:
        """The concentration of the Dirichlet distribution of an image's weights."""
        return CONCENTRATION if self.concentration is None else self.concentration

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
        return (PULL if self.pull is None else self.pull) if self.pulls else 0.0

    @property
    def filters(self) -> bool:
        """Whether candidates are drawn for each image, of which a filter takes one."""
        return self.filter not in (None, "none")

    @property
    def tries(self) -> int:
        """The number of candidates that an image has at most."""
        return (self.filter_tries or TRIES) if self.filters else 1

    @property
    def draws_all_tries(self) -> bool:
        """Whether a filter chooses among all candidates of an image; otherwise it takes the first that it accepts."""
        return self.filter in ("k_of_n", "entropy")

    @property
    def first(self) -> int:
        """The images of each class that are drawn without the filter, which learns from them; 0: none."""
        return (self.first_round or FIRST_ROUND) if self.filter == "entropy" else 0

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
        chosen_by_shots = {self.filter, *((self.search.filter or ()) if self.search else ())} & set(SHOTS_FILTERS)
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
