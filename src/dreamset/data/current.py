"""Whether adapters and images on disk are those that the present parameters and shots ask for.

DVC keeps them so. A verb that is run by hand would otherwise draw with adapters, or publish images, that were made with
other settings. So each set records digests of what it was made for, by the names that a person knows these things by.
Code and libraries are left out: they change no setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json
from dreamset.core.strict import listed
from dreamset.data import tuned
from dreamset.data.asking import files_digest
from dreamset.data.splits import read_split
from dreamset.params import to_dict
from dreamset.params.knobs import OF_CLASSIFIERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.splits import Split
    from dreamset.params import Params
    from dreamset.params.recipe import Recipe

# Knobs of a row that change none of its images; of ``per_class`` the number counts, wherever it stands.
_NO_IMAGES: Final = ("search", "per_class", *OF_CLASSIFIERS)


def of_adapters(params: Params, workspace: Workspace, recipe: str) -> dict[str, str]:
    """Return digests of what the adapters of a recipe are made for, by name.

    Args:
        params: all parameters, with the values of the recipe's study where its adapters have some of these.
        workspace: has the shots.
        recipe: a row that trains.

    Raises:
        InputError: the split is missing, or the recipe starts from another one that is not tuned yet.
    """
    row, base, split = params.recipes[recipe], params.base, read_split(workspace.splits)
    parent = params.after.get(recipe) if row.needs_vectors_of_another else None
    before = None if parent is None else of_adapters(tuned.applied(params, workspace, parent), workspace, parent)
    training = [params.adapt.weight_decay, params.adapt.max_grad_norm, base.adapt.caption_dropout, base.adapt.ema]
    found = {
        f"recipes.{recipe}": [to_dict(row.training()), row.epoch],
        f"models.{params.model}": [_generator(params), to_dict(params.schedule(recipe)), training],
        "seed": params.seed,
        "shots": _shots(row, split),
        "prompts": _prompts(params, workspace, recipe),
        "the recipe before it": before,
    }
    return _digests(found)


def of_images(params: Params, workspace: Workspace, recipe: str) -> dict[str, str]:
    """Return digests of what the images of a recipe are made for, by name; see ``of_adapters``.

    Args:
        params: all parameters.
        workspace: has the shots, the adapters and the study's choice.
        recipe: a row of ``recipes``.

    Raises:
        InputError: the split, the adapters or the study's choice are missing.
    """
    params = tuned.applied(params, workspace, recipe)
    row, base, split = params.recipes[recipe], params.base, read_split(workspace.splits)
    limit = params.generate.budget_s, params.generate.per_class
    found = {
        f"recipes.{recipe}": {knob: value for knob, value in row.recorded().items() if knob not in _NO_IMAGES},
        f"models.{params.model}": [
            [_generator(params), to_dict(params.sampler(recipe)), base.generate.compile] if row.draws else None,
            base.few_steps.weights if base.few_steps and row.draws and params.sampler(recipe).student else None,
            None if row.draws else base.retrieval,
            [base.clip, split.clip_templates] if sees_through_clip(row) else None,
        ],
        "generate": [
            params.generate.redraws,
            limit if limit[0] is not None and row.draws else params.synthetic_per_class(split.train_per_class),
        ],
        "seed": params.seed,
        "shots": [_shots(row, split), split.invariances, split.native, split.channels],
        "prompts": _prompts(params, workspace, recipe),
    }
    if row.trains and (tuned.adapters(params, workspace, recipe) / "adapters.json").is_file():
        found["adapters"] = [adapter["sha256"] for adapter in _adapters(params, workspace, recipe)["adapters"]]
    return _digests(found)


def sees_through_clip(row: Recipe) -> bool:
    """Return whether a recipe's images depend on the model's CLIP."""
    return row.filters or row.reads_attributes or row.guide == "other_class" or not row.draws


def check_adapters(params: Params, workspace: Workspace, recipe: str) -> None:
    """Refuse to draw with adapters that were trained for other parameters or shots.

    Missing adapters, and those of a version that kept no record, are left to who reads them.

    Args:
        params: all parameters.
        workspace: has the adapters.
        recipe: a row of ``recipes``.

    Raises:
        InputError: naming the folder, what differs and the mend; or the study's choice is missing.
    """
    if not params.recipes[recipe].trains:
        return
    folder = tuned.adapters(params, workspace, recipe)
    if (folder / "adapters.json").is_file():
        now = of_adapters(tuned.applied(params, workspace, recipe), workspace, recipe)
        stage = "adapt" if folder == workspace.adapter(recipe) else "tune"
        _refuse(folder, "trained", _adapters(params, workspace, recipe).get("made_for"), now, f"{stage} {recipe}")


def check_images(params: Params, workspace: Workspace, recipe: str) -> None:
    """Refuse images that were made for other parameters, shots or adapters; see ``check_adapters``.

    Raises:
        InputError: naming the folder, what differs and the mend; or the study's choice is missing.
    """
    path, folder = workspace.result("generate", recipe), workspace.synthetic(recipe)
    if path.is_file() and folder.is_dir():
        made_for = read_json(path, f"dreamset generate {recipe}").get("made_for")
        if made_for is not None:
            _refuse(folder, "made", made_for, of_images(params, workspace, recipe), f"generate {recipe}")


def check_split(params: Params, workspace: Workspace) -> None:
    """Refuse shots that were drawn for other parameters.

    Raises:
        InputError: naming what differs and the mend; or the split is missing.
    """
    split = read_split(workspace.splits)
    wanted = {"shots": (split.shots, params.shots), "seed": (split.seed, params.seed)}
    differing = [name for name, (had, asked) in wanted.items() if had != asked]
    if differing:
        raise InputError(
            f"{workspace.splits}: was drawn with other {listed(differing)} than params.yaml has now; run `dreamset "
            "prepare` again, or `dvc repro`."
        )


def _refuse(folder: Path, made: str, recorded: Mapping[str, str] | None, now: Mapping[str, str], verb: str) -> None:
    differing = [name for name, value in now.items() if recorded is not None and recorded.get(name) != value]
    if differing:
        raise InputError(
            f"{folder}: was {made} for other settings than those of now ({listed(differing)}); run `dreamset {verb}` "
            "first, or `dvc repro`."
        )


def _generator(params: Params) -> list[Any]:
    base = params.base
    return [base.generator, base.variant, base.resolution, base.dtype, base.memory]


def _shots(row: Recipe, split: Split) -> list[Any]:
    captions = [sample.caption for sample in split.train] if row.captions == "beside" else None
    shots = [[sample.sha256, sample.label] for sample in split.train]
    return [split.classes, split.names, split.template, shots, captions]


def _prompts(params: Params, workspace: Workspace, recipe: str) -> list[Any]:
    reads = params.recipes[recipe].reads_attributes
    return [files_digest(params, workspace.root, recipe), [params.base.attributes, params.base.clip] if reads else None]


def _adapters(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    record: dict[str, Any] = read_json(
        tuned.adapters(params, workspace, recipe) / "adapters.json", f"dreamset adapt {recipe}"
    )
    return record


def _digests(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: digest(value)[:16] for name, value in found.items()}
