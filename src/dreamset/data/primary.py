"""The recipe of the verdict where ``primary: auto`` leaves it to ``expect``, which decides by the shots alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.params.tree import AUTO

if TYPE_CHECKING:
    from dreamset.core.workspace import Workspace
    from dreamset.params import Params


def settle(params: Params, workspace: Workspace) -> Params:
    """Return ``params`` with a recipe as ``primary``: under ``auto`` the first active one of the order in ``expect``.

    Where none of the order is active, ``Params.primary_recipe`` takes the first adapted recipe, as it always does.

    Raises:
        InputError: ``expect`` has not run, or is older than ``auto``.
    """
    if params.primary != AUTO:
        return params
    order = decision(workspace)["order"]
    return dataclasses.replace(params, primary=next((name for name in order if name in params.active), order[0]))


def decision(workspace: Workspace) -> dict[str, Any]:
    """Return what ``expect`` decided: ``known``, the ``order`` of recipes, and the ``reason`` as a sentence.

    Raises:
        InputError: ``expect`` has not run, or is older than ``auto``.
    """
    path = workspace.result("expect")
    found: dict[str, Any] | None = read_json(path, "dreamset expect").get("primary")
    if not found:
        raise InputError(f"{path}: names no recipe for primary: auto; run `dreamset expect` again.")
    return found
