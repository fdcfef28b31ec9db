"""What a study has chosen for a recipe, as every later stage uses it: ``results/tune/<recipe>.json``."""

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
    """Values that ``recipe`` takes over from the one it starts from: of its sampler, what its row does not say itself.

    Raises:
        InputError: a recipe that it starts from is to be tuned, and is not as the parameters and shots now are.
    """
    parent = params.after.get(recipe)
    if parent is None:
        return {}
    row = params.recipes[recipe]
    # What is adapted is the parent's own affair, and noise has no distance from a shot.
    unsaid = {field.name for field in dataclasses.fields(row.sampler) if getattr(row.sampler, field.name) is None}
    unsaid -= set() if row.starts_from_shots else {"strength"}
    return {name: value for name, value in values(params, workspace, parent).items() if name in unsaid}


def values(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Values of the knobs of ``recipe`` that a study chose: the parent's for its sampler, and its own.

    Empty where there was no study, and where none of its trials was feasible.

    Raises:
        InputError: the recipe is to be tuned, and is not as the parameters and shots now are.
    """
    found = inherited(params, workspace, recipe)
    if not params.recipes[recipe].is_tuned:
        return found
    return found | (chosen(params, workspace, recipe)["best"] or {})


def chosen(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """The record of a recipe's study, of these parameters and shots.

    Args:
        params: with the rows of ``recipe`` and of what it starts from as the file has them, nothing applied.
        workspace: where the shots are, and the record.
        recipe: a row with a ``search``.

    Raises:
        InputError: there is none, or it is of others.
    """
    record = _record(workspace, recipe)
    if not is_current(params, workspace, recipe):
        raise InputError(
            f"{workspace.result('tune', recipe)}: was made for other parameters or shots; run `dreamset tune {recipe}` "
            "again."
        )
    return record


def is_current(params: Params, workspace: Workspace, recipe: str) -> bool:
    """Whether the record of a recipe's study, which is there, is of these parameters and shots; see ``chosen``."""
    return bool(_record(workspace, recipe).get("made_for") == made_for(params, workspace, recipe))


def _record(workspace: Workspace, recipe: str) -> dict[str, Any]:
    record: dict[str, Any] = read_json(workspace.result("tune", recipe), f"dreamset tune {recipe}")
    return record


def made_for(params: Params, workspace: Workspace, recipe: str) -> str:
    """Digest of what the record of a study answers for: the rows of the recipe's lineage, the model and the shots."""
    split = read_split(workspace.splits)
    shots = [[[sample.sha256, sample.label] for sample in samples] for samples in (split.train, split.selection)]
    return digest([params.making(recipe), params.model, split.seed, split.classes, shots])


def applied(params: Params, workspace: Workspace, recipe: str) -> Params:
    """``params`` with what was chosen for ``recipe`` in its row, and in that of the recipe that it starts from.

    The latter's search is gone from its row: in another workspace, such as a fold, its adapter is made as was chosen.
    """
    found, parent = values(params, workspace, recipe), params.after.get(recipe)
    if parent is not None:
        params = applied(params, workspace, parent)
        row = dataclasses.replace(params.recipes[parent], search=None)
        params = dataclasses.replace(params, recipes=params.recipes | {parent: row})
    return params.with_values(recipe, found)


def adapters(params: Params, workspace: Workspace, recipe: str) -> Path:
    """Folder of the adapters that images of ``recipe`` are drawn with: those of its study, where it searched them.

    Raises:
        InputError: the recipe is to be tuned, and is not.
    """
    if not params.recipes[recipe].is_tuned:
        return workspace.adapter(recipe)
    folder = workspace.tuned(recipe)
    record = read_json(folder / "adapters.json", f"dreamset tune {recipe}")
    return folder if record.get("tuned") else workspace.adapter(recipe)
