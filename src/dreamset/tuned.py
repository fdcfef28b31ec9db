"""What a study has chosen for a recipe, as every later stage uses it: ``results/tune/<recipe>.json``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from dreamset.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params
    from dreamset.workspace import Workspace

OF_ADAPTERS: Final = ("epoch", "lr", "epochs")  # knobs that choose weights, and not how images are drawn with them


def inherited(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Values that ``recipe`` takes over from the one it starts from: of its sampler, what its row does not say itself.

    Raises:
        InputError: a recipe that it starts from is to be tuned, and is not.
    """
    parent = params.after.get(recipe)
    if parent is None:
        return {}
    own = params.recipes[recipe].sampler
    # What is adapted is the parent's own affair.
    return {name: value for name, value in values(params, workspace, parent).items() if getattr(own, name, 0) is None}


def values(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Values of the knobs of ``recipe`` that a study chose: the parent's for its sampler, and its own.

    Empty where there was no study, and where none of its trials was feasible.

    Raises:
        InputError: the recipe is to be tuned, and is not.
    """
    found = inherited(params, workspace, recipe)
    if params.recipes[recipe].search is None:
        return found
    record = read_json(workspace.result("tune", recipe), f"dreamset tune {recipe}")
    return found | (record["best"] or {})


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
    if params.recipes[recipe].search is None:
        return workspace.adapter(recipe)
    folder = workspace.tuned(recipe)
    record = read_json(folder / "adapters.json", f"dreamset tune {recipe}")
    return folder if record.get("tuned") else workspace.adapter(recipe)
