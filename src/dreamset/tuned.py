"""What a study has chosen for a recipe, as every later stage uses it: ``results/tune/<recipe>.json``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dreamset.files import read_json

if TYPE_CHECKING:
    from dreamset.params import Params
    from dreamset.workspace import Workspace


def values(params: Params, workspace: Workspace, recipe: str) -> dict[str, Any]:
    """Values of the knobs of ``recipe`` that a study chose: the parent's for its sampler, and its own.

    Empty where there was no study, and where none of its trials was feasible.

    Raises:
        InputError: the recipe is to be tuned, and is not.
    """
    found: dict[str, Any] = {}
    parent = params.after.get(recipe)
    if parent is not None:
        own = params.recipes[recipe].sampler
        inherited = values(params, workspace, parent)
        # What is adapted is the parent's own affair; of its sampler, what this row does not say itself.
        found = {name: value for name, value in inherited.items() if getattr(own, name, value) is None}
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
