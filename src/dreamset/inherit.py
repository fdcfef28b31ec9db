"""Adapters in a fold, made with the values that studies of the workspace have chosen.

A fold that only selects runs no study of its own: that would choose by images of a quarter of the shots, of which the
next quarter is taken away again. What was chosen by all of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamset import adapt
from dreamset.core.files import write_json
from dreamset.data import tuned

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def parents(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """What ``recipe`` starts from, in ``place``: adapted to its shots, with values chosen in ``workspace``.

    Returns:
        Seconds of the training.
    """
    return sum(_one(params, workspace, place, name) for name in params.lineage(recipe)[:-1])


def adapted(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    """The same of ``recipe`` itself, too; images can then be drawn in ``place``."""
    return parents(params, workspace, place, recipe) + _one(params, workspace, place, recipe)


def _one(params: Params, workspace: Workspace, place: Workspace, recipe: str) -> float:
    if params.recipes[recipe].search is not None:
        record = tuned.chosen(params, workspace, recipe)
        # Of fewer shots here, on purpose.
        write_json(place.result("tune", recipe), record | {"made_for": tuned.made_for(params, place, recipe)})
        # What is trained below has the values that were chosen: there is no second set of adapters.
        write_json(place.tuned(recipe) / "adapters.json", {"recipe": recipe, "tuned": False, "adapters": []})
    return float(adapt.run(tuned.applied(params, place, recipe), place, recipe)["seconds"])
