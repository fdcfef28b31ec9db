"""The whole of ``params.yaml``: its sections, and values that follow from several of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from dreamset.core.strict import EMPTY, Range
from dreamset.params.knobs import OF_CLASSIFIERS, strength_by_shots
from dreamset.params.model import AdaptSchedule, Model, Sampler
from dreamset.params.recipe import Recipe
from dreamset.params.sections import (
    Adapt,
    Compute,
    Deliver,
    Evaluate,
    Expect,
    Generate,
    Prepare,
    Report,
    Track,
    Train,
    Tune,
)
from dreamset.params.values import Count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The same number for each class, all images, or a number for each class by name.
Shots = Count | Literal["all"] | dict[str, Count]


AUTO: Final = "auto"  # of ``primary``: ``expect`` decides, see ``dreamset.data.primary``

# Keys that differ between the cells of a table, keys that change no number of theirs, and rows that they do not use.
_NO_SETTING: Final = (
    "shots",
    "seed",
    "active",
    "primary",
    "accept_licence",
    "compute",
    "deliver",
    "expect",
    "report",
    "track",
    "models",
    "after",
    "tune",
)

# Keys of ``tune`` that decide what a study chooses; the others say where it runs.
_CHOOSING: Final = ("trials", "sampler", "pruner", "objectives", "rescored", "max_seconds_per_image", "max_fid")


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
    compute: Compute
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

    def of(self, arm: str) -> Params:
        """Return a copy in which an arm's own ``per_class``, ``real_weight`` and the like are those of all.

        They move out of its row, so that whoever changes what all have changes it for this arm, too.

        Args:
            arm: a row of ``recipes``; of the real images nothing changes.
        """
        row = self.recipes.get(arm)
        given = {name: getattr(row, name) for name in OF_CLASSIFIERS if getattr(row, name, None) is not None}
        if row is None or (not given and row.per_class is None):
            return self
        generate = self.generate
        if row.per_class is not None:
            generate = dataclasses.replace(generate, per_class=row.per_class)
        plain = dataclasses.replace(row, per_class=None, real_weight=None, finish_on_real=None, nearness=None)
        return dataclasses.replace(
            self,
            train=dataclasses.replace(self.train, **given),
            generate=generate,
            recipes=self.recipes | {arm: plain},
        )

    @property
    def scales(self) -> tuple[int, ...]:
        """The sizes of the synthetic sets that measure CAS, as rising multiples of the number of shots."""
        return (1,) if self.train.scales == "ravuri_vinyals" else self.train.scales

    def synthetic_per_class(self, real: Sequence[int]) -> tuple[int, ...]:
        """Return the number of synthetic images to make, by label: those to train on, or more if ``scales`` need more.

        Args:
            real: the number of shots, by label.
        """
        most = max(self.scales, default=0)
        return tuple(max(count, most * shots) for count, shots in zip(self.training_per_class(real), real, strict=True))

    def training_per_class(self, real: Sequence[int]) -> tuple[int, ...]:
        """Return the number of synthetic images, by label, that every run without a scale learns from: the first ones.

        With ``balance`` every class has as many shots and synthetic images together.

        Args:
            real: the number of shots, by label.
        """
        if self.generate.per_class != "balance":
            return (self.per_class,) * len(real)
        return tuple(self.per_class + max(real) - count for count in real)

    def drawn_per_class(self, recipe: str, real: Sequence[int]) -> tuple[int, ...]:
        """Return the number of images that ``recipe`` draws, by label; its copies make up the rest of the dataset.

        Args:
            recipe: a row of ``recipes``.
            real: the number of shots, by label.
        """
        return tuple(map(self.recipes[recipe].drawn, self.of(recipe).synthetic_per_class(real)))

    def taken_per_class(self, real: Sequence[int]) -> tuple[int, ...] | None:
        """Return the most images of a dataset, by label, that every run without a scale learns from.

        None means all that are there: of a budget it is known only afterwards how many fit.
        """
        return None if self.generate.budget_s is not None else self.training_per_class(real)

    def shots_of(self, class_name: str) -> int | None:
        """Return the number of shots of a class; None means all images."""
        if isinstance(self.shots, dict):
            return self.shots[class_name]
        return None if self.shots == "all" else self.shots

    def selection_of(self, class_name: str) -> int:
        """Return the number of labelled images of a class, beside the shots, that choose steps and configurations."""
        rule, _, count = self.selection.partition(":")
        shots = self.shots_of(class_name)
        if rule == "coop":
            return 4 if shots is None else min(shots, 4)
        return int(count or 0)

    @property
    def primary_recipe(self) -> str:
        """The active recipe that the verdict is about; ``auto`` has to be settled before."""
        assert self.primary != AUTO
        adapted = [name for name in self.active if self.recipes[name].trains]
        return next(name for name in (self.primary, *adapted, *self.active) if name in self.active)

    @property
    def delivered_alone(self) -> tuple[str, ...]:
        """The trained classifiers that may be delivered as they learned from the real images alone.

        Beside the verdict's these are the ones with pretrained weights, for which few shots are enough.
        """
        train = self.base.train
        pretrained = [name for name in self.train.classifiers if name not in train.from_scratch]
        return tuple(dict.fromkeys(name for name in (self.primary_classifier, *pretrained) if name in train.delivered))

    @property
    def primary_classifier(self) -> str:
        """The trained classifier that the verdict is about."""
        wanted = (self.base.train.deliver, *self.base.train.delivered)
        return next(name for name in wanted if name in self.train.classifiers)

    @property
    def used_classifiers(self) -> tuple[str, ...]:
        """The trained classifiers of a run: those of ``train``, and those that deliver and score trials."""
        return (*self.train.trained, self.base.train.deliver, self.base.tune.classifier)

    @property
    def sets_apart(self) -> bool:
        """Whether ``prepare`` sets selection images apart: ``fixed`` has none, and ``cv`` makes folds in ``train``."""
        return self.selection not in ("fixed", "cv")

    def setting(self, recipes: Iterable[str]) -> dict[str, Any]:
        """Return the settings that runs of several seeds and numbers of shots must share to stand in one table."""
        setting: dict[str, Any] = {name: value for name, value in to_dict(self).items() if name not in _NO_SETTING}
        base = to_dict(self.base)
        for name in ("smallest_gain", "worst_pairs", "slices"):
            del setting["evaluate"][name]
        # They change no other run. Older tables have no such key.
        del setting["train"]["simple"]
        if self.prepare.clip_templates is None:
            # Older tables have no such key.
            del setting["prepare"]["clip_templates"]
        del base["attributes"]  # nor this; ``making`` has it where it is read
        for name, row in self.base.train.rows.items():
            base["train"][name] = row.recorded()
            if row.later and name not in self.used_classifiers:
                del base["train"][name]  # nor these
        recipes = tuple(recipes)
        for name in {"image", "shared"} - {self.recipes[recipe].schedule for recipe in recipes}:
            del base["adapt"][name]  # nor these
        for name in ("invert", "crop", "autocontrast"):
            if not setting["prepare"][name]:
                del setting["prepare"][name]  # nor these
        if self.generate.budget_s is None:
            del setting["generate"]["budget_s"]
        if not self.train.nearness:
            del setting["train"]["nearness"]
        del setting["train"]["scaled"], setting["train"]["distillation"]  # they add runs and change no other
        if not self.train.finish_on_real:
            # ``making`` has the part where a row ends so.
            del setting["train"]["finish_on_real"], setting["train"]["finish_part"]
        del setting["generate"]["pack"]  # where images lie changes no number
        return setting | {"base": base, "recipes": {name: self.making(name) for name in recipes}}

    def lineage(self, recipe: str) -> tuple[str, ...]:
        """Return the recipes that ``recipe`` starts from, the first one first, and ``recipe`` itself."""
        parent = self.after.get(recipe)
        return (recipe,) if parent is None else (*self.lineage(parent), recipe)

    def steps_back(self, recipe: str) -> tuple[str, ...]:
        """Return the active recipes that are one step behind ``recipe``; the difference measures the step.

        They are its row without its study, its row with the adapter at full strength, and the recipe it starts from.
        """
        row, parent = self.recipes[recipe], self.after.get(recipe)
        before = [
            name
            for plain in row.plainer
            for name in self.active
            if self.recipes[name] == plain != row and self.after.get(name) == parent
        ]
        return (*before, *([] if parent is None else [parent]))

    def studying(self, recipe: str) -> dict[str, Any]:
        """Return all that the choice of a recipe's study depends on: as ``making``, without what no trial uses."""
        made, own, row = self.making(recipe), self.of(recipe), self.recipes[recipe]
        for one in made["rows"]:
            for knob in ("per_class", *OF_CLASSIFIERS):
                one.pop(knob, None)
        for key in ("real_weight", "finish_on_real", "finish_part", "nearness"):
            made.pop(key, None)
        train = own.train
        if self.tune.gains:
            made["real_weight"] = train.real_weight
            if train.finish_on_real or row.searches("finish_on_real"):
                made["finish_on_real"] = [train.finish_on_real, train.finish_part]
        if train.nearness:
            made["nearness"] = train.nearness
        if row.searches("per_class"):
            made["per_class"] = own.per_class
        return made

    def making(self, recipe: str) -> dict[str, Any]:
        """Return all that the images of ``recipe`` depend on: its row, those it starts from, and studies."""
        rows = [self.recipes[name] for name in self.lineage(recipe)]
        studied = any(row.is_tuned for row in rows)
        made: dict[str, Any] = {
            "rows": [row.recorded() for row in rows],
            "tune": {key: getattr(self.tune, key) for key in _CHOOSING} if studied else None,
        }
        if studied and self.tune.gains:
            made["real_weight"] = self.train.real_weight
        if any(row.finish_on_real or row.searches("finish_on_real") for row in rows):
            made["finish_part"] = self.train.finish_part
        return made | ({"attributes": self.base.attributes} if any(row.reads_attributes for row in rows) else {})

    def sampler(self, recipe: str) -> Sampler:
        """Return the model's sampler with the overrides of ``recipe``."""
        overrides = self.recipes[recipe].sampler
        base = self.base.drawing(overrides.student)
        return Sampler(
            overrides.scheduler or base.scheduler,
            overrides.steps or base.steps,
            base.guidance if overrides.guidance is None else overrides.guidance,
            self._strength(overrides.strength),
            self.base.draws_by_student(overrides.student),
        )

    def draws_by_student(self, model: Model, also: str | None = None) -> bool:
        """Return whether an active recipe, or the one that is named, would draw with the student of a model."""
        rows = [self.recipes[name] for name in (*self.active, also) if name in self.recipes]
        return any(row.draws and model.draws_by_student(row.sampler.student) for row in rows)

    def drawn_licence(self, recipe: str) -> str:
        """Return the licence of the weights that draw the images of a recipe."""
        drawn = self.recipes[recipe].draws and self.sampler(recipe).student
        student = self.base.few_steps if drawn else None
        return student.licence if student else self.base.licence

    def _strength(self, given: float | str | None) -> float | None:
        if given is None or isinstance(given, float | int):
            return given
        shots = self.shots
        # Of unequal classes the smallest decides: nothing is kept more of than it allows.
        return strength_by_shots(shots if isinstance(shots, int) else None if shots == "all" else min(shots.values()))

    def schedule(self, recipe: str) -> AdaptSchedule:
        """Return the model's schedule for the adapter of ``recipe``, with the recipe's lr and epochs if it has any."""
        row = self.recipes[recipe]
        schedule = self.base.adapt.schedule(row.schedule)
        return dataclasses.replace(schedule, lr=row.lr or schedule.lr, epochs=row.epochs or schedule.epochs)

    def together(self, recipe: str) -> int:
        """Return the number of adapters of ``recipe`` that are trained at once.

        The model's row counts adapters of classes. Of others as many see as many images in a step.
        """
        row, adapt = self.recipes[recipe], self.base.adapt
        if row.has_adapter_per_class:
            return adapt.together
        if row.has_adapter_per_shot:
            return max(1, adapt.together * adapt.class_.batch // self.schedule(recipe).batch)
        return 1

    def with_values(self, recipe: str, values: Mapping[str, Any]) -> Params:
        """Return a copy with ``values`` for knobs of a recipe, or of its sampler; of ``adapter_scales`` one factor."""
        row = self.recipes[recipe]
        sampler = {name: value for name, value in values.items() if hasattr(row.sampler, name)}
        others = {name: value for name, value in values.items() if name not in sampler}
        if isinstance(factor := others.get("adapter_scales"), float):
            others["adapter_scales"] = (factor,)
        changed = dataclasses.replace(row, sampler=dataclasses.replace(row.sampler, **sampler), **others)
        return dataclasses.replace(self, recipes=self.recipes | {recipe: changed})


def to_dict(value: Any) -> Any:
    """Return dataclasses as plain mappings with the keys of ``params.yaml``, for printing, hashing and tracking."""
    return dataclasses.asdict(value, dict_factory=_mapping)


def _mapping(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a dataclass, with the rows of ``ModelTrain.rows`` beside the others, as in the file."""
    fields = dict(items)
    rows: dict[str, Any] = fields.pop("rows", {})
    return fields | rows
