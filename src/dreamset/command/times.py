"""How long the work of a stage takes here, and where that is known from.

A stage that has done its work records its seconds in ``.dreamset/times.json``, with a hash of the machine and of the
settings that the cost depends on. A later estimate takes such a record, in proportion to the work. Without one it
multiplies five timed steps, which are kept in the same file. It never takes a record of another machine or model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dreamset.command import counts
from dreamset.command.timed_steps import Timed, machine, needed, read, trained_as, write
from dreamset.core.errors import InputError
from dreamset.core.files import digest
from dreamset.data import folds as dividing
from dreamset.data import primary, splits
from dreamset.data.runs import REAL, runs
from dreamset.params import to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

STEPS: Final = "five timed steps"
START: Final = "a timed start"
BUDGET: Final = "generate.budget_s"
_UNITS: Final = {"adapt": ("steps",), "tune": ("trials",), "generate": ("images drawn", "images")}
_DONE: Final = 0.7  # share of its own seconds that a stage must have been at work for its record to count
_GRID: Final = 10  # classes on a sample grid, at most
_FEW: Final = 3.0  # seconds of a stage that only reads and writes a few files, beside its start


@dataclass(frozen=True)
class Estimate:
    """Seconds, and where they are from.

    Attributes:
        seconds: of the stage by itself; None: not known.
        source: "measured here on DATE", "five timed steps", or why it is not known.
    """

    seconds: float | None
    source: str

    @property
    def words(self) -> str:
        """The estimate in words."""
        if self.seconds is None:
            return f"not known: {self.source}"
        return f"{duration(self.seconds)}, {'as' if self.source.startswith('measured') else 'from'} {self.source}"


def duration(seconds: float) -> str:
    """Return seconds in words, such as "40 s", "3 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours} h" if hours >= 10 or not rest else f"{hours} h {rest} min"


def remember(
    params: Params, workspace: Workspace, stage: str, item: str | None, summary: Mapping[str, Any], seconds: float
) -> None:
    """Record the seconds that a stage took, if it did its work now and did not find most of it finished.

    Args:
        params: all parameters.
        workspace: of the project.
        stage: the stage.
        item: its recipe or arm.
        summary: what the stage returned; ``seconds`` there are those of all its work, whenever that was done.
        seconds: what it took now.
    """
    work = _units(params, workspace, stage, item)
    own = sum(run["seconds"] for run in summary["runs"]) if stage == "train" else summary.get("seconds", 0.0)
    if stage == "generate":
        drawn, now = summary.get("drawn", 0), summary.get("drawn_now", 0)
        if "filter" in summary:
            # There `drawn` counts candidates; what was drawn now counts images.
            drawn = summary["images"] - summary.get("copies", {}).get("images", 0)
        work, own = now, own * now / drawn if drawn else 0.0
    if work == 0 or seconds < _DONE * own:
        return
    key, kept = _key(params, workspace, stage, item), read(workspace)
    before = kept["runs"].get(key)
    # Folds, pictures and trials that were found finished are no measure of what they take.
    if stage not in _UNITS and before and seconds < _DONE * before["seconds"]:
        return
    name = f"{stage} {item}" if item else stage
    today = datetime.date.today().isoformat()
    # Of a stage with units the rest, such as loading the base, does not grow with its work.
    scaled = min(own, seconds) if stage in _UNITS else seconds
    record = {"stage": name, "seconds": round(seconds, 2), "scaled": round(scaled, 2), "units": work, "when": today}
    kept["runs"][key] = record
    with contextlib.suppress(OSError):  # the stage's own work is written, and without a record steps are timed
        write(workspace, kept)


def estimate(
    params: Params, workspace: Workspace, stage: str, item: str | None, steps: Mapping[str, Timed]
) -> Estimate:
    """Return how long a stage takes here.

    Args:
        params: all parameters.
        workspace: of the project.
        stage: the stage.
        item: its recipe or arm.
        steps: what ``timed`` returned for it; may lack what could not be timed.
    """
    if not workspace.splits.is_file() and stage != "prepare":
        return Estimate(None, "`dreamset prepare` has not run yet")
    if stage == "generate" and counts.has_budget(params, item or ""):
        return _budgeted(params, workspace, item or "", steps)
    return _usual(params, workspace, stage, item, steps)


def _budgeted(params: Params, workspace: Workspace, recipe: str, steps: Mapping[str, Timed]) -> Estimate:
    """Return the seconds of drawing into a budget: these, or fewer where the most images are drawn before."""
    budget = params.generate.budget_s or 0.0
    most = (
        _usual(params, workspace, "generate", recipe, steps).seconds if params.of(recipe).generate.per_class else None
    )
    return Estimate(budget if most is None else min(budget, most), BUDGET)


def images(params: Params, workspace: Workspace, recipe: str, steps: Mapping[str, Timed]) -> int:
    """Return the images of a dataset; under a budget as many as the timed steps let expect, where there are any."""
    work = counts.of(params, workspace, "generate", recipe)
    planned = work.get("images", 0)
    if not planned or not counts.has_budget(params, recipe) or "draw" not in steps:
        return planned
    row, budget = params.recipes[recipe], params.generate.budget_s or 0.0
    looked = counts.expected(params, workspace, recipe) / max(1, counts.drawn(work))
    fitting = int(budget / _drawn(params, workspace, recipe, looked, steps)) * (1 + row.copies)
    return min(fitting, planned) if params.of(recipe).generate.per_class else fitting


def _usual(params: Params, workspace: Workspace, stage: str, item: str | None, steps: Mapping[str, Timed]) -> Estimate:
    """Return how long a stage takes whose work is counted beforehand."""
    found = read(workspace)["runs"].get(_key(params, workspace, stage, item))
    if found:
        more = _units(params, workspace, stage, item) / (found["units"] or 1) - 1
        return Estimate(max(0.0, found["seconds"] + more * found["scaled"]), f"measured here on {found['when']}")
    try:
        seconds = _by_steps(params, workspace, stage, item, steps)
    except KeyError as error:
        return Estimate(None, f"{error.args[0]} could not be timed here")
    if seconds is None:
        return Estimate(None, "it has not run here yet")
    start = steps["start"].seconds if "start" in steps else 0.0
    return Estimate(start + seconds, START if stage == "report" else STEPS)


def wanted(params: Params, workspace: Workspace, stage: str, item: str | None) -> list[str]:
    """Return the names of the timed steps that the estimate of a stage multiplies, none where a record is there."""
    if not workspace.splits.is_file() or read(workspace)["runs"].get(_key(params, workspace, stage, item)):
        return []
    cv = splits.read_split(workspace.splits).protocol == "cv"
    return needed(_settled(params, workspace), stage, item, cv=cv)


def _units(params: Params, workspace: Workspace, stage: str, item: str | None) -> int:
    """Return the work of a stage in its unit; 1 where it has none."""
    found = counts.of(params, workspace, stage, item)
    return next((found[name] for name in _UNITS[stage] if name in found), 0) if stage in _UNITS else 1


def _key(params: Params, workspace: Workspace, stage: str, item: str | None) -> str:
    """Return the hash of the machine and of all settings that the seconds of a stage depend on, but for its units."""
    base, row = params.base, params.recipes.get(item or "")
    about: dict[str, Any] = {"generator": [base.generator, base.variant, base.resolution, base.dtype, base.memory]}
    if stage == "adapt" and item:
        assert row is not None
        about |= {"row": row.training(), "adapt": params.adapt, "base": base.adapt}
    elif stage == "generate" and item:
        assert row is not None
        about |= {"row": row.training(), "origin": [row.origin, row.init, base.retrieval], "drawn": base.generate}
        about["drawn"] = dataclasses.replace(base.generate, per_class=1)
        about["chosen"] = [row.filter, row.tries, row.first, row.guide, row.guide_until, row.init_mix]
        about["sampler"] = _sampled(params, workspace, item)
    else:
        whole = to_dict(params)
        for section in ("accept_licence", "compute", "models", "track", "recipes", "active", "primary", "seed"):
            del whole[section]
        about |= {"whole": whole, "base": base, "images": _images(workspace), "primary": params.primary_classifier}
        chosen = (item,) if row else () if item else params.active
        about["rows"] = {name: dataclasses.asdict(params.recipes[name]) for name in chosen if name}
    if stage == "deliver":
        about["folds"] = _settled(params, workspace).primary_recipe
    about["compute"] = params.compute
    plain = {name: to_dict(value) if dataclasses.is_dataclass(value) else value for name, value in about.items()}
    return digest([machine(), stage, item == REAL, json.loads(json.dumps(plain))])[:16]


def _images(workspace: Workspace) -> list[Any]:
    """Return how many images there are to learn from and to test on."""
    if not workspace.splits.is_file():
        return []
    return [splits.read_split(workspace.splits).train_per_class, tested(workspace)]


def tested(workspace: Workspace) -> int:
    """Return the number of test images that ``prepare`` recorded; 0 where there are none."""
    path = workspace.result("prepare")
    return int(json.loads(path.read_text(encoding="utf-8")).get("test", 0)) if path.is_file() else 0


def _sampled(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the sampler of a recipe, as its study chose it where it has."""
    return dataclasses.asdict(counts.applied(params, workspace, recipe).sampler(recipe))


def _by_steps(
    params: Params, workspace: Workspace, stage: str, item: str | None, steps: Mapping[str, Timed]
) -> float | None:
    """Return the seconds of a stage by timed steps; None where they do not say.

    Raises:
        KeyError: the name of a step that was not timed.
    """
    work, row = counts.of(params, workspace, stage, item), params.recipes.get(item or "")
    split = splits.read_split(workspace.splits) if workspace.splits.is_file() else None
    if split is None or stage in ("prepare", "report"):
        return _FEW if stage == "report" else None
    if stage == "expect":
        images = params.expect.per_class * min(params.expect.classes, len(split.classes))
        return _FEW + images * _image(steps, min(params.expect.steps, params.base.generate.steps))
    if stage == "adapt" and item:
        return _adapted(params, item, work["adapters"], work["steps"], len(split.classes), steps)
    if stage == "generate" and item and row:
        return _drawn(params, workspace, item, counts.expected(params, workspace, item), steps) if row.draws else None
    if stage == "tune" and item and row:
        return _tuned(params, workspace, item, work, steps)
    if stage == "train" and item:
        seconds = _fitted(work, steps)
        if params.selection == "cv" and row:
            again = _making(params, workspace, item, len(split.classes), steps)
            return None if again is None else seconds + counts.selecting(split) * again
        return seconds
    if stage == "deliver":
        # With `selection: cv` the training has made the folds.
        if not params.deliver.calibrate or "cv" in (split.protocol, params.selection):
            return _FEW
        return _delivered(_settled(params, workspace), workspace, split, steps)
    return _evaluated(params, workspace, split, steps)


def _delivered(params: Params, workspace: Workspace, split: splits.Split, steps: Mapping[str, Timed]) -> float | None:
    """Return the most seconds of comparing what may be delivered by folds; None where images are retrieved for it.

    Where the verdict does not find that synthetic images help, their part of each fold is not done.
    """
    recipe, classes = params.primary_recipe, len(split.classes)
    # Adapters that recipes share on all shots are trained for this one alone here.
    alone = dataclasses.replace(params, active=(recipe,))
    again = _making(alone, workspace, recipe, classes, steps)
    if again is None:
        return None
    for parent in params.lineage(recipe)[:-1]:
        work = counts.of(alone, workspace, "adapt", parent)
        again += _adapted(alone, parent, work["adapters"], work["steps"], classes, steps)
    every = counts.training(params, split, REAL)
    # On the real images, strongly augmented and as baselines plainly, and the verdict's once more on both.
    for name in (*params.delivered_alone, *params.train.baselines, params.primary_classifier):
        alike = sum(run.classifier == name for run in runs(params, REAL))
        again += every[f"steps of {name}"] / alike * steps[f"classifier {name}"].seconds
    return _FEW + counts.selecting(split) * again


def _settled(params: Params, workspace: Workspace) -> Params:
    """Return the parameters with the recipe of the verdict, or the first adapted one where ``expect`` decides later."""
    try:
        return primary.settle(params, workspace)
    except InputError:
        return dataclasses.replace(params, primary="")


def _image(steps: Mapping[str, Timed], calls: float) -> float:
    return steps["draw"].seconds * calls + steps["draw"].fixed


def _drawn(params: Params, workspace: Workspace, recipe: str, images: float, steps: Mapping[str, Timed]) -> float:
    sampler = _sampled(params, workspace, recipe)
    calls = sampler["steps"] if sampler["strength"] is None else int(sampler["steps"] * sampler["strength"])
    # The steps were timed with the guidance of the model's row; without guidance the U-Net is asked once, not twice.
    timed_once, once = params.base.generate.guidance == 1, sampler["guidance"] == 1
    return images * _image(steps, calls * (0.5 if once and not timed_once else 2 if timed_once and not once else 1))


def _adapted(params: Params, recipe: str, adapters: int, total: int, classes: int, steps: Mapping[str, Timed]) -> float:
    """Return the seconds of all optimizer steps of a recipe, and of the sample grids between them."""
    first = trained_as(params, recipe)
    if not adapters or first != recipe:
        return 0.0  # nothing is trained, or the recipe before it has trained the same
    adapt, row = params.base.adapt, params.recipes[recipe]
    trainings = classes if row.shares_down else adapters
    each, together = total / trainings, min(params.together(recipe), trainings)
    grids = (min(_GRID, classes) if row.has_adapter_per_shot else adapters) * (2 + each // adapt.sample_every)
    pictures = params.adapt.sample_images * (1 if adapters > 1 else min(_GRID, classes))
    drawing = grids * pictures * _image(steps, params.adapt.sample_steps)
    return total / together * steps[f"adapt {first}"].seconds + drawing


def _tuned(
    params: Params, workspace: Workspace, recipe: str, work: Mapping[str, int], steps: Mapping[str, Timed]
) -> float:
    """Return the seconds of a study in which no trial is pruned."""
    if not work["trials"]:
        return 0.0
    images = work["images at most"]
    looked = counts.candidates(params, workspace, recipe, images, work.get("candidates at most", images))
    drawing = looked * _image(steps, params.sampler(recipe).last_steps)
    fitting = work["classifier steps at most"] * steps[f"classifier {params.base.tune.classifier}"].seconds
    adapting = work.get("adapter steps at most", 0)
    if adapting:
        share = params.together(recipe)
        adapting_seconds = adapting / share * steps[f"adapt {trained_as(params, recipe)}"].seconds
        return drawing + fitting + adapting_seconds
    return drawing + fitting


def _fitted(work: Mapping[str, int], steps: Mapping[str, Timed]) -> float:
    prefix = "steps of "
    return sum(
        count * steps[f"classifier {name.removeprefix(prefix)}"].seconds
        for name, count in work.items()
        if name.startswith(prefix)
    )


def _making(
    params: Params, workspace: Workspace, recipe: str, classes: int, steps: Mapping[str, Timed]
) -> float | None:
    """Return the seconds of adapting and drawing a recipe once; None where its images are retrieved."""
    if not params.recipes[recipe].draws:
        return None
    adapting = counts.of(params, workspace, "adapt", recipe)
    drawing = _drawn(params, workspace, recipe, counts.expected(params, workspace, recipe), steps)
    if counts.has_budget(params, recipe):
        drawing = _budgeted(params, workspace, recipe, steps).seconds or 0.0
    return _adapted(params, recipe, adapting["adapters"], adapting["steps"], classes, steps) + drawing


def _evaluated(params: Params, workspace: Workspace, split: splits.Split, steps: Mapping[str, Timed]) -> float | None:
    """Return the seconds of scoring, and under cross-validation those of all folds."""
    arms, scored = (REAL, *params.active), tested(workspace) or len(split.train)
    seconds = 2 * _FEW
    for arm in arms:
        for run in runs(params, arm):
            row = params.base.train.rows.get(run.classifier)
            if row is not None:
                # A step goes forward and back, which is about three times as much as going forward.
                seconds += scored * steps[f"classifier {run.classifier}"].seconds / row.batch / 3
    drawn = counts.images(params, workspace, [split.train_per_class])
    seconds += (scored + len(split.train) + drawn) * steps["judge"].seconds
    if split.protocol != "cv":
        return seconds
    try:
        folds = dividing.test_folds(params, workspace, split)
    except InputError:
        return None
    for arm in arms:
        again = 1 + (counts.selecting(split) if params.selection == "cv" else 0)
        making = 0.0 if arm == REAL else _making(params, workspace, arm, len(split.classes), steps)
        if making is None:
            return None
        fitting = _fitted(counts.training(params, split, arm), steps)
        studying = 0.0
        if arm != REAL and params.recipes[arm].is_tuned:
            studying = _tuned(params, workspace, arm, counts.tuning(params, workspace, split, arm), steps)
        seconds += len(folds) * (again * making + fitting + studying)
    return seconds
