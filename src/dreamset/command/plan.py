"""``--dry-run``: what a stage would read, write and cost, without importing what it needs."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import yaml

from dreamset.core.addresses import without_password
from dreamset.core.errors import InputError
from dreamset.core.strict import read_yaml
from dreamset.data import splits, tuned
from dreamset.data.work import Work
from dreamset.params import to_dict
from dreamset.params.model import ScratchRow
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

# Where dvc.yaml names the bundled weights, a stage reads those of the model's row.
_WEIGHTS: Final = {"models/base/sd": "generator", "models/base/clip": "clip", "models/base/judge": "judge"}


def describe(params: Params, workspace: Workspace, stage: str, item: str | None) -> str:
    """Return a stage's resolved parameters, inputs, outputs, counts and estimate, as YAML.

    Inputs and outputs come from dvc.yaml in ``workspace.root``; where it is not there, a sentence says so.
    """
    resolved: dict[str, Any] = {"model": params.model, "shots": params.shots, "seed": params.seed}
    resolved[stage] = to_dict(getattr(params, stage))
    if "tune" in resolved:
        resolved["tune"]["storage"] = without_password(params.tune.storage)
    base = to_dict(params.base)
    if stage in base:
        rows = ("generate", "tune") if stage == "tune" else (stage,)
        resolved[f"models.{params.model}"] = {
            key: base[key] for key in ("generator", "clip", "resolution", "dtype", *rows)
        }
    if item in params.recipes:
        resolved[f"recipes.{item}"] = to_dict(params.recipes[item])
    if stage == "generate" and item and _is_tuned(params, workspace, item):
        params = tuned.applied(params, workspace, item)
        resolved[f"recipes.{item}"] = to_dict(params.recipes[item])
    counts = _counts(params, workspace, stage, item)
    plan: dict[str, Any] = {
        "stage": f"{stage} {item}" if item else stage,
        "parameters": _plain(resolved),
        **_files(params, workspace, stage, item),
        "counts": counts,
        "estimate": _estimate(workspace, stage, item, counts),
    }
    if stage == "evaluate":
        plan |= _protocol(params, workspace)
    if stage == "tune" and item:
        plan |= {"searched": _plain(_searched(params, workspace, item))}
    if stage == "train":
        plan["classifiers"] = _classifiers(params, workspace)
    if stage in ("adapt", "generate") and item:
        plan["memory on a GPU"] = _memory(params, workspace, stage, item)
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True).rstrip()


def _files(params: Params, workspace: Workspace, stage: str, item: str | None) -> dict[str, Any]:
    """Return the inputs and outputs that dvc.yaml lists for a stage, or why they are not known."""
    try:
        entry = _entry(params, workspace.root / "dvc.yaml", stage, item)
    except InputError as error:
        return {"inputs and outputs": f"not known: {error}"}
    values = {"${item.recipe}": item or "", "${key}": item or "", "${item}": params.after.get(item or "", "")}

    def path(listed: str | dict[str, Any]) -> str:
        """The path of a dependency or an output, which may stand before its options."""
        name = listed if isinstance(listed, str) else next(iter(listed))
        for variable, value in values.items():
            name = name.replace(variable, value)
        return name

    paths = [path(listed) for listed in entry["deps"]]
    inputs = [getattr(params.base, _WEIGHTS.get(name, ""), name) for name in paths if not name.startswith("src/")]
    if stage == "prepare":
        _, _, source = params.prepare.source.partition(":")
        inputs = [source, *inputs] if source else inputs
    return {
        "inputs": [_input(name, workspace) for name in inputs],
        "outputs": [path(listed) for listed in [*entry["outs"], *entry.get("metrics", [])]],
    }


def _entry(params: Params, path: Path, stage: str, item: str | None) -> dict[str, Any]:
    """Return a stage of dvc.yaml, with the variables of its items unresolved.

    Raises:
        InputError: the file cannot be read, or does not have the stage.
    """
    name = "train_real" if item == "real" else f"{stage}_after" if item in params.after else stage
    try:
        stages = read_yaml(path)["stages"]
        entry: dict[str, Any] = stages[name].get("do", stages[name])
        listed = [next(iter(path)) if isinstance(path, dict) else path for path in (*entry["deps"], *entry["outs"])]
    except (AttributeError, KeyError, StopIteration, TypeError) as error:
        raise InputError(f"{path}: has no stage {name} with deps and outs; `git checkout dvc.yaml` has it.") from error
    if not all(isinstance(path, str) for path in listed):
        raise InputError(f"{path}: stage {name} lists something that is no path; `git checkout dvc.yaml` has it.")
    return entry


def _counts(params: Params, workspace: Workspace, stage: str, item: str | None) -> dict[str, int]:
    """Return the counts of a stage's work, as far as the present manifests tell."""
    if stage not in ("adapt", "tune", "generate", "train") or not workspace.splits.is_file():
        return {}
    split = splits.read_split(workspace.splits)
    if stage == "tune":
        return _tuning(params, workspace, split, item or "")
    if stage == "train":
        return _training(params, split, item or "")
    if stage == "generate" and not params.recipes[item or ""].draws:
        return {"images": sum(params.synthetic_per_class(split.train_per_class))}
    if stage == "generate":
        sampler = params.sampler(item or "")
        calls = sampler.steps * (1 if sampler.guidance == 1 else 2)
        return {"images": sum(params.synthetic_per_class(split.train_per_class)), "U-Net calls per image": calls}
    adapters, steps = _adapting(params, item or "", split.train_per_class)
    return {"adapters": adapters, "steps": steps}


def _adapting(params: Params, recipe: str, images: Sequence[int]) -> tuple[int, int]:
    """Return the number of a recipe's adapters, and of all their optimizer steps, for ``images`` of each class."""
    row = params.recipes[recipe]
    if not row.trains:
        return 0, 0
    schedule = params.schedule(recipe)
    if not row.has_adapter_per_class:
        return 1, schedule.steps(sum(images))
    return len(images), sum(map(schedule.steps, images))


def _is_tuned(params: Params, workspace: Workspace, recipe: str) -> bool:
    """Return whether every study before the images of ``recipe`` has chosen, for these shots and rows."""
    studied = [name for name in params.lineage(recipe) if params.recipes[name].is_tuned]
    if not all(workspace.result("tune", name).is_file() for name in studied):
        return False
    return not studied or (workspace.splits.is_file() and all(tuned.is_current(params, workspace, n) for n in studied))


def _tuning(params: Params, workspace: Workspace, split: splits.Split, recipe: str) -> dict[str, int]:
    """Return the most that a study can do: nothing is pruned, and no two trials share their adapters."""
    from dreamset.study import objective

    search, tune = params.recipes[recipe].search, params.base.tune
    if search is None:
        return {"trials": 0}
    holdouts, trials = objective.holdouts(Work(params, workspace, split, recipe)), params.tune.trials
    batch = params.base.train.rows[tune.classifier].batch
    steps = sum(tune.steps_at(rung, len(split.classes), batch) for rung in tune.per_class)
    counts = {
        "trials": trials,
        "rungs": len(tune.per_class),
        "images at most": trials * len(holdouts) * len(split.classes) * tune.per_class[-1],
        "classifier steps at most": trials * len(holdouts) * steps,
    }
    # The recipes that it starts from have adapters in each holdout too, but the same ones in all trials.
    adapting = sum(
        _adapting(params, name, part.split.train_per_class)[1]
        * (trials if name == recipe and (search.lr or search.epochs) else 1)
        for part in holdouts
        for name in params.lineage(recipe)
    )
    if adapting:
        counts["adapter steps at most"] = adapting
    return counts


def _searched(params: Params, workspace: Workspace, recipe: str) -> Any:
    """Return the knobs of a study with their ranges, as far as they are known beforehand."""
    search = params.recipes[recipe].search
    if search is None:
        return "nothing: the recipe has no search"
    if not workspace.splits.is_file():
        return dict.fromkeys(search.knobs, "known when `dreamset prepare` has run")
    if not all(_is_tuned(params, workspace, name) for name in params.lineage(recipe)[:-1]):
        return dict.fromkeys(search.knobs, "known when what it starts from is tuned")
    from dreamset.study import space

    return space.as_json(space.ranges(params, workspace, recipe))


def _protocol(params: Params, workspace: Workspace) -> dict[str, str]:
    """Return what the protocol costs beyond scoring, and the smallest gain that so many images can show.

    ``prepare`` recorded the number of test images, so this opens no manifest of them.
    """
    path = workspace.result("prepare")
    if not (workspace.splits.is_file() and path.is_file()):
        return {"protocol": "known when `dreamset prepare` has run"}
    from dreamset.data import folds as dividing
    from dreamset.metrics import mcnemar

    split = splits.read_split(workspace.splits)
    if split.protocol == "cv":
        folds = dividing.test_folds(params, workspace, split)
        images = len(dividing.scored_on(params, split).train)
        cost = f"cv, {len(folds)} folds, in each of which all that learns is done again: "
        divided = [fold.split for fold in folds]
        cost += _refitting(params, divided) + _tuning_again(params, workspace, divided)
        cost += _refitting_time(params, workspace, len(folds))
    else:
        images = json.loads(path.read_text(encoding="utf-8"))["test"]
        cost = f"test, {images} images that were held out; nothing is trained for it"
    return {"protocol": cost, "what it can show": mcnemar.reach(images, params.evaluate.confidence)["words"]}


def _refitting(params: Params, folds: list[splits.Split]) -> str:
    """Return the work of all folds together in words, the folds inside them that select included."""
    from dreamset.data import folds as dividing

    learned = [split.train_per_class for split in folds]
    if params.selection == "cv":
        for split in folds:
            for left_out in dividing.held_out(split, dividing.SELECTING, "selection"):
                fewer = Counter(sample.label for sample in left_out)
                learned.append(tuple(count - fewer[label] for label, count in enumerate(split.train_per_class)))
    adapting = sum(_adapting(params, recipe, shots)[1] for recipe in params.active for shots in learned)
    images = len(params.active) * sum(sum(params.synthetic_per_class(shots)) for shots in learned)
    counts = [_training(params, split, arm) for split in folds for arm in ("real", *params.active)]
    fitting = sum(count for work in counts for what, count in work.items() if what.startswith("steps"))
    return f"{adapting} adapter steps, {images} images and {fitting} classifier steps"


def _tuning_again(params: Params, workspace: Workspace, folds: list[splits.Split]) -> str:
    """Return the work of the studies of all folds in words; empty where nothing is searched."""
    studied = [recipe for recipe in params.active if params.recipes[recipe].is_tuned]
    total: Counter[str] = Counter()
    for recipe in studied:
        for split in folds:
            total.update(_tuning(params, workspace, split, recipe))
    if not studied:
        return ""
    del total["rungs"]
    work = ", ".join(f"{count} {what.removesuffix(' at most')}" for what, count in total.items())
    return f"; in {len(studied) * len(folds)} studies at most {work}"


def _refitting_time(params: Params, workspace: Workspace, folds: int) -> str:
    """Return in words how long that takes; empty where a stage has not recorded its time."""
    from dreamset.data.folds import SELECTING

    seconds, rounds = 0.0, 1 + SELECTING if params.selection == "cv" else 1
    stages: dict[str, Sequence[str]] = dict.fromkeys(("adapt", "generate"), params.active)
    stages["tune"] = [recipe for recipe in params.active if params.recipes[recipe].is_tuned]
    stages["train"] = ("real", *params.active)
    for stage, items in stages.items():
        for item in items:
            path = workspace.result(stage, item)
            if not path.is_file():
                return ""
            record = json.loads(path.read_text(encoding="utf-8"))
            # What training records is of the folds that select, too, and these have no studies of their own.
            again = 1 if stage == "tune" else rounds
            seconds += _trained(record) if stage == "train" else again * record["seconds"]
    return f"; about {folds * seconds:.0f} s, going by the stages' last runs on all images"


def _trained(record: dict[str, Any]) -> float:
    """Return the seconds of all classifiers of an arm."""
    return float(sum(run["seconds"] for run in record["runs"]))


def _classifiers(params: Params, workspace: Workspace) -> Any:
    """Return in words what each trained classifier sees and how long it learns, the same in every arm."""
    if not workspace.splits.is_file():
        return "known when `dreamset prepare` has run"
    from dreamset.classifiers.parts import learned

    split, said = splits.read_split(workspace.splits), {}
    images = learned(params, split)
    for name in dict.fromkeys((*params.train.classifiers, *params.train.baselines)):
        row = params.base.train.rows[name]
        course = row.course(images)
        words = f"{course.steps} steps of {course.batch} images"
        if isinstance(row, ScratchRow):
            side = row.side(split.native)
            whence = f", for the shots have {split.native} on their short side" if row.size == "native" else ""
            words = f"sees {side} x {side} pixels{whence}; {words}"
        said[name] = words if isinstance(row.steps, int) else f"{words}, for {images} images"
    return said


def _training(params: Params, split: splits.Split, arm: str) -> dict[str, int]:
    """Return the optimizer steps by classifier, all that is tried included, without what the folds adapt and draw."""
    from dreamset.classifiers import selection
    from dreamset.classifiers.parts import learned
    from dreamset.data import folds
    from dreamset.data.runs import REAL, runs

    counts: dict[str, int] = {}
    for run in runs(params, arm):
        name = run.classifier
        if name in params.train.simple_classifiers:
            continue  # fitted in seconds, without steps
        row = params.base.train.rows[name].course(learned(params, split))
        count = 1 if run.kind.more else params.train.configurations
        tried = selection.configurations(row, params.train.real_weight, count, params.seed)
        steps = sum(configuration.steps for configuration in tried)
        if params.selection == "cv":
            # Then one more, on all the shots, of at most as many steps as the longest.
            steps = folds.SELECTING * steps + max(configuration.steps for configuration in tried)
        counts[f"steps of {name}"] = counts.get(f"steps of {name}", 0) + steps
    if params.selection == "cv":
        counts["folds, each adapted and drawn again" if arm != REAL else "folds"] = folds.SELECTING
    return counts


def _estimate(workspace: Workspace, stage: str, item: str | None, counts: dict[str, int]) -> str:
    """Return the seconds, scaled from the last run's; records do not say which model that had."""
    path = workspace.result(stage, item)
    if not path.is_file():
        return "no earlier run to estimate from"
    last = json.loads(path.read_text(encoding="utf-8"))
    unit = {"adapt": "steps", "tune": "trials", "generate": "images"}.get(stage)
    seconds = _trained(last) if stage == "train" else last.get("seconds")
    done = last.get("drawn", last.get(unit)) if unit else None
    done = len(done) if isinstance(done, list) else done
    if seconds is None:
        return f"not known: {stage} does not record how long it takes"
    if unit and counts.get(unit) and done:
        each = seconds / done
        every = f"{each * counts[unit]:.0f} s for all of it, at {each:.4f} s per {unit[:-1]}"
        return f"{every} as last time, with whatever model"
    return f"{seconds:.0f} s, as last time, with whatever model and steps"


def _memory(params: Params, workspace: Workspace, stage: str, recipe: str) -> str:
    """Return the memory that a stage needs on a GPU at its peak, counted on tensors without content."""
    row, model = params.recipes[recipe], params.base
    if stage == "adapt" and not row.trains:
        return "none: nothing is trained"
    if not row.draws:
        return "that of the CLIP: nothing is drawn"
    try:
        folder = hub.locate(workspace.root, *model.pretrained)
    except InputError as error:
        return f"not known before the weights are there: {error}"
    if not (folder / "model_index.json").is_file():
        return f"not known: {folder} is no diffusers folder"
    from dreamset.generator import memory, trained

    base, offload = memory.on_meta(folder, model), "offload" in model.memory
    if stage == "adapt":
        batch = params.schedule(recipe).batch
        together = model.adapt.together if row.has_adapter_per_class else 1
        # The vectors of a class are many numbers, one class more or less is few.
        classes = len(splits.read_split(workspace.splits).classes) if workspace.splits.is_file() else 1
        gigabytes = memory.of_adapting(base, trained.kind_of(row, classes), batch, together, offload=offload)
        what = f"{together} adapters at once, {batch} images each" if together > 1 else f"{batch} images a step"
    else:
        batch, guided = model.generate.batch, params.sampler(recipe).guidance != 1
        if row.trains_unet:
            base.unet.float()  # as it is drawn with
        gigabytes = memory.of_drawing(base, batch, guided=guided, offload=offload)
        what = f"{batch} images at once"
    total = gigabytes.pop("total")
    parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in gigabytes.items())
    return f"{total / 1e9:.3g} GB with {what} ({parts}), and about 1 GB for CUDA itself"


def _input(name: str, workspace: Workspace) -> str:
    """Return an input as text: the name of weights on a hub, or a path and whether it is missing."""
    # Weights and the table of seeds are the project's, and a cell has the rest.
    there = ":" in name or (workspace.cell / name).exists() or (workspace.root / name).exists()
    return name if there else f"{name}  (missing)"


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key.rstrip("_"): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
