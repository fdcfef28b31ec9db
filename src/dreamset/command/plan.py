"""``--dry-run``: what a stage would make, how long that takes here, and what it reads and writes."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import yaml

from dreamset.command import counts, times
from dreamset.core.addresses import without_password
from dreamset.core.errors import InputError
from dreamset.core.strict import read_yaml
from dreamset.data import splits
from dreamset.data.runs import arms, runs
from dreamset.data.work import Work
from dreamset.params import to_dict
from dreamset.params.model import ScratchRow
from dreamset.weights import hub

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreamset.command.timed_steps import Timed
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_CLASSES: Final = 3  # whose prompts are shown

# Where dvc.yaml names the bundled weights, a stage reads those of the model's row.
_WEIGHTS: Final = {"models/base/sd": "generator", "models/base/clip": "clip", "models/base/judge": "judge"}
_STUDENT: Final = "models/base/student"  # which few models have, and few recipes draw with


def describe(
    params: Params,
    workspace: Workspace,
    stage: str,
    item: str | None,
    *,
    steps: Mapping[str, Timed] | None = None,
    verbose: bool = False,
) -> str:
    """Return what a stage makes and how long that takes here, its inputs, outputs and counts, as YAML.

    Inputs and outputs come from dvc.yaml in ``workspace.root``; where it is not there, a sentence says so.

    Args:
        params: all parameters.
        workspace: of the project.
        stage: the stage.
        item: its recipe or arm.
        steps: the timed steps of ``timed_steps.timed`` for it; None: none were timed.
        verbose: whether the resolved parameters stand at the end.
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
    if stage == "generate" and item:
        params = counts.applied(params, workspace, item)
        resolved[f"recipes.{item}"] = to_dict(params.recipes[item])
    work = counts.of(params, workspace, stage, item)
    plan: dict[str, Any] = {
        "stage": f"{stage} {item}" if item else stage,
        "makes": makes(params, workspace, stage, item),
        "takes": times.estimate(params, workspace, stage, item, steps or {}).words + _further(params, stage, item),
    }
    if stage == "evaluate":
        plan |= _protocol(params, workspace)
    plan |= _files(params, workspace, stage, item)
    plan |= {"counts": work} if work else {}
    if stage == "tune" and item:
        plan |= {"searched": _plain(_searched(params, workspace, item))}
    if stage == "train":
        plan["classifiers"] = _classifiers(params, workspace)
    if stage == "generate" and item and params.recipes[item].draws:
        plan["prompts"] = _prompts(params, workspace, item)
    if stage in ("adapt", "generate") and item:
        plan["memory on a GPU"] = _memory(params, workspace, stage, item)
    plan |= {"parameters": _plain(resolved)} if verbose else {}
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True).rstrip()


def _further(params: Params, stage: str, item: str | None) -> str:
    """Return by how much a filter that takes the first candidate it accepts may lengthen the drawing."""
    row = params.recipes.get(item or "")
    if stage != "generate" or row is None or not row.filters or row.draws_all_tries:
        return ""
    return f"; up to {row.tries} times that where the filter accepts few candidates"


def makes(params: Params, workspace: Workspace, stage: str, item: str | None) -> str:
    """Return what a stage makes, how many and where, in words."""
    work, name = counts.of(params, workspace, stage, item), item or ""
    if stage in ("adapt", "tune", "generate", "train") and not work:
        return "known when `dreamset prepare` has run"
    if stage == "adapt":
        place = f"in {_named(workspace, workspace.adapter(name))}"
        what = f"{_many(work['adapters'], 'adapter')}, {_many(work['steps'], 'step')}"
        return f"{what}, {place}" if work["adapters"] else "nothing: the recipe trains no adapter"
    if stage == "tune":
        trials = work["trials"]
        return f"a study of {_many(trials, 'trial')}" if trials else "nothing: the recipe searches no value"
    if stage == "generate":
        return f"{_images(params, workspace, name, work)} in {_named(workspace, workspace.synthetic(name))}"
    if stage == "train":
        return f"{_many(len(runs(params, name)), 'classifier')} in {_named(workspace, workspace.classifiers(name))}"
    return {
        "prepare": f"the splits of {params.prepare.source}, in {_named(workspace, workspace.splits.parent)}",
        "expect": "what synthetic images are likely to do here, in results/expect.json",
        "evaluate": f"the accuracy of {_many(_measured(params), 'classifier')}, in results/evaluate.json",
        "deliver": "the classifier to take away, in models/classifier",
        "report": "the page, results/report.html",
    }[stage]


def _images(params: Params, workspace: Workspace, recipe: str, work: Mapping[str, int]) -> str:
    """Return how many images a dataset has, or in how many seconds they are drawn, of candidates and with copies."""
    copies = params.recipes[recipe].copies
    if counts.has_budget(params, recipe):
        bound = params.of(recipe).generate.per_class
        most = f", at most {bound}" if bound is not None else ""
        each = f", with {_many(copies, 'copy').replace('copys', 'copies')} of each drawn one" if copies else ""
        return f"as many images of each class as fit into {params.generate.budget_s:g} s{most}{each},"
    said, looked = _many(work["images"], "image"), counts.expected(params, workspace, recipe)
    if looked > counts.drawn(work):
        said += f" out of about {looked:.0f} candidates"
    return f"{said}, {work['images drawn']} of them drawn and the others copies," if copies else said


def _measured(params: Params) -> int:
    return sum(len(runs(params, arm)) for arm in arms(params))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _named(workspace: Workspace, path: Path) -> str:
    return path.relative_to(workspace.cell).as_posix()


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
    inputs = [
        getattr(params.base, _WEIGHTS.get(name, ""), name)
        for name in paths
        if not name.startswith("src/") and name != _STUDENT
    ]
    if _STUDENT in paths and params.base.few_steps and params.draws_by_student(params.base):
        inputs.append(params.base.few_steps.weights)
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


def _prompts(params: Params, workspace: Workspace, recipe: str) -> Any:
    """Return the prompt of the first image of three classes, by class; of what shots tell, the way it is asked."""
    if not workspace.splits.is_file():
        return "known when `dreamset prepare` has run"
    work = Work.read(params, workspace, recipe)
    labels = range(min(_CLASSES, len(work.split.classes)))
    if work.row.tells_shots:
        # Reading captions and attributes takes networks, which a plan does without.
        told = "the caption of a shot of the class" if work.row.tells_captions else "the attributes of a shot"
        return {work.split.classes[label]: f"{work.lead(label)}, and {told}" for label in labels}
    if work.row.descriptions is not None:
        from dreamset.generator import asking

        work = asking.applied(work)
    asked = work.asked([(label, 0) for label in labels])
    return {work.split.classes[label]: one.prompt for label, one in zip(labels, asked, strict=True)}


def _searched(params: Params, workspace: Workspace, recipe: str) -> Any:
    """Return the knobs of a study with their ranges, as far as they are known beforehand."""
    search = params.recipes[recipe].search
    if search is None:
        return "nothing: the recipe has no search"
    if not workspace.splits.is_file():
        return dict.fromkeys(search.knobs, "known when `dreamset prepare` has run")
    if not all(counts.is_tuned(params, workspace, name) for name in params.lineage(recipe)[:-1]):
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
        cost += _refitting(params, workspace, divided) + _tuning_again(params, workspace, divided)
    else:
        images = json.loads(path.read_text(encoding="utf-8"))["test"]
        cost = f"test, {images} images that were held out; nothing is trained for it"
    return {"protocol": cost, "what it can show": mcnemar.reach(images, params.evaluate.confidence)["words"]}


def _refitting(params: Params, workspace: Workspace, folds: list[splits.Split]) -> str:
    """Return the work of all folds together in words, the folds inside them that select included."""
    from dreamset.data import folds as dividing

    learned = [split.train_per_class for split in folds]
    if params.selection == "cv":
        for split in folds:
            for left_out in dividing.held_out(split, dividing.SELECTING, "selection"):
                fewer = Counter(sample.label for sample in left_out)
                learned.append(tuple(count - fewer[label] for label, count in enumerate(split.train_per_class)))
    adapting = sum(counts.adapting(params, recipe, shots)[1] for recipe in params.active for shots in learned)
    images = counts.images(params, workspace, learned)
    every = [counts.training(params, split, arm) for split in folds for arm in ("real", *params.active)]
    fitting = sum(count for work in every for what, count in work.items() if what.startswith("steps"))
    return f"{adapting} adapter steps, {images} images and {fitting} classifier steps"


def _tuning_again(params: Params, workspace: Workspace, folds: list[splits.Split]) -> str:
    """Return the work of the studies of all folds in words; empty where nothing is searched."""
    studied = [recipe for recipe in params.active if params.recipes[recipe].is_tuned]
    total: Counter[str] = Counter()
    for recipe in studied:
        for split in folds:
            total.update(counts.tuning(params, workspace, split, recipe))
    if not studied:
        return ""
    del total["rungs"]
    work = ", ".join(f"{count} {what.removesuffix(' at most')}" for what, count in total.items())
    return f"; in {len(studied) * len(folds)} studies at most {work}"


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
        together = params.together(recipe)
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
