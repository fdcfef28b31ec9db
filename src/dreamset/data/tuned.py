"""The values that a study chose for a recipe, as every later stage uses them: ``results/tune/<recipe>.json``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json
from dreamset.data.splits import read_split

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

OF_ADAPTERS: Final = ("epoch", "lr", "epochs")  # knobs that choose weights, and not how images are drawn with them


def inherited(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the sampler's values that ``recipe`` takes over from the recipe it starts from, as its row lacks them.

    Raises:
        InputError: a recipe that it starts from has a search, and no study of the present parameters and shots.
    """
    parent = params.after.get(recipe)
    if parent is None:
        return {}
    row = params.recipes[recipe]
    # The adapters are the parent's. A recipe that starts from noise has no distance from a shot, hence no strength.
    unsaid = {field.name for field in dataclasses.fields(row.sampler) if getattr(row.sampler, field.name) is None}
    unsaid -= set() if row.starts_from_shots else {"strength"}
    return {name: value for name, value in values(params, workspace, parent).items() if name in unsaid}


def values(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the values of the knobs of ``recipe`` that studies chose: the parent's for the sampler, and its own.

    They are empty where there was no study, and where none of its trials was feasible.

    Raises:
        InputError: the recipe has a search, and no study of the present parameters and shots.
    """
    taken_over = inherited(params, workspace, recipe)
    if not params.recipes[recipe].is_tuned:
        return taken_over
    return taken_over | (chosen(params, workspace, recipe)["best"] or {})


def chosen(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Return the record of a recipe's study of these parameters and shots.

    Args:
        params: the rows of ``recipe`` and of the recipe it starts from are as in the file, with nothing applied.
        workspace: holds the shots and the record.
        recipe: a row with a ``search``.

    Raises:
        InputError: there is no record, or it is of other parameters or shots.
    """
    record = _record(workspace, recipe)
    if not is_current(params, workspace, recipe):
        raise InputError(
            f"{workspace.result('tune', recipe)}: was made for other parameters or shots; run `dreamset tune {recipe}` "
            "again."
        )
    return record


def is_current(params: Params, workspace: Workspace, recipe: str) -> bool:
    """Return whether the record of a recipe's study, which must exist, is of these parameters and shots."""
    return bool(_record(workspace, recipe).get("made_for") == made_for(params, workspace, recipe))


def _record(workspace: Workspace, recipe: str) -> dict[str, Any]:
    record: dict[str, Any] = read_json(workspace.result("tune", recipe), f"dreamset tune {recipe}")
    return record


def made_for(params: Params, workspace: Workspace, recipe: str) -> str:
    """Return a digest of what a study depends on: the rows of the recipe's lineage, the model and the shots."""
    split = read_split(workspace.splits)
    shots = [[[sample.sha256, sample.label] for sample in samples] for samples in (split.train, split.selection)]
    seen = [[params.base.clip, split.clip_prompts()]] if through_clip(params, recipe) else []
    return digest([params.studying(recipe), params.model, split.seed, split.classes, shots, *seen])


def through_clip(params: Params, recipe: str) -> bool:
    """Return whether CLIP chooses or guides images of a recipe or of one it starts from, or does so in its trials."""
    rows = [params.recipes[name] for name in params.lineage(recipe)]
    return any(
        row.filters or row.guide == "other_class" or row.searches("filter") or row.searches("guide") for row in rows
    )


def applied(params: Params, workspace: Workspace, recipe: str) -> Params:
    """Return ``params`` with the chosen values in the row of ``recipe`` and in that of the recipe it starts from.

    What the row has of its own in place of a key of all recipes stands there, too; see ``Params.of``. The row of the
    recipe it starts from loses its search: another workspace, such as a fold, makes its adapter with the chosen values.
    """
    return _applied(params, workspace, recipe).of(recipe)


def _applied(params: Params, workspace: Workspace, recipe: str) -> Params:
    best, parent = values(params, workspace, recipe), params.after.get(recipe)
    if parent is not None:
        params = _applied(params, workspace, parent)
        row = dataclasses.replace(params.recipes[parent], search=None)
        params = dataclasses.replace(params, recipes=params.recipes | {parent: row})
    return params.with_values(recipe, best)


def adapters(params: Params, workspace: Workspace, recipe: str) -> Path:
    """Return the folder of the adapters that ``recipe`` draws with: those of its study, where it searched adapters.

    Raises:
        InputError: the recipe has a search, and no study yet.
    """
    if not params.recipes[recipe].is_tuned:
        return workspace.adapter(recipe)
    folder = workspace.tuned(recipe)
    record = read_json(folder / "adapters.json", f"dreamset tune {recipe}")
    return folder if record.get("tuned") else workspace.adapter(recipe)
