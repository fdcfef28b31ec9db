"""What must hold between the keys of ``params.yaml``; what each of them may be by itself stands in ``params``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.strict import listed
from dreamset.params.model import DELIVERED
from dreamset.params.recipe import SamplerOverrides

if TYPE_CHECKING:
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe, Span

# Names of what is no recipe, beside the recipes' own.
_TAKEN: Final = ("real", "real_strong", "real_more", "both_strong", "zero_shot")
_KNOBS: Final = {  # of each adapter, all needed
    "lora": ("scope", "rank", "alpha", "unet", "text_encoder"),
    "class_encoder": ("context_length", "unconditional", "class_dropout"),
}
_SELECTION: Final = re.compile(r"fixed|holdout|cv|coop|extra:[1-9][0-9]{0,5}")


def check_retrieval(params: Params, recipe: str) -> None:
    """Fail on a recipe that finds its images where the model's row says of no place to look.

    Raises:
        InputError: naming the key of the row.
    """
    if params.recipes[recipe].origin == "retrieval" and params.base.retrieval is None:
        raise InputError(
            f"models.{params.model}.retrieval: is null, so recipe {recipe} has nothing to retrieve from; give "
            "imagefolder:PATH, or take it out of active."
        )


def check_start(params: Params, recipe: str) -> None:
    """Fail on a U-Net that is to be conditioned by class vectors where no recipe before it trains any.

    Raises:
        InputError: naming the row, and what to say in ``after``.
    """
    row = params.recipes[recipe]
    if row.adapter != "unet" or row.prompt != "class_vector":
        return
    parent = params.recipes.get(params.after.get(recipe, ""))
    if parent is None or parent.adapter != "class_encoder":
        raise InputError(
            f"recipes.{recipe}: has no class encoder to start from; take it out of active, and say after: {{{recipe}: "
            "class_encoder}."
        )


def check(params: Params) -> None:
    """Rules that tie keys to one another.

    Raises:
        InputError: one sentence naming the key and the mend.
    """
    if params.model not in params.models:
        raise InputError(f"model: no row {params.model!r} in models; there are {listed(params.models)}.")
    if not params.active:
        raise InputError("active: names no recipe; name at least one row of recipes.")
    if len(set(params.active)) < len(params.active):
        raise InputError("active: names a recipe twice; name each once.")
    for name in params.active:
        if name not in params.recipes:
            raise InputError(f"active: no row {name!r} in recipes; there are {listed(params.recipes)}.")
    if params.primary not in params.recipes:
        raise InputError(f"primary: no row {params.primary!r} in recipes; there are {listed(params.recipes)}.")
    for name, parent in params.after.items():
        if parent not in params.active[: params.active.index(name)]:
            raise InputError(f"after.{name}: {parent!r} is not active before it; put it into active.")
    for name, recipe in params.recipes.items():
        if not name.replace("_", "").isalnum() or not name.isascii() or name in _TAKEN:
            raise InputError(
                f"recipes.{name}: is not a name; use ASCII letters, digits and _, and none of {listed(_TAKEN)}."
            )
        for adapter, knobs in _KNOBS.items():
            for knob in knobs:
                given = getattr(recipe, knob) is not None
                if given != (recipe.adapter == adapter):
                    verb = (
                        f"belongs only to adapter: {adapter}; remove it"
                        if given
                        else f"is missing; adapter: {adapter} needs it"
                    )
                    raise InputError(f"recipes.{name}.{knob}: {verb}.")
        _check_recipe(params, name, recipe)
        if recipe.origin == "retrieval" and (recipe.adapter != "none" or recipe.sampler != SamplerOverrides()):
            raise InputError(
                f"recipes.{name}: origin: retrieval draws nothing; set adapter to none and sampler to {{}}."
            )
        if name in params.active:
            check_retrieval(params, name)
            check_start(params, name)
        if recipe.adapter == "lora" and not (recipe.unet or recipe.text_encoder):
            raise InputError(f"recipes.{name}: adapts nothing; set unet or text_encoder to true.")
    if len(set(params.train.classifiers)) < len(params.train.classifiers) or not params.train.classifiers:
        raise InputError("train.classifiers: name at least one classifier, and each once.")
    if not set(DELIVERED) & set(params.train.classifiers):
        raise InputError(f"train.classifiers: name one of {listed(DELIVERED)}, which are what can be delivered.")
    if len(set(params.train.baselines)) < len(params.train.baselines):
        raise InputError("train.baselines: names a classifier twice; name each once.")
    if not _SELECTION.fullmatch(params.selection):
        raise InputError(
            f"selection: expected fixed, holdout, cv, coop or extra:N with N of at least 1, got {params.selection!r}."
        )
    if params.selection == "fixed" and params.train.configurations > 1:
        raise InputError(
            f"train.configurations: {params.train.configurations} cannot be chosen among with selection: fixed; set it "
            "to 1, or selection to holdout, cv, coop or extra:N."
        )
    _check_scratch(params)
    if "://" not in params.tune.storage:
        # What stands there may be half an address, with a password.
        raise InputError("tune.storage: expected a URL such as sqlite:///studies.db.")
    if params.tune.grace_s <= params.tune.heartbeat_s:
        raise InputError("tune.grace_s: must be above tune.heartbeat_s, or workers that live are taken for dead.")
    for name, model in params.models.items():
        rungs = model.tune.per_class
        if not rungs or list(rungs) != sorted(set(rungs)):
            raise InputError(f"models.{name}.tune.per_class: expected rising numbers, got {list(rungs)}.")
        # So that every place is a share that a decimal number can say.
        if 1000 % model.adapt.kept:
            raise InputError(f"models.{name}.adapt.kept: must divide 1000, such as 10 or 50, got {model.adapt.kept}.")
        if model.resolution % 8:
            raise InputError(f"models.{name}.resolution: must be divisible by 8, got {model.resolution}.")
        kind, _, folder = (model.retrieval or "glyphs").partition(":")
        if (kind, bool(folder)) not in {("glyphs", False), ("imagefolder", True)}:
            raise InputError(
                f"models.{name}.retrieval: expected glyphs, imagefolder:PATH or null, got {model.retrieval!r}."
            )
    if params.prepare.few_shot is not None and not isinstance(params.shots, int):
        raise InputError("prepare.few_shot: such a file holds one number of images per class; set shots to it.")
    window = params.prepare.window
    if window is not None and (len(window) != 2 or window[0] >= window[1]):
        raise InputError(f"prepare.window: expected [low, high] with low below high, got {list(window)}.")
    template = params.prepare.template
    if template is not None and template.count("{class}") != 1:
        raise InputError(f"prepare.template: must hold {{class}} exactly once, got {template!r}.")


def _check_scratch(params: Params) -> None:
    """What holds for classifiers that are trained from scratch, and for the sizes of the sets that they learn from."""
    if list(params.scales) != sorted(set(params.scales)):
        raise InputError(f"train.scales: expected rising numbers, got {list(params.scales)}.")
    trained = {*params.train.classifiers, *params.train.baselines}
    trained |= {params.base.tune.classifier} if params.scales else set()
    for name in sorted(trained):
        plateau = getattr(getattr(params.base.train, name), "schedule", None) == "plateau"
        if plateau and not params.sets_apart:
            raise InputError(
                f"models.{params.model}.train.{name}.schedule: plateau goes by images that are set apart, and "
                f"selection: {params.selection} sets none; set it to cosine, or selection to holdout, coop or extra:N."
            )


def _check_recipe(params: Params, name: str, recipe: Recipe) -> None:
    """What holds within a row, between its adapter, its start and its search."""
    key = f"recipes.{name}"
    trained = recipe.adapter != "none"
    for knob in ("epoch", "lr", "epochs"):
        if getattr(recipe, knob) is not None and not trained:
            raise InputError(f"{key}.{knob}: there is nothing that adapter: none trains; remove it.")
    kept = params.base.adapt.kept
    if recipe.epoch is not None and abs(recipe.epoch * kept - round(recipe.epoch * kept)) > 1e-6:
        raise InputError(
            f"{key}.epoch: no weights are kept after {recipe.epoch:g} of the training; give a multiple of "
            f"{1 / kept:g}, or change models.{params.model}.adapt.kept ({kept})."
        )
    if recipe.adapter_scales is not None:
        if recipe.adapter != "lora":
            raise InputError(f"{key}.adapter_scales: only adapter: lora has a strength; remove it.")
        if not any(recipe.adapter_scales):
            raise InputError(f"{key}.adapter_scales: name at least one above 0, or set adapter to none.")
        _check_turns(params, name, len(recipe.adapter_scales))
    if recipe.prompt == "class_vector" and recipe.adapter not in ("class_encoder", "unet"):
        raise InputError(f"{key}.prompt: class_vector needs adapter: class_encoder, or unet after such a recipe.")
    if recipe.adapter == "class_encoder" and recipe.prompt != "class_vector":
        raise InputError(f"{key}.prompt: must be class_vector with adapter: class_encoder.")
    if recipe.unconditional == "learned" and not recipe.class_dropout:
        raise InputError(f"{key}.class_dropout: unconditional: learned needs it above 0, such as 0.1.")
    if (recipe.init == "image") != (recipe.sampler.strength is not None):
        raise InputError(f"{key}.sampler.strength: belongs to init: image, which needs it.")
    search = recipe.search
    if search is None:
        return
    if not search.knobs:
        raise InputError(f"{key}.search: names no knob; remove it, or search guidance, steps, ...")
    if recipe.origin == "retrieval":
        raise InputError(f"{key}.search: origin: retrieval draws nothing that could be tuned; remove it.")
    for knob in search.knobs:
        if knob in ("epoch", "lr", "epochs") and not trained:
            raise InputError(f"{key}.search.{knob}: there is nothing that adapter: none trains; remove it.")
        if knob == "strength" and recipe.init != "image":
            raise InputError(f"{key}.search.strength: needs init: image.")
        if knob == "scheduler":
            if len(set(search.scheduler or ())) < 2:
                raise InputError(f"{key}.search.scheduler: name at least two, and each once.")
            continue
        _check_span(params, name, knob, getattr(search, knob))


def _check_turns(params: Params, name: str, count: int) -> None:
    """Each strength of an adapter has its turn in a data set, and in what a study looks at of it."""
    if name in params.active and params.per_class < count:
        raise InputError(
            f"recipes.{name}.adapter_scales: {count} scales need as many images; raise generate.per_class."
        )
    rungs = params.base.tune.per_class
    if params.recipes[name].search is not None and any(rung % count for rung in rungs):
        raise InputError(
            f"recipes.{name}.adapter_scales: a study draws {listed(rungs)} images per class, and {count} "
            f"scales do not divide these; set models.{params.model}.tune.per_class to multiples of {count}."
        )


def _check_span(params: Params, name: str, knob: str, span: Span) -> None:
    key = f"recipes.{name}.search.{knob}"
    if (span.high is None) == (span.high_times_best is None):
        raise InputError(f"{key}: give either high or high_times_best.")
    if span.high_times_best is not None and name in params.active and name not in params.after:
        raise InputError(f"{key}.high_times_best: {name} starts from no other recipe's study; give high, or after.")
    if span.high is not None and span.low >= span.high:
        raise InputError(f"{key}: low must be below high, got {span.low:g} and {span.high:g}.")
    if span.log and span.low <= 0:
        raise InputError(f"{key}.low: must be above 0 for log: true.")
    whole = knob in ("steps", "epochs")
    if whole and (span.low != int(span.low) or span.low < 1 or (span.high or 1) != int(span.high or 1)):
        raise InputError(f"{key}: expected whole numbers of at least 1.")
    if knob == "epoch" and span.log:
        raise InputError(f"{key}.log: weights are kept at even distances; remove it.")
    limits = {"steps": 1000, "guidance": 50, "strength": 1, "epoch": 1}
    if (span.high or 0) > limits.get(knob, float("inf")):
        raise InputError(f"{key}.high: expected a number of at most {limits[knob]}, got {span.high:g}.")
