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
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.command import counts
from dreamset.core import device
from dreamset.core.errors import InputError
from dreamset.core.files import digest, write_json
from dreamset.data import folds as dividing
from dreamset.data import splits, tuned
from dreamset.data.runs import REAL, runs
from dreamset.params import to_dict

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

STEPS: Final = "five timed steps"
START: Final = "a timed start"
BUDGET: Final = "generate.budget_s"
_FORMAT: Final = 1  # of the file; what another version has written is measured again
_UNITS: Final = {"adapt": ("steps",), "tune": ("trials",), "generate": ("images drawn", "images")}
_PATIENCE: Final = 300  # seconds for all timed steps of one call
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


@dataclass(frozen=True)
class Timed:
    """A timed step.

    Attributes:
        seconds: of the step; of an image where images are drawn or looked at, and there of one sampler step.
        fixed: seconds of an image beside its sampler steps.
        bytes: on disk, of the adapter or classifier.
    """

    seconds: float
    fixed: float = 0.0
    bytes: int = 0


def duration(seconds: float) -> str:
    """Return seconds in words, such as "40 s", "3 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours} h" if hours >= 10 or not rest else f"{hours} h {rest} min"


def machine() -> dict[str, Any]:
    """Return what tells this machine, and the part of it that a stage may use, from others; without torch."""
    gpus = [path.read_text(encoding="utf-8") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    names = [line.partition(":")[2].strip() for text in gpus for line in text.splitlines() if line.startswith("Model")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return {"host": platform.node(), "cpu": device._cpu(), "cores": cores, "gpus": names, **asked}


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
        work, own = now, own * now / drawn if drawn else 0.0
    if work == 0 or seconds < _DONE * own:
        return
    key, kept = _key(params, workspace, stage, item), _read(workspace)
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
        _write(workspace, kept)


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
    most = _usual(params, workspace, "generate", recipe, steps).seconds if params.generate.per_class else None
    return Estimate(budget if most is None else min(budget, most), BUDGET)


def images(params: Params, workspace: Workspace, recipe: str, steps: Mapping[str, Timed]) -> int:
    """Return the images of a dataset; under a budget as many as the timed steps let expect, where there are any."""
    work = counts.of(params, workspace, "generate", recipe)
    planned = work.get("images", 0)
    if not planned or not counts.has_budget(params, recipe) or "draw" not in steps:
        return planned
    row, budget = params.recipes[recipe], params.generate.budget_s or 0.0
    fitting = int(budget / _drawn(params, workspace, recipe, 1, steps)) * (1 + row.copies)
    return min(fitting, planned) if params.generate.per_class else fitting


def _usual(params: Params, workspace: Workspace, stage: str, item: str | None, steps: Mapping[str, Timed]) -> Estimate:
    """Return how long a stage takes whose work is counted beforehand."""
    found = _read(workspace)["runs"].get(_key(params, workspace, stage, item))
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
    if not workspace.splits.is_file() or _read(workspace)["runs"].get(_key(params, workspace, stage, item)):
        return []
    cv = splits.read_split(workspace.splits).protocol == "cv"
    return needed(params, stage, item, cv=cv)


def needed(params: Params, stage: str, item: str | None, *, cv: bool = False) -> list[str]:
    """Return the names of the timed steps of which a stage consists; ``cv``: under cross-validation."""
    row = params.recipes.get(item or "")
    recipes = params.active if stage == "evaluate" else (item,) if item in params.recipes else ()
    adapters = [f"adapt {_trained_as(params, name)}" for name in recipes if name and params.recipes[name].trains]
    fitted = {run.classifier for arm in (REAL, *recipes) for run in runs(params, arm)} if stage != "tune" else set()
    fitted |= {params.base.tune.classifier} if stage == "tune" else set()
    # What has no row is fitted in seconds.
    classifiers = [f"classifier {name}" for name in sorted(fitted & params.base.train.rows.keys())]
    again = params.selection == "cv"
    by_stage = {
        "expect": ["draw"],
        "adapt": [*adapters, *(["draw"] if adapters else [])],
        "tune": [*adapters, "draw", *classifiers] if row and row.is_tuned else [],
        "generate": ["draw"] if row and row.draws else [],
        "train": [*classifiers, *([*adapters, "draw"] if again else [])],
        "evaluate": [*classifiers, "judge", *([*adapters, "draw"] if cv or again else [])],
        "deliver": [f"classifier {params.primary_classifier}"],
    }
    return ["start", *by_stage.get(stage, [])]


def timed(
    params: Params, workspace: Workspace, file: Path, names: Collection[str]
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Return the timed steps of ``names``, and why others could not be timed; those that are not kept are timed now.

    Args:
        params: all parameters.
        workspace: of the project.
        file: the parameters' file.
        names: what ``wanted`` returned.
    """
    keys, kept = _keys(params, workspace, names), _read(workspace)
    missing = [name for name in keys if keys[name] not in kept["steps"]]
    failed: dict[str, str] = {}
    # The start alone is not worth a process.
    if {*missing} - {"start"}:
        found = _probe(workspace.root, file, missing)
        kept = _read(workspace)
        for name in missing:
            facts = found.get(name, {"failed": "it took too long"})
            if "failed" in facts:
                failed[name] = facts["failed"]
            else:
                kept["steps"][keys[name]] = {"name": name} | facts
        _write(workspace, kept)
    return _found(kept, keys), failed


def kept(params: Params, workspace: Workspace, names: Collection[str]) -> dict[str, Timed]:
    """Return those of the timed steps that were timed before."""
    return _found(_read(workspace), _keys(params, workspace, names))


def _keys(params: Params, workspace: Workspace, names: Collection[str]) -> dict[str, str]:
    """Return what each timed step is kept under: the machine, and the settings that its seconds depend on."""
    return {name: digest([machine(), *_measured(params, workspace, name)])[:16] for name in dict.fromkeys(names)}


def _found(kept: dict[str, dict[str, Any]], keys: Mapping[str, str]) -> dict[str, Timed]:
    known = {name: kept["steps"][key] for name, key in keys.items() if key in kept["steps"]}
    return {
        name: Timed(facts["seconds"], facts.get("fixed", 0.0), facts.get("bytes", 0)) for name, facts in known.items()
    }


def _probe(root: Path, file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Run the timed steps in a process of their own, and return what it measured by then."""
    command = [sys.executable, "-m", "dreamset.command.probe", str(file), repr(time.time()), *names]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL
        )
        printed = done.stdout
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    return dict(json.loads(line) for line in printed.splitlines() if line.startswith("["))


def _measured(params: Params, workspace: Workspace, name: str) -> list[Any]:
    """Return the settings that the seconds of a timed step depend on."""
    kind, _, item = name.partition(" ")
    base = params.base
    generator = [base.generator, base.variant, base.resolution, base.dtype, list(base.memory)]
    if kind == "draw":
        return [kind, generator, base.generate.batch, base.generate.guidance == 1]
    if kind == "adapt":
        classes = len(splits.read_split(workspace.splits).classes) if workspace.splits.is_file() else 2
        row = dataclasses.asdict(params.recipes[item].training())
        return [kind, generator, row, params.schedule(item).batch, params.together(item), classes]
    if kind == "classifier":
        return [kind, base.clip, base.resolution, base.train.crop, dataclasses.asdict(base.train.rows[item])]
    return [kind, base.judge if kind == "judge" else ""]


def _trained_as(params: Params, recipe: str) -> str:
    """Return the first active recipe that is trained as ``recipe`` is: the same adapters serve both."""
    row = params.recipes[recipe]
    schedule, before = params.schedule(recipe) if row.trains else None, params.after.get(recipe)
    for name in params.active:
        other = params.recipes[name]
        same = other.training() == row.training() and params.after.get(name) == before
        if other.trains and same and params.schedule(name) == schedule:
            return name
    return recipe


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
        for section in ("accept_licence", "models", "track", "recipes", "active", "primary", "seed"):
            del whole[section]
        about |= {"whole": whole, "base": base, "images": _images(workspace), "primary": params.primary_classifier}
        chosen = (item,) if row else () if item else params.active
        about["rows"] = {name: dataclasses.asdict(params.recipes[name]) for name in chosen if name}
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
    if counts.is_tuned(params, workspace, recipe):
        params = tuned.applied(params, workspace, recipe)
    return dataclasses.asdict(params.sampler(recipe))


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
        return _drawn(params, workspace, item, counts.candidates(work), steps) if row.draws else None
    if stage == "tune" and item and row:
        return _tuned(params, item, work, steps)
    if stage == "train" and item:
        seconds = _fitted(work, steps)
        if params.selection == "cv" and row:
            again = _making(params, workspace, item, len(split.classes), steps)
            return None if again is None else seconds + dividing.SELECTING * again
        return seconds
    if stage == "deliver":
        name = params.primary_classifier
        alike = sum(run.classifier == name for run in runs(params, REAL))
        each = counts.training(params, split, REAL)[f"steps of {name}"] / alike
        again = dividing.SELECTING if params.deliver.calibrate and split.protocol == "test" else 0
        return _FEW + again * each * steps[f"classifier {name}"].seconds
    return _evaluated(params, workspace, split, steps)


def _image(steps: Mapping[str, Timed], calls: float) -> float:
    return steps["draw"].seconds * calls + steps["draw"].fixed


def _drawn(params: Params, workspace: Workspace, recipe: str, images: int, steps: Mapping[str, Timed]) -> float:
    sampler = _sampled(params, workspace, recipe)
    calls = sampler["steps"] if sampler["strength"] is None else int(sampler["steps"] * sampler["strength"])
    # The steps were timed with the guidance of the model's row; without guidance the U-Net is asked once, not twice.
    timed_once, once = params.base.generate.guidance == 1, sampler["guidance"] == 1
    return images * _image(steps, calls * (0.5 if once and not timed_once else 2 if timed_once and not once else 1))


def _adapted(params: Params, recipe: str, adapters: int, total: int, classes: int, steps: Mapping[str, Timed]) -> float:
    """Return the seconds of all optimizer steps of a recipe, and of the sample grids between them."""
    first = _trained_as(params, recipe)
    if not adapters or first != recipe:
        return 0.0  # nothing is trained, or the recipe before it has trained the same
    adapt, row = params.base.adapt, params.recipes[recipe]
    trainings = classes if row.shares_down else adapters
    each, together = total / trainings, min(params.together(recipe), trainings)
    grids = (min(_GRID, classes) if row.has_adapter_per_shot else adapters) * (2 + each // adapt.sample_every)
    pictures = params.adapt.sample_images * (1 if adapters > 1 else min(_GRID, classes))
    drawing = grids * pictures * _image(steps, params.adapt.sample_steps)
    return total / together * steps[f"adapt {first}"].seconds + drawing


def _tuned(params: Params, recipe: str, work: Mapping[str, int], steps: Mapping[str, Timed]) -> float:
    """Return the seconds of a study in which no trial is pruned."""
    if not work["trials"]:
        return 0.0
    drawing = work["images at most"] * _image(steps, params.sampler(recipe).steps)
    fitting = work["classifier steps at most"] * steps[f"classifier {params.base.tune.classifier}"].seconds
    adapting = work.get("adapter steps at most", 0)
    if adapting:
        share = params.together(recipe)
        adapting_seconds = adapting / share * steps[f"adapt {_trained_as(params, recipe)}"].seconds
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
    work = counts.of(params, workspace, "generate", recipe)
    drawing = _drawn(params, workspace, recipe, counts.candidates(work), steps)
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
    drawn = sum(sum(params.drawn_per_class(recipe, split.train_per_class)) for recipe in params.active)
    seconds += (scored + len(split.train) + drawn) * steps["judge"].seconds
    if split.protocol != "cv":
        return seconds
    try:
        folds = dividing.test_folds(params, workspace, split)
    except InputError:
        return None
    for arm in arms:
        again = 1 + (dividing.SELECTING if params.selection == "cv" else 0)
        making = 0.0 if arm == REAL else _making(params, workspace, arm, len(split.classes), steps)
        if making is None:
            return None
        fitting = _fitted(counts.training(params, split, arm), steps)
        studying = 0.0
        if arm != REAL and params.recipes[arm].is_tuned:
            studying = _tuned(params, arm, counts.tuning(params, workspace, split, arm), steps)
        seconds += len(folds) * (again * making + fitting + studying)
    return seconds


def _path(workspace: Workspace) -> Path:
    return workspace.root / ".dreamset/times.json"


def _read(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return what is kept; nothing where the file is missing, not whole or of another format: it is measured again."""
    try:
        kept = json.loads(_path(workspace).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    known = isinstance(kept, dict) and kept.get("format") == _FORMAT
    return {part: kept.get(part, {}) if known else {} for part in ("runs", "steps")}


def _write(workspace: Workspace, kept: dict[str, dict[str, Any]]) -> None:
    write_json(_path(workspace), {"format": _FORMAT} | kept)
