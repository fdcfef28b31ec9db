"""Rules that tie keys of ``params.yaml`` to one another; the rules within a recipe stand in ``knob_rules``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError
from dreamset.core.strict import listed, meant, one_of
from dreamset.params import knob_rules
from dreamset.params.model import Epochs
from dreamset.params.sections import GROUP
from dreamset.params.tree import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dreamset.params.tree import Params

# Names that the results use for something else than a recipe.
_TAKEN: Final = ("real", "real_strong", "real_more", "both_strong", "zero_shot", "auto")
_SELECTION: Final = re.compile(r"fixed|holdout|cv|coop|extra:[1-9][0-9]{0,5}")


def check_retrieval(params: Params, recipe: str) -> None:
    """Fail if a recipe retrieves its images and the model's row has no source to retrieve from.

    Raises:
        InputError: one sentence naming the key of the row.
    """
    if not params.recipes[recipe].draws and params.base.retrieval is None:
        raise InputError(
            f"models.{params.model}.retrieval: is null, so recipe {recipe} has nothing to retrieve from; give "
            "imagefolder:PATH, or take it out of active."
        )


def check_start(params: Params, recipe: str) -> None:
    """Fail if a recipe conditions its U-Net by class vectors and starts from no recipe that trains them.

    Raises:
        InputError: one sentence naming the row and the mend.
    """
    if not params.recipes[recipe].needs_vectors_of_another:
        return
    parent = params.recipes.get(params.after.get(recipe, ""))
    if parent is None or not parent.trains_class_encoder:
        raise InputError(
            f"recipes.{recipe}: has no class encoder to start from; take it out of active, and say after: {{{recipe}: "
            "class_encoder}."
        )


def check(params: Params) -> None:
    """Check every rule that ties keys to one another.

    Raises:
        InputError: one sentence naming the key and the mend.
    """
    for sentence in problems(params):
        raise InputError(sentence)


def problems(params: Params) -> Iterator[str]:
    """Yield the sentence of each group of rules that the parameters break.

    Where a name is unknown, the other rules are left for later, because they look up what it names.
    """
    free = (_check_recipes, _check_models, _check_prepare, _check_attributes)
    for group in (_check_names, *free, _check_classifiers, _check_selection):
        try:
            group(params)
        except InputError as error:
            yield str(error)
            if group not in free:
                return


def _check_names(params: Params) -> None:
    """Check that the rows that are named exist."""
    if params.model not in params.models:
        near = meant(params.model, params.models)
        raise InputError(f"model: no row {params.model!r} in models{near}; there are {listed(params.models)}.")
    if not params.active:
        raise InputError("active: names no recipe; name at least one row of recipes.")
    own = params.active[: len(params.active) - len(params.after)]  # what `after` names joined the end of `active`
    for number, name in enumerate(own):
        if name in own[:number]:
            raise InputError(f"active: names {name} twice; name each recipe once.")
        if name in params.after:
            raise InputError(f"active: names {name}, which `after` runs, too; take it out of active.")
    for number, name in enumerate(params.active):
        if name not in params.recipes:
            near, key = meant(name, params.recipes), "active" if number < len(own) else "after"
            raise InputError(f"{key}: no row {name!r} in recipes{near}; there are {listed(params.recipes)}.")
    if params.primary not in (*params.recipes, AUTO):
        near, names = meant(params.primary, (*params.recipes, AUTO)), listed((*params.recipes, AUTO))
        raise InputError(f"primary: no row {params.primary!r} in recipes{near}; there are {names}.")
    for name, parent in params.after.items():
        if parent == name:
            raise InputError(f"after.{name}: starts from itself; name the recipe that it starts from.")
        if parent not in params.active[: params.active.index(name)]:
            mend = f"write {parent} above {name} in after" if parent in params.after else "put it into active"
            if parent in params.after and _circular(params.after, name):
                mend = "they start from each other, so name another recipe for one of them"
            raise InputError(f"after.{name}: {parent!r} is not active before it; {mend}.")


def _circular(after: Mapping[str, str], name: str) -> bool:
    """Return whether a recipe starts, over others, from itself."""
    parents: list[str] = []
    while (parent := after.get(parents[-1] if parents else name)) is not None and parent not in parents:
        parents.append(parent)
    return name in parents


def _check_recipes(params: Params) -> None:
    """Check the names of recipes, and the rules within each."""
    for name, recipe in params.recipes.items():
        if not name.replace("_", "").isalnum() or not name.isascii() or name in _TAKEN:
            raise InputError(
                f"recipes.{name}: is not a name; use ASCII letters, digits and _, and none of {listed(_TAKEN)}."
            )
        if name in params.active:
            check_row(params, name)
        else:
            knob_rules.check(recipe, _context(params, name, active=False))


def check_row(params: Params, recipe: str) -> None:
    """Check everything that ties a row that is run to other parameters; a verb may name one that is not active.

    Raises:
        InputError: one sentence naming the key and the mend.
    """
    row = params.recipes[recipe]
    check_retrieval(params, recipe)
    check_start(params, recipe)
    knob_rules.check(row, _context(params, recipe, active=True))
    if params.generate.budget_s is not None and row.first:
        raise InputError(
            f"generate.budget_s: recipes.{recipe}.filter: {row.filter} needs a number of images; "
            f"set generate.budget_s to null, or another recipes.{recipe}.filter."
        )


def _context(params: Params, recipe: str, *, active: bool) -> knob_rules.Context:
    after = recipe in params.after
    own = params.of(recipe)
    return knob_rules.Context(recipe, active, after, own.per_class, params.model, params.base, params.tune.gains)


def _check_selection(params: Params) -> None:
    """Check what is trained, what selects, and what a study needs."""
    if len(set(params.train.classifiers)) < len(params.train.classifiers) or not params.train.classifiers:
        raise InputError("train.classifiers: name at least one classifier, and each once.")
    delivered = params.base.train.delivered
    if not set(delivered) & set(params.train.classifiers):
        raise InputError(f"train.classifiers: name one of {listed(delivered)}, which are what can be delivered.")
    if len(set(params.train.baselines)) < len(params.train.baselines):
        raise InputError("train.baselines: names a classifier twice; name each once.")
    if len(set(params.train.simple)) < len(params.train.simple):
        raise InputError("train.simple: names features twice; name each once.")
    if not _SELECTION.fullmatch(params.selection):
        raise InputError(
            f"selection: expected fixed, holdout, cv, coop or extra:N with N of at least 1, got {params.selection!r}"
            f"{meant(params.selection, ('fixed', 'holdout', 'cv', 'coop', 'extra:4'))}."
        )
    if params.selection == "fixed" and params.train.configurations > 1:
        raise InputError(
            f"train.configurations: {params.train.configurations} cannot be chosen among with selection: fixed; set it "
            "to 1, or selection to holdout, cv, coop or extra:N."
        )
    _check_scratch(params)
    _check_budget(params)
    if params.compute.store is not None and "://" not in params.compute.store:
        raise InputError("compute.store: expected a URL such as s3://BUCKET/FOLDER, or null.")
    if "://" not in params.tune.storage:
        # The message does not repeat the value: it may be part of an address, with a password.
        raise InputError("tune.storage: expected a URL such as sqlite:///studies.db.")
    if params.tune.grace_s <= params.tune.heartbeat_s:
        raise InputError("tune.grace_s: must be above tune.heartbeat_s, or workers that live are taken for dead.")


def _check_budget(params: Params) -> None:
    """Check that nothing asks for a number of images that a budget may not reach."""
    _check_distillation(params)
    rows = {name: params.recipes[name] for name in params.active if name in params.recipes}
    searching = [name for name, row in rows.items() if row.searches("per_class")]
    if searching and (params.generate.budget_s is not None or params.generate.per_class == "balance"):
        key = "budget_s" if params.generate.budget_s is not None else "per_class: balance"
        raise InputError(
            f"recipes.{searching[0]}.search.per_class: a study needs a number of images to compare with, and generate."
            f"{key} gives none; set generate.{key.partition(':')[0]} to null, or search something else."
        )
    if params.generate.budget_s is None:
        return
    if params.generate.per_class == "balance":
        raise InputError(
            "generate.budget_s: draws equally many images of each class, and per_class: balance unequal numbers; set "
            "per_class to null, or budget_s."
        )
    if params.scales:
        raise InputError(
            f"train.scales: {listed(params.scales)} times the shots may be more images than fit into "
            "generate.budget_s; set scales to [], or budget_s to null."
        )


def _check_models(params: Params) -> None:
    """Check the rows of models."""
    for name, model in params.models.items():
        for key, steps in (
            ("tune", model.tune.steps),
            *((f"train.{c}", row.steps) for c, row in model.train.rows.items()),
        ):
            if isinstance(steps, Epochs) and steps.low > steps.high:
                raise InputError(
                    f"models.{name}.{key}.steps: expected low of at most high, got {steps.low} and {steps.high}."
                )
        rungs = model.tune.per_class
        if not rungs or list(rungs) != sorted(set(rungs)):
            raise InputError(f"models.{name}.tune.per_class: expected rising numbers, got {list(rungs)}.")
        # Then a decimal number can name the share of every place.
        if 1000 % model.adapt.kept:
            raise InputError(f"models.{name}.adapt.kept: must divide 1000, such as 10 or 50, got {model.adapt.kept}.")
        if model.resolution % 8:
            raise InputError(f"models.{name}.resolution: must be divisible by 8, got {model.resolution}.")
        kind, _, folder = (model.retrieval or "glyphs").partition(":")
        if (kind, bool(folder)) not in {("glyphs", False), ("imagefolder", True)}:
            raise InputError(
                f"models.{name}.retrieval: expected glyphs, imagefolder:PATH or null, got {model.retrieval!r}."
            )


def _check_prepare(params: Params) -> None:
    """Check how the images are prepared."""
    if params.prepare.few_shot is not None and not isinstance(params.shots, int):
        raise InputError("prepare.few_shot: such a file holds one number of images per class; set shots to it.")
    window = params.prepare.window
    if window is not None and (len(window) != 2 or window[0] >= window[1]):
        raise InputError(f"prepare.window: expected [low, high] with low below high, got {list(window)}.")
    template = params.prepare.template
    if template is not None and not _holds_a_class(template):
        raise InputError(f"prepare.template: must hold {{class}} exactly once, or {{a class}}, got {template!r}.")
    if template is not None:
        knob_rules.check_placeholders(template, "prepare.template")
    given = params.prepare.clip_templates
    for template in () if given is None else given or ("",):
        if not _holds_a_class(template):
            raise InputError(f"prepare.clip_templates: each must hold {{class}} exactly once, got {list(given or ())}.")
        knob_rules.check_placeholders(template, "prepare.clip_templates")


def _check_attributes(params: Params) -> None:
    """Check that every group of words has words to choose among, and that accuracy is sliced by groups that exist."""
    for name, model in params.models.items():
        for group, words in (model.attributes or {}).items():
            if len(set(words)) < max(2, len(words)):
                raise InputError(
                    f"models.{name}.attributes.{group}: expected two or more words, each once, got {list(words)}; the "
                    "word none says nothing."
                )
    for group in params.evaluate.slices:
        one_of(group, (*(params.base.attributes or {}), GROUP), "evaluate.slices")


def _holds_a_class(template: str) -> bool:
    """Return whether a caption holds the class's name once, with or without its article."""
    return template.count("{class}") + template.count("{a class}") == 1


def _check_classifiers(params: Params) -> None:
    """Check that named classifiers exist, and that those that measure CAS are trained from scratch."""
    for key in ("classifiers", "baselines"):
        for index, name in enumerate(getattr(params.train, key)):
            one_of(name, params.base.train.rows, f"train.{key}[{index}]")
    for name, model in params.models.items():
        one_of(model.tune.classifier, model.train.from_scratch, f"models.{name}.tune.classifier")


def _check_distillation(params: Params) -> None:
    """Check that the scores of distillation compare sets whose size is known, and all shots."""
    if not params.train.distillation:
        return
    for key, bad in (
        ("generate.budget_s", params.generate.budget_s is not None),
        ("selection: cv", params.selection == "cv"),
        ("evaluate.protocol: cv", params.evaluate.protocol == "cv"),
    ):
        if bad:
            why = "gives no number of images" if key == "generate.budget_s" else "learns from fewer shots in its folds"
            raise InputError(f"train.distillation: {key} {why}; change that, or set train.distillation to false.")


def _check_scratch(params: Params) -> None:
    """Check the rules of classifiers that are trained from scratch, and of the sizes of their training sets."""
    if list(params.scales) != sorted(set(params.scales)):
        raise InputError(f"train.scales: expected rising numbers, got {list(params.scales)}.")
    trained = set(params.train.trained)
    if not params.train.scaled or len(set(params.train.scaled)) < len(params.train.scaled):
        raise InputError("train.scaled: name synthetic, both, or each once.")
    trained |= {params.base.tune.classifier} if params.scales or params.train.distillation else set()
    for name in sorted(trained):
        plateau = getattr(params.base.train.rows[name], "schedule", None) == "plateau"
        if plateau and not params.sets_apart:
            raise InputError(
                f"models.{params.model}.train.{name}.schedule: plateau goes by images that are set apart, and "
                f"selection: {params.selection} sets none; set it to cosine, or selection to holdout, coop or extra:N."
            )
    rows = {name: params.recipes[name] for name in params.active if name in params.recipes}
    ending = ["train.finish_on_real"] if params.train.finish_on_real else []
    ending += [f"recipes.{name}.finish_on_real" for name, row in rows.items() if row.finish_on_real]
    ending += [f"recipes.{name}.search.finish_on_real" for name, row in rows.items() if row.searches("finish_on_real")]
    sized = {params.base.tune.classifier} if params.scales and "both" in params.train.scaled else set[str]()
    for name in dict.fromkeys((*params.train.classifiers, *sized)) if ending else ():
        row = params.base.train.rows[name]
        if getattr(row, "schedule", None) == "plateau":
            raise InputError(
                f"{ending[0]}: {name} ends when its plateau says so, so it has no last steps; set "
                f"models.{params.model}.train.{name}.schedule to cosine, or leave finish_on_real out."
            )
        if params.train.finish_part == "head" and not row.has_head:
            raise InputError(
                f"train.finish_part: {name} has no last layer that learns; set it to whole, or take {name} out of "
                "train.classifiers."
            )
