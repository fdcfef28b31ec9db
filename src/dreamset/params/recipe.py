"""A row of ``recipes`` in ``params.yaml``.

Each knob has one part of this file: its allowed values, a rule if these do not suffice, and its words on the cards.
``Recipe`` puts the knobs together. Its properties answer the questions of the rest of the program.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from dreamset.core.errors import InputError
from dreamset.core.strict import Range, listed
from dreamset.params.values import Count, Positive, Scheduler, Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamset.params.model import Model

# --- origin: whether images are drawn, or taken from the training images of the base.

Origin = Literal["generator", "retrieval"]


def _check_origin(row: Recipe, key: str) -> None:
    if not row.draws and (row.trains or row.sampler != SamplerOverrides()):
        raise InputError(f"{key}: origin: retrieval draws nothing; set adapter to none and sampler to {{}}.")
    if not row.draws and row.search is not None:
        raise InputError(f"{key}.search: origin: retrieval draws nothing that could be tuned; remove it.")


# --- adapter: the weights that are trained, with the knobs of each.

Adapter = Literal["none", "lora", "class_encoder", "unet"]
Scope = Literal["dataset", "class", "image", "shared"]
Unconditional = Literal["zero", "learned"]

_OF_ADAPTER: Final = {  # knobs that an adapter needs, and that only it has
    "lora": ("scope", "rank", "alpha", "unet", "text_encoder"),
    "class_encoder": ("context_length", "unconditional", "class_dropout"),
}
_SCOPED: Final = {  # the words of each scope
    "dataset": "one per dataset",
    "class": "one per class",
    "image": "one per shot",
    "shared": "one per shot, those of a class with the same A (down) and each with a B (up) of its own",
    None: "",
}
_CONTEXTS: Final = (
    "`contexts` in it condition the U-Net: rows by label, and last the unconditional one ({rows} in all). A stock "
    "pipeline takes `prompt_embeds=contexts[[label]], negative_prompt_embeds=contexts[[-1]]` at a guidance above 1."
)


def _check_adapter(row: Recipe, key: str) -> None:
    for adapter, knobs in _OF_ADAPTER.items():
        for knob in knobs:
            given = getattr(row, knob) is not None
            if given and row.adapter != adapter:
                raise InputError(f"{key}.{knob}: belongs only to adapter: {adapter}; remove it.")
            if not given and row.adapter == adapter:
                raise InputError(f"{key}.{knob}: is missing; adapter: {adapter} needs it.")
    if row.trains_lora and not (row.unet or row.text_encoder):
        raise InputError(f"{key}: adapts nothing; set unet or text_encoder to true.")


def adapter_words(row: Recipe) -> str:
    """Return a phrase on the adapter of a recipe and on when its weights are taken; empty where it has none."""
    if not row.trains:
        return ""
    if row.trains_lora:
        parts = [part for part, on in (("U-Net", row.unet), ("text encoder", row.text_encoder)) if on]
        where = f"on the attention of the {' and '.join(parts)}"
        kind = f"LoRA of rank {row.rank}, alpha {row.alpha:g}, {where}, {_SCOPED[row.scope]}"
        return f"{kind}{_losses_words(row)}{_epoch_words(row)}"
    if row.trains_class_encoder:
        vectors = f"Class encoder of {row.context_length} vectors per class, in the place of the text encoder"
        return f"{vectors}{_class_dropout_words(row)}{_losses_words(row)}{_epoch_words(row)}"
    whole = f"Difference of the whole U-Net to the base's, conditioned by {row.prompt}"
    return f"{whole}{_losses_words(row)}{_epoch_words(row)}"


def opening_words(row: Recipe, classes: int) -> str:
    """Return sentences on how to use the files of an adapter without dreamset."""
    if row.trains_lora:
        return "Opens with `StableDiffusionPipeline.load_lora_weights`."
    contexts = _CONTEXTS.format(rows=classes + 1)
    if row.trains_class_encoder:
        return (
            f"Opens with `safetensors.torch.load_file`; {contexts} Of many classes the file holds the layers instead: "
            "contexts are `(one_hot @ hidden.weight.T + hidden.bias) @ out.weight.T`, reshaped to the U-Net's width, "
            "and the unconditional one that of zeros, or of the last class where there is one more."
        )
    added = "add `unet.NAME` of the file to the parameter NAME of the base's U-Net."
    return f"Opens with `safetensors.torch.load_file`; {added}" + (f" {contexts}" if row.asks_by_vectors else "")


# --- class_dropout: the share of images that teach a class encoder its null class, for unconditional: learned.

ClassDropout = Share


def _check_class_dropout(row: Recipe, key: str) -> None:
    if row.unconditional == "learned" and not row.class_dropout:
        raise InputError(f"{key}.class_dropout: unconditional: learned needs it above 0, such as 0.1.")


def _class_dropout_words(row: Recipe) -> str:
    return f", with a null class from {100 * row.class_dropout:g} % of the images" if row.class_dropout else ""


# --- mix: the LoRAs of a class that an image is drawn with, where each shot has its own; concentration: of dirichlet.

Mix = Literal["pair", "dirichlet"]
Concentration = Annotated[float, Range(low=0.01, high=1000)]
_MIXES: Final = {"image": "pair", "shared": "dirichlet"}  # where not said
_CONCENTRATION: Final = 1.0  # all weights that sum up to 1 are equally likely


def _check_mix(row: Recipe, key: str) -> None:
    if row.mix is not None and not row.has_adapter_per_shot:
        raise InputError(f"{key}.mix: belongs to scope: image and scope: shared; remove it.")
    if row.concentration is not None and row.mixes_by != "dirichlet":
        raise InputError(f"{key}.concentration: belongs to mix: dirichlet; remove it, or set mix to dirichlet.")


def mix_words(row: Recipe) -> str:
    """Return a sentence on the LoRAs that each image is drawn with; empty where all images of a class share one."""
    if row.mixes_by == "pair":
        return "Each image is drawn with two LoRAs of its class at weights 0.5 and 0.5; the pairs take turns."
    if row.mixes_by == "dirichlet":
        weights = f"drawn for the image from a Dirichlet distribution of concentration {row.concentration_of:g}"
        return f"Each image is drawn with all LoRAs of its class, at weights {weights}."
    return ""


# --- adapter_scales: n factors; image k of a class is drawn with the LoRA times the (k mod n)-th of them.

AdapterScales = tuple[Annotated[float, Range(low=0, high=2)], ...]


def _check_adapter_scales(row: Recipe, key: str, context: Context) -> None:
    if row.adapter_scales is None:
        return
    if not row.trains_lora:
        raise InputError(f"{key}.adapter_scales: only adapter: lora has a strength; remove it.")
    if not any(row.adapter_scales):
        raise InputError(f"{key}.adapter_scales: name at least one above 0, or set adapter to none.")
    # Every dataset, and every rung of a study, must use each strength.
    count, rungs = len(row.adapter_scales), context.model.tune.per_class
    if context.active and row.drawn(context.per_class) < count:
        raise InputError(f"{key}.adapter_scales: {count} scales need as many images; raise generate.per_class.")
    drawn = tuple(map(row.drawn, rungs))
    if row.is_tuned and any(number % count for number in drawn):
        raise InputError(
            f"{key}.adapter_scales: a study draws {listed(drawn)} images per class, and {count} scales do not divide "
            f"these; set models.{context.model_name}.tune.per_class to multiples of {count * (1 + row.copies)}."
        )


def scales_words(row: Recipe) -> str:
    """Return a phrase on the strengths of a recipe's adapter; empty where it is always as trained."""
    scales = ", ".join(f"{scale:g}" for scale in row.adapter_scales or ())
    return f"used at {scales} times its strength in turn" if scales else ""


def scale_call_words(row: Recipe) -> str:
    """Return sentences on the scales at which a recipe draws with its LoRA, and on the calls that set them."""
    scales = [f"{scale:g}" for scale in row.strengths]
    turns = f"scales {', '.join(scales)}, image by image in turn" if len(scales) > 1 else f"scale {scales[0]}"
    one = next(f"{scale:g}" for scale in row.strengths if scale)
    if row.has_adapter_per_shot:
        return f"{mix_words(row)} {_mix_call_words(row)}{_alpha_words(row)}"
    words = (
        f"Drawn at {turns} (1 is the strength of the training, and what a loaded LoRA has): "
        f'`load_lora_weights(FOLDER, adapter_name="shots")`, then `set_adapters("shots", {one})`; or '
        f'`cross_attention_kwargs={{"scale": {one}}}` in each call of the pipeline.'
    )
    return words + _alpha_words(row)


def _alpha_words(row: Recipe) -> str:
    if row.alpha == row.rank or not (row.alpha and row.rank):
        return ""
    return f" A diffusers before 0.34 reads no alpha; times {row.alpha / row.rank:g} its scales are the same."


def _mix_call_words(row: Recipe) -> str:
    half = next(0.5 * scale for scale in row.strengths if scale)
    words = (
        '`load_lora_weights(FIRST, adapter_name="first")` and `load_lora_weights(SECOND, adapter_name="second")`, then '
        f'`set_adapters(["first", "second"], [{half:g}, {half:g}])`, draw with two of these files. `metadata.jsonl` '
        "has the sha256 and the weight of each file that an image was drawn with (`adapters`, `adapter_weights`)."
    )
    scales = ", ".join(f"{scale:g}" for scale in row.adapter_scales or ())
    return words + (f" All weights of an image are times {scales}, image by image in turn." if scales else "")


# --- epoch, lr, epochs: the share of the training after which weights are taken, and changes to the schedule.

Epoch = Annotated[float, Range(above=0, high=1)]


def _check_training(row: Recipe, key: str, context: Context) -> None:
    for knob in ("epoch", "lr", "epochs"):
        if getattr(row, knob) is not None and not row.trains:
            raise InputError(f"{key}.{knob}: there is nothing that adapter: none trains; remove it.")
    kept = context.model.adapt.kept
    if row.epoch is not None and abs(row.epoch * kept - round(row.epoch * kept)) > 1e-6:
        raise InputError(
            f"{key}.epoch: no weights are kept after {row.epoch:g} of the training; give a multiple of "
            f"{1 / kept:g}, or change models.{context.model_name}.adapt.kept ({kept})."
        )


def _epoch_words(row: Recipe) -> str:
    # None means the end of the training.
    return "" if row.epoch in (None, 1) else f", its weights those after {100 * row.epoch:g} % of the training"


# --- preserve, diversity: weights of losses beside that of the noise, while an adapter trains; 0 where not said.

Weight = Annotated[float, Range(above=0, high=10)]


def _check_losses(row: Recipe, key: str) -> None:
    for knob in ("preserve", "diversity"):
        if getattr(row, knob) is not None and not row.trains:
            raise InputError(f"{key}.{knob}: there is nothing that adapter: none trains; remove it.")
    if row.preserve is not None and row.asks_by_vectors:
        raise InputError(f"{key}.preserve: needs captions that name no class, and class_vector has none; remove it.")


def _losses_words(row: Recipe) -> str:
    held = f", held to the base on captions without a class at a weight of {row.preserve:g}" if row.preserve else ""
    return held + (f", its images driven apart at a weight of {row.diversity:g}" if row.diversity else "")


# --- prompt: the condition of the U-Net; with retrieval, the query for images. The knobs after it belong to it.

Prompt = Literal["template", "label", "description", "caption", "context", "class_vector"]
Templates = tuple[str, ...]

PROMPTS: Final = "data/prompts"  # the folder of descriptions and captions, which DVC watches
_FILE: Final = "file:"
_OF_TEMPLATES: Final = ("template", "description", "caption", "context")

_ASKED: Final = {
    "description": "Asked for by the class and a sentence on it, from {descriptions}, in turn",
    "caption": "Asked for by the caption of a shot of the class{another}, made {captions}",
    "context": "Asked for by the class and the attributes of a shot of any class, as zero-shot CLIP reads them",
}
_CAPTIONED: Final = {
    "beside": "by who put it beside the image",
    "attributes": "of the attributes that zero-shot CLIP reads",
}


def _check_prompt(row: Recipe, key: str, context: Context) -> None:
    if row.asks_by_vectors and not (row.trains_class_encoder or row.trains_unet):
        raise InputError(f"{key}.prompt: class_vector needs adapter: class_encoder, or unet after such a recipe.")
    if row.trains_class_encoder and not row.asks_by_vectors:
        raise InputError(f"{key}.prompt: must be class_vector with adapter: class_encoder.")
    for knob, prompt in (("descriptions", "description"), ("captions", "caption")):
        given = getattr(row, knob) is not None
        if given and row.prompt != prompt:
            raise InputError(f"{key}.{knob}: belongs to prompt: {prompt}; remove it.")
        if not given and row.prompt == prompt:
            raise InputError(f"{key}.{knob}: is missing; prompt: {prompt} needs it.")
    if not row.draws and (row.prompt in _ASKED or row.templates or row.negative):
        raise InputError(
            f"{key}: origin: retrieval searches by one caption of each class; set prompt to template or label, and "
            "remove templates and negative."
        )
    for knob, file in (("descriptions", row.descriptions), ("captions", row.captions_file)):
        if file is not None and not file.startswith(f"{PROMPTS}/"):
            raise InputError(f"{key}.{knob}: {file} is not in {PROMPTS}/, the folder that DVC watches; put it there.")
    if row.reads_attributes and context.active and not context.model.attributes:
        raise InputError(
            f"{key}: asks with attributes, and models.{context.model_name}.attributes names none; give it groups of "
            "words."
        )
    _check_templates(row, key)
    _check_negative(row, key, context)
    if row.caption_dropout is not None and (row.asks_by_vectors or not row.trains):
        raise InputError(f"{key}.caption_dropout: belongs to an adapter that learns from prompts; remove it.")


def _check_templates(row: Recipe, key: str) -> None:
    if row.templates is None:
        return
    if row.prompt not in _OF_TEMPLATES:
        raise InputError(f"{key}.templates: has no part in prompt: {row.prompt}; remove it, or set prompt to template.")
    if not row.templates:
        raise InputError(f"{key}.templates: names none; name one or more, or remove it.")
    for template in row.templates:
        if template.count("{class}") + template.count("{a class}") != 1:
            raise InputError(f"{key}.templates: each must hold {{class}} once, or {{a class}}, got {template!r}.")


def _check_negative(row: Recipe, key: str, context: Context) -> None:
    if row.negative is None:
        return
    if row.asks_by_vectors:
        raise InputError(f"{key}.negative: class vectors have no text to lead away from; remove it.")
    if row.guide == "other_class":
        raise InputError(f"{key}.negative: guide: other_class leads away from another class; remove one of them.")
    own, searched = row.sampler.guidance, None if row.search is None else row.search.guidance
    guidance = context.model.generate.guidance if own is None else own
    if not searched and guidance == 1 and (own is not None or context.active):
        raise InputError(
            f"{key}.sampler.guidance: 1 is the prompt alone, so that negative has no part; set it above 1, or remove "
            "negative."
        )


def prompt_words(row: Recipe, prompt: str) -> str:
    """Return a sentence on how the images of a class were asked for; ``prompt`` is that of class 0, quoted."""
    if row.asks_by_vectors:
        return f"Asked for by a learned vector of the class, without text: that of class 0 is called {prompt}."
    turns = f"; {len(row.templates)} templates take turns" if row.templates and len(row.templates) > 1 else ""
    away = f" Negative prompt: {quoted_words(row.negative)}." if row.negative else ""
    if row.prompt not in _ASKED:
        return f"Prompt of class 0: {prompt}{turns}.{away}"
    how = _CAPTIONED.get(row.captions or "", f"by {(row.captions or '').removeprefix('hub:').removeprefix(_FILE)}")
    asked = _ASKED[row.prompt].format(
        descriptions=row.descriptions, captions=how, another=" (where it starts from a shot, another one)"
    )
    return f"{asked}. That of class 0 begins with {prompt}{turns}.{away}"


def quoted_words(text: str | None) -> str:
    """Return a text in double quotes, as cards show it."""
    return json.dumps(text, ensure_ascii=False)


# --- init: whether an image starts from noise or from a shot.

Init = Literal["noise", "image"]

DERIVED: Final = "Each image was drawn over a real one: pass them on only where you may pass on those."
NOT_ANONYMOUS: Final = "Not anonymised; adapters contain the shots."


def _check_init(row: Recipe, key: str) -> None:
    if row.starts_from_shots != (row.sampler.strength is not None):
        raise InputError(f"{key}.sampler.strength: belongs to init: image, which needs it.")


# --- init_mix: an image starts between two shots of its class; strength: by_shots follows the number of shots.

InitMix = Literal["pixels", "slerp"]

_MIXED: Final = {
    "pixels": "the mean of two of its class, weighted by a draw from Beta(0.2, 0.2)",
    "slerp": "a point between two of its class, on the arc that their noised latents span",
}
# IsSynth (arXiv 2210.07574) keeps less of each shot where a class has few: its steps of 100, by images per class.
_BY_SHOTS: Final = {1: 0.5, 2: 0.4, 4: 0.35, 8: 0.2, 16: 0.15}


def _check_init_mix(row: Recipe, key: str) -> None:
    if row.init_mix is not None and not row.starts_from_shots:
        raise InputError(f"{key}.init_mix: belongs to init: image; remove it.")


def strength_by_shots(shots: int | None) -> float:
    """Return IsSynth's strength for a number of shots per class; of others that of the nearest by ratio; None: many."""
    if shots is None:
        return _BY_SHOTS[max(_BY_SHOTS)]
    return _BY_SHOTS[min(_BY_SHOTS, key=lambda known: (abs(math.log(known / shots)), known))]


def init_mix_words(row: Recipe) -> str:
    """Return a sentence on the mixture that images start from; empty where each starts from one shot."""
    return f"For the start, a shot is {_MIXED[row.init_mix]}; with one alone, that one." if row.init_mix else ""


def drawn_words(row: Recipe) -> str:
    """Return a phrase on how the images were drawn."""
    return "over real ones by a model" if row.starts_from_shots else "by a diffusion model, none of them a photograph"


def start_words(strength: float | None, *, published: bool) -> str:
    """Return sentences on the start of an image that starts from a shot; a study may have chosen ``strength``."""
    if published:
        return f"Start: a real image of the class with noise of strength {strength:g}. **{DERIVED}**"
    return (
        f"Start: a shot of the class with noise of strength {strength:g}; which one, `metadata.jsonl` says. {DERIVED}"
    )


def shots_words(row: Recipe) -> str:
    """Return a warning of the parts of shots in a recipe's images; empty where there can be none."""
    if not (row.starts_from_shots or row.pulls):
        return NOT_ANONYMOUS if row.trains else ""
    learned = ", and adapters contain the shots" if row.trains else ""
    return f"Not anonymised; the images contain parts of the shots{learned}."


# --- sampler: the changes of a recipe to its model's sampler.


@dataclass(frozen=True)
class SamplerOverrides:
    """The changes of a recipe to its model's sampler; None leaves a setting as it is."""

    scheduler: Scheduler | None = None
    steps: Annotated[int, Range(low=1, high=1000)] | None = None
    guidance: Annotated[float, Range(low=0, high=50)] | None = None
    strength: Annotated[float, Range(above=0, high=1)] | Literal["by_shots"] | None = None


# guidance g draws with eps_u + g (eps_c - eps_u): 1 is the prompt alone, which some papers call 0. At our 0 the prompt
# has no part, so that images of all classes are alike and their labels are wrong.


def _check_guidance(row: Recipe, key: str, context: Context) -> None:
    own, searched = row.sampler.guidance, None if row.search is None else row.search.guidance
    if not row.draws or _labels_reach_without_guidance(row):
        return
    if searched is not None and searched.low == 0:
        raise InputError(f"{key}.search.guidance.low: 0 leaves out the class; give more, or 1 for the prompt alone.")
    if own == 0:
        raise InputError(
            f"{key}.sampler.guidance: 0 draws every class alike, since its prompt has no part; set it to 1, which is "
            "the prompt alone, or more."
        )
    if own is None and context.active and context.model.generate.guidance == 0:
        raise InputError(
            f"models.{context.model_name}.generate.guidance: 0 draws every class of recipe {context.name} alike, since "
            "its prompt has no part; set it to 1, which is the prompt alone, or more."
        )


def _labels_reach_without_guidance(row: Recipe) -> bool:
    """Whether images depend on their class by their start, or by a U-Net of its own, even where the prompt does not."""
    own = row.has_adapter_per_class or row.has_adapter_per_shot
    return row.starts_from_shots or (own and row.unet is True and all(row.strengths))


# --- guide: what stands for the unconditional half of guidance, or pulls beside it; and how long.

Guide = Literal["adapted", "base", "other_class", "mode"]
GuideUntil = Annotated[float, Range(above=0, high=1)]
Pull = Annotated[float, Range(above=0, high=1)]
_PULL: Final = 0.1

_GUIDED: Final = {
    "base": "the unconditional half is the base's, as it was before it was adapted",
    "other_class": "the prompt of the class that CLIP finds nearest stands for the empty prompt",
    "mode": "each image is pulled toward a shot of its class, by {pull:g} of what is left at each step",
}


def _check_guide(row: Recipe, key: str, context: Context) -> None:
    if not row.draws and (row.guide or row.guide_until):
        raise InputError(f"{key}: origin: retrieval draws nothing that could be guided; remove guide and guide_until.")
    if row.pull is not None and not row.pulls:
        raise InputError(f"{key}.pull: belongs to guide: mode; remove it.")
    if row.guide == "base" and not row.trains:
        raise InputError(f"{key}.guide: base needs an adapter; adapter: none draws with the base anyway.")
    if row.guide == "base" and context.active and "offload" in context.model.memory:
        raise InputError(
            f"{key}.guide: base keeps two U-Nets on the device; take offload out of models.{context.model_name}.memory."
        )
    own, searched = row.sampler.guidance, None if row.search is None else row.search.guidance
    guidance = context.model.generate.guidance if own is None else own
    if own is None and not context.active:
        return
    # A pull needs no unconditional half.
    if (row.guide in ("base", "other_class") or (row.guide_until and not row.pulls)) and not searched and guidance == 1:
        raise InputError(
            f"{key}.sampler.guidance: 1 is the prompt alone, so that guide has no part; set it above or below 1."
        )


def guide_words(row: Recipe) -> str:
    """Return a sentence on the guidance of a recipe; empty where the adapted network guides to the end."""
    words = [_GUIDED[row.guide].format(pull=row.pull_share)] if row.guide in _GUIDED else []
    if row.guide_until is not None and row.guide_until < 1:
        words.append(f"guidance ends after {100 * row.guide_until:g} % of the steps")
    return f"Guidance: {'; '.join(words)}." if words else ""


# --- filter: which candidates become images; filter_tries: the candidates of an image at most.

Filter = Literal["none", "argmax", "threshold", "real_features", "k_of_n", "influence"]
FilterTries = Annotated[int, Range(low=2, high=1000)]
_TRIES: Final = 8

_FILTERED: Final = {
    "argmax": "takes the first that zero-shot CLIP reads as its class",
    "threshold": "takes the first that zero-shot CLIP gives to its class with more than an even chance among classes",
    "real_features": "takes the first that lies nearest to a shot of its class in CLIP's features",
    "k_of_n": "takes, of those that a probe on the shots gives to the class, the one least like its neighbours",
    "influence": "takes the first whose gradient agrees more with held-out shots of its class than with others",
}


def _check_filter(row: Recipe, key: str) -> None:
    if row.filters and not row.draws:
        raise InputError(f"{key}.filter: origin: retrieval draws no candidates; remove it.")
    if row.filter_tries is not None and not row.filters:
        raise InputError(f"{key}.filter_tries: belongs to a filter; remove it, or name one.")


def filter_words(row: Recipe) -> str:
    """Return a sentence on the filter of a recipe; empty without one."""
    if row.filter not in _FILTERED:
        return ""
    return f"Filter: of at most {row.tries} candidates an image, it {_FILTERED[row.filter]}."


# --- post_augment: copies of each drawn image, changed only as its label allows.


@dataclass(frozen=True)
class PostAugment:
    """The copies of a drawn image: how many, and whether they are made at its size or at that of the real images."""

    copies: Annotated[int, Range(low=1, high=1000)]
    at: Literal["drawn", "target"] = "drawn"


_CHANGED: Final = {"hflip": "mirrored", "vflip": "turned upside down", "rotation": "turned by up to 60 degrees"}
_COPIED_AT: Final = {"drawn": "at the size that it was drawn at", "target": "after lowering to the real images' size"}


def post_augment_words(row: Recipe, invariances: Sequence[str], drawn: int, copies: int) -> str:
    """Return a sentence on the copies in a dataset; empty where the recipe makes none.

    Args:
        row: the recipe.
        invariances: the changes that keep a label.
        drawn: the number of images that are no copies.
        copies: the number of copies.
    """
    if row.post_augment is None:
        return ""
    ways = ["shifted", *(words for change, words in _CHANGED.items() if change in invariances)]
    ways += [] if "rotation" in invariances else ["tilted by up to 9 degrees"]
    ways += ["changed in brightness, contrast and gamma"] if "colour" in invariances else []
    return (
        f"Copies: {drawn} images were drawn, and {copies} are copies of these, up to {row.post_augment.copies} of each "
        f"({', '.join(ways)}; {_COPIED_AT[row.post_augment.at]}). `copy_of` in `metadata.jsonl` names the drawn image."
    )


# --- search: the knobs that a study chooses.

_WHOLE: Final = ("steps", "epochs")
_HIGHEST: Final = {"steps": 1000, "guidance": 50, "strength": 1, "epoch": 1}


@dataclass(frozen=True)
class Span:
    """The range that a study searches: from ``low`` to ``high``, or to a multiple of another study's best value."""

    low: Annotated[float, Range(low=0)]
    high: Positive | None = None
    high_times_best: Positive | None = None
    log: bool = False


@dataclass(frozen=True)
class Search:
    """The knobs that a recipe's study searches; each is a knob of the recipe or of its sampler."""

    guidance: Span | None = None
    steps: Span | None = None
    scheduler: tuple[Scheduler, ...] | None = None
    strength: Span | None = None
    epoch: Span | None = None
    lr: Span | None = None
    epochs: Span | None = None

    @property
    def knobs(self) -> tuple[str, ...]:
        """The names of the knobs that are searched."""
        return tuple(knob.name for knob in dataclasses.fields(self) if getattr(self, knob.name) is not None)


def _check_search(row: Recipe, key: str, context: Context) -> None:
    search = row.search
    if search is None:
        return
    if not search.knobs:
        raise InputError(f"{key}.search: names no knob; remove it, or search guidance, steps, ...")
    for knob in search.knobs:
        if knob in ("epoch", "lr", "epochs") and not row.trains:
            raise InputError(f"{key}.search.{knob}: there is nothing that adapter: none trains; remove it.")
        if knob == "strength" and not row.starts_from_shots:
            raise InputError(f"{key}.search.strength: needs init: image.")
        if knob == "scheduler":
            if len(set(search.scheduler or ())) < 2:
                raise InputError(f"{key}.search.scheduler: name at least two, and each once.")
            continue
        _check_span(getattr(search, knob), knob, f"{key}.search.{knob}", context)


def _check_span(span: Span, knob: str, key: str, context: Context) -> None:
    if (span.high is None) == (span.high_times_best is None):
        raise InputError(f"{key}: give either high or high_times_best.")
    if span.high_times_best is not None and context.active and not context.after:
        raise InputError(
            f"{key}.high_times_best: {context.name} starts from no other recipe's study; give high, or after."
        )
    if span.high is not None and span.low >= span.high:
        raise InputError(f"{key}: low must be below high, got {span.low:g} and {span.high:g}.")
    if span.log and span.low <= 0:
        raise InputError(f"{key}.low: must be above 0 for log: true.")
    if knob in _WHOLE and (span.low != int(span.low) or span.low < 1 or (span.high or 1) != int(span.high or 1)):
        raise InputError(f"{key}: expected whole numbers of at least 1.")
    if knob == "epoch" and span.log:
        raise InputError(f"{key}.log: weights are kept at even distances; remove it.")
    if (span.high or 0) > _HIGHEST.get(knob, float("inf")):
        raise InputError(f"{key}.high: expected a number of at most {_HIGHEST[knob]}, got {span.high:g}.")


# --- All knobs together.

# A knob that is newer than existing records: a row that does not set it is recorded without it.
_LATER: Final = {"later": True}


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
    templates: Templates | None = field(default=None, metadata=_LATER)
    negative: str | None = field(default=None, metadata=_LATER)
    descriptions: str | None = field(default=None, metadata=_LATER)
    captions: str | None = field(default=None, metadata=_LATER)
    caption_dropout: Share | None = field(default=None, metadata=_LATER)
    mix: Mix | None = field(default=None, metadata=_LATER)
    concentration: Concentration | None = field(default=None, metadata=_LATER)
    post_augment: PostAugment | None = field(default=None, metadata=_LATER)

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
    def asks_by_vectors(self) -> bool:
        """Whether learned vectors of the classes condition the U-Net; otherwise text does."""
        return self.prompt == "class_vector"

    @property
    def asks_alike(self) -> bool:
        """Whether all images of a class have one prompt."""
        return self.templates is None and self.prompt not in _ASKED

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
        return given.removeprefix(_FILE) if given.startswith(_FILE) else None

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
    def copies(self) -> int:
        """The number of copies that are made of each drawn image."""
        return 0 if self.post_augment is None else self.post_augment.copies

    def drawn(self, stored: int) -> int:
        """Return how many images have to be drawn for ``stored`` of them with their copies."""
        return -(-stored // (1 + self.copies))

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
        """The same row without its study, scales, filter, guide, mixture, copies or negative prompt.

        The last one asks plainly.
        """
        return (
            dataclasses.replace(self, search=None),
            dataclasses.replace(self, adapter_scales=None),
            dataclasses.replace(self, filter=None, filter_tries=None),
            dataclasses.replace(self, guide=None, guide_until=None, pull=None),
            dataclasses.replace(self, init_mix=None),
            dataclasses.replace(self, post_augment=None),
            dataclasses.replace(self, negative=None),
            dataclasses.replace(self, prompt=self._plain_prompt, templates=None, descriptions=None, captions=None),
        )

    @property
    def _plain_prompt(self) -> Prompt:
        return "template" if self.prompt in _ASKED else self.prompt

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
        later = {knob.name for knob in dataclasses.fields(self) if knob.metadata.get("later")}
        row = dataclasses.asdict(self)
        return {knob: value for knob, value in row.items() if value is not None or knob not in later}

    def lora(self) -> Lora:
        """Return the LoRA knobs of a recipe that trains one."""
        assert self.rank and self.alpha and self.unet is not None and self.text_encoder is not None
        return Lora(self.rank, self.alpha, self.unet, self.text_encoder, self.shares_down)


_NO_TRAINING: Final = (
    *("sampler", "init", "init_mix", "epoch", "lr", "epochs", "adapter_scales", "search"),
    *("guide", "guide_until", "pull", "filter", "filter_tries", "negative", "mix", "concentration", "post_augment"),
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


@dataclass(frozen=True)
class Context:
    """The facts of the rest of ``params.yaml`` that the rules of a row need.

    Attributes:
        name: of the recipe.
        active: whether it is run.
        after: whether it starts from another recipe's result.
        per_class: synthetic images per class.
        model_name: the row of ``models`` that is used.
        model: that row.
    """

    name: str
    active: bool
    after: bool
    per_class: int
    model_name: str
    model: Model


def check(row: Recipe, context: Context) -> None:
    """Check the rules of all knobs of a row.

    Raises:
        InputError: one sentence naming the key and the mend.
    """
    key = f"recipes.{context.name}"
    _check_adapter(row, key)
    _check_class_dropout(row, key)
    _check_training(row, key, context)
    _check_losses(row, key)
    _check_adapter_scales(row, key, context)
    _check_mix(row, key)
    _check_prompt(row, key, context)
    _check_init(row, key)
    _check_init_mix(row, key)
    _check_guidance(row, key, context)
    _check_guide(row, key, context)
    _check_filter(row, key)
    _check_origin(row, key)
    _check_search(row, key, context)
