"""The rules of a recipe's knobs beyond their values: which belong together, and which the model allows."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.strict import listed
from dreamset.params.knobs import ASKED, BESIDE_SHOTS, PROMPTS, SamplerOverrides

if TYPE_CHECKING:
    from dreamset.params.knobs import Span
    from dreamset.params.model import Model
    from dreamset.params.recipe import Recipe


def _check_origin(row: Recipe, key: str) -> None:
    if not row.draws and (row.trains or row.sampler != SamplerOverrides()):
        raise InputError(f"{key}: origin: retrieval draws nothing; set adapter to none and sampler to {{}}.")
    if not row.draws and row.search is not None:
        raise InputError(f"{key}.search: origin: retrieval draws nothing that could be tuned; remove it.")


_OF_ADAPTER: Final = {  # knobs that an adapter needs, and that only it has
    "lora": ("scope", "rank", "alpha", "unet", "text_encoder"),
    "class_encoder": ("context_length", "unconditional", "class_dropout"),
}


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


def _check_class_dropout(row: Recipe, key: str) -> None:
    if row.unconditional == "learned" and not row.class_dropout:
        raise InputError(f"{key}.class_dropout: unconditional: learned needs it above 0, such as 0.1.")


def _check_mix(row: Recipe, key: str) -> None:
    if row.mix is not None and not row.has_adapter_per_shot:
        raise InputError(f"{key}.mix: belongs to scope: image and scope: shared; remove it.")
    if row.concentration is not None and row.mixes_by != "dirichlet":
        raise InputError(f"{key}.concentration: belongs to mix: dirichlet; remove it, or set mix to dirichlet.")


def _check_adapter_scales(row: Recipe, key: str, context: Context) -> None:
    if row.adapter_scales is None:
        return
    if not row.trains_lora:
        raise InputError(f"{key}.adapter_scales: only adapter: lora has a strength; remove it.")
    if not any(row.adapter_scales):
        raise InputError(f"{key}.adapter_scales: name at least one above 0, or set adapter to none.")
    searched = row.search.per_class if row.search is not None else None
    if searched is not None and (searched.low < row.unit or (searched.log and row.unit > 1)):
        raise InputError(
            f"{key}.search.per_class: {len(row.adapter_scales)} scales take multiples of {row.unit} images; give a low "
            f"of {row.unit} or more, and no log."
        )
    # Every dataset, and every rung of a study, must use each strength.
    count, rungs = len(row.adapter_scales), context.model.tune.per_class
    if context.active and row.drawn(context.per_class) < count:
        raise InputError(f"{key}.adapter_scales: {count} scales need as many images; raise {_number_key(row, key)}.")
    drawn = tuple(map(row.drawn, rungs))
    if row.is_tuned and not row.searches("per_class") and any(number % count for number in drawn):
        raise InputError(
            f"{key}.adapter_scales: a study draws {listed(drawn)} images per class, and {count} scales do not divide "
            f"these; set models.{context.model_name}.tune.per_class to multiples of {count * (1 + row.copies)}."
        )


def _number_key(row: Recipe, key: str) -> str:
    """Return the key that gives the number of images of a row."""
    return "generate.per_class" if row.per_class is None else f"{key}.per_class"


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


def _check_losses(row: Recipe, key: str) -> None:
    for knob in ("preserve", "diversity"):
        if getattr(row, knob) is not None and not row.trains:
            raise InputError(f"{key}.{knob}: there is nothing that adapter: none trains; remove it.")
    if row.preserve is not None and row.asks_by_vectors:
        raise InputError(f"{key}.preserve: needs captions that name no class, and class_vector has none; remove it.")


_NAMED: Final = ("{class}", "{a class}")
_OF_TEMPLATES: Final = ("template", "description", "caption", "context")


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
    if not row.draws and (row.prompt in ASKED or row.templates or row.negative):
        raise InputError(
            f"{key}: origin: retrieval searches by one caption of each class; set prompt to template or label, and "
            "remove templates and negative."
        )
    for knob, file in (("descriptions", row.descriptions), ("captions", row.captions_file)):
        if file is not None and (not file.startswith(f"{PROMPTS}/") or ".." in file.split("/")):
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
        check_placeholders(template, f"{key}.templates")


def check_placeholders(text: str, where: str) -> None:
    """Refuse a text with a placeholder that nothing fills, since the generator would be asked with it as it stands.

    Raises:
        InputError: naming the place, the placeholder and the text.
    """
    other = next((found for found in re.findall(r"{[^{}]*}", text) if found not in _NAMED), None)
    if other is not None:
        raise InputError(f"{where}: {other} in {text!r} would stand in the prompt as it is; remove or correct it.")


def _check_negative(row: Recipe, key: str, context: Context) -> None:
    if row.negative is None:
        return
    if row.asks_by_vectors:
        raise InputError(f"{key}.negative: class vectors have no text to lead away from; remove it.")
    if row.guide == "other_class":
        raise InputError(f"{key}.negative: guide: other_class leads away from another class; remove one of them.")
    own, searched = row.sampler.guidance, None if row.search is None else row.search.guidance
    guidance = context.model.drawing(row.sampler.student).guidance if own is None else own
    if not searched and guidance == 1 and (own is not None or context.active):
        raise InputError(
            f"{key}.sampler.guidance: 1 is the prompt alone, so that negative has no part; set it above 1, or remove "
            "negative."
        )


def _check_init(row: Recipe, key: str) -> None:
    if row.starts_from_shots != (row.sampler.strength is not None):
        raise InputError(f"{key}.sampler.strength: belongs to init: image, which needs it.")


def _check_init_mix(row: Recipe, key: str) -> None:
    if row.init_mix is not None and not row.starts_from_shots:
        raise InputError(f"{key}.init_mix: belongs to init: image; remove it.")


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
    if own is None and context.active and context.model.drawing(row.sampler.student).guidance == 0:
        where = "student" if context.model.draws_by_student(row.sampler.student) else "generate"
        raise InputError(
            f"models.{context.model_name}.{where}.guidance: 0 draws every class of recipe {context.name} alike, since "
            "its prompt has no part; set it to 1, which is the prompt alone, or more."
        )


def _labels_reach_without_guidance(row: Recipe) -> bool:
    """Whether images depend on their class by their start, or by a U-Net of its own, even where the prompt does not."""
    own = row.has_adapter_per_class or row.has_adapter_per_shot
    return row.starts_from_shots or (own and row.unet is True and all(row.strengths))


def _check_student(row: Recipe, key: str, context: Context) -> None:
    own = row.sampler.student
    if not row.draws or not context.model.draws_by_student(own) or not (own or context.active):
        return
    where = f"{key}.sampler.student" if own else f"models.{context.model_name}.generate.student"
    if context.active and context.model.few_steps is None:
        raise InputError(
            f"{where}: models.{context.model_name}.student names no network that draws in a few steps; name one, or "
            "set this to false."
        )
    if row.trains_unet:
        raise InputError(
            f"{where}: adapter: unet trains the base's own U-Net, which no student takes; set {key}.sampler.student to "
            "false."
        )


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
    guidance = context.model.drawing(row.sampler.student).guidance if own is None else own
    if own is None and not context.active:
        return
    # A pull needs no unconditional half.
    if (row.guide in ("base", "other_class") or (row.guide_until and not row.pulls)) and not searched and guidance == 1:
        raise InputError(
            f"{key}.sampler.guidance: 1 is the prompt alone, so that guide has no part; set it above or below 1."
        )


def _check_filter(row: Recipe, key: str, context: Context) -> None:
    if row.filters and not row.draws:
        raise InputError(f"{key}.filter: origin: retrieval draws no candidates; remove it.")
    if row.filter_tries is not None and not row.filters:
        raise InputError(f"{key}.filter_tries: belongs to a filter; remove it, or name one.")
    fewest = row.search.per_class.low if row.search is not None and row.search.per_class is not None else None
    if fewest is not None and row.first and row.drawn(int(fewest)) <= row.first:
        raise InputError(
            f"{key}.search.per_class.low: the first {row.first} images of a class teach the filter; give more."
        )
    if row.first_round is not None and row.filter != "entropy":
        raise InputError(f"{key}.first_round: belongs to filter: entropy; remove it.")
    if context.active and row.first and row.drawn(context.per_class) <= row.first:
        raise InputError(
            f"{key}.first_round: the first {row.first} images of a class teach the filter, and no more are drawn; "
            f"lower it, or raise {_number_key(row, key)}."
        )


_WHOLE: Final = ("steps", "epochs", "per_class")
HIGHEST: Final = {
    **{"steps": 1000, "guidance": 50, "strength": 1, "epoch": 1, "adapter_scales": 2, "guide_until": 1},
    **{"real_weight": 1, "finish_on_real": 0.99, "nearness": 5},
}
_LOWEST: Final = {"nearness": -5}  # of other knobs 0
_CHOICES: Final = ("scheduler", "guide", "filter")  # knobs that are searched among names


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
        if knob == "adapter_scales" and not row.trains_lora:
            raise InputError(f"{key}.search.adapter_scales: only adapter: lora has a strength; remove it.")
        if knob in BESIDE_SHOTS and context.active and not context.gains:
            raise InputError(
                f"{key}.search.{knob}: needs tune.objectives: gain; CAS is of classifiers that learn from synthetic "
                "images alone."
            )
        if knob in _CHOICES:
            names = getattr(search, knob)
            if len(set(names)) < 2 or len(set(names)) < len(names):
                raise InputError(f"{key}.search.{knob}: name at least two, and each once.")
            for name in names if knob != "scheduler" else ():
                _check_choice(row, key, knob, name, context)
            continue
        _check_span(getattr(search, knob), knob, f"{key}.search.{knob}", context)


def _check_choice(row: Recipe, key: str, knob: str, name: str, context: Context) -> None:
    """Check the row that a choice of a study would make.

    Raises:
        InputError: naming the choice.
    """
    assert row.search is not None
    rest = dataclasses.replace(row.search, guide=None, filter=None)
    changed: dict[str, Any] = {knob: name, "search": rest if rest.knobs else None}
    try:
        check(dataclasses.replace(row, **changed), context)
    except InputError as error:
        raise InputError(f"{key}.search.{knob}: {name} is not possible here. {error}") from error


def _check_span(span: Span, knob: str, key: str, context: Context) -> None:
    if (span.high is None) == (span.high_times_best is None):
        raise InputError(f"{key}: give either high or high_times_best.")
    if span.high_times_best is not None and context.active and not context.after:
        raise InputError(
            f"{key}.high_times_best: {context.name} starts from no other recipe's study; give high, or after."
        )
    least = _LOWEST.get(knob, 0)
    if span.low < least:
        raise InputError(f"{key}.low: expected a number of at least {least}, got {span.low:g}.")
    if span.high is not None and span.low >= span.high:
        raise InputError(f"{key}: low must be below high, got {span.low:g} and {span.high:g}.")
    if span.log and span.low <= 0:
        raise InputError(f"{key}.low: must be above 0 for log: true.")
    if knob in _WHOLE and (span.low != int(span.low) or span.low < 1 or (span.high or 1) != int(span.high or 1)):
        raise InputError(f"{key}: expected whole numbers of at least 1.")
    if knob == "epoch" and span.log:
        raise InputError(f"{key}.log: weights are kept at even distances; remove it.")
    if (span.high or 0) > HIGHEST.get(knob, float("inf")):
        raise InputError(f"{key}.high: expected a number of at most {HIGHEST[knob]}, got {span.high:g}.")


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
        gains: whether studies score what images add to the shots.
    """

    name: str
    active: bool
    after: bool
    per_class: int
    model_name: str
    model: Model
    gains: bool


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
    _check_student(row, key, context)
    _check_guide(row, key, context)
    _check_filter(row, key, context)
    _check_origin(row, key)
    _check_search(row, key, context)
