"""``dreamset recommend``: what a finished table says of which images and which classifier to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dreamset.core.errors import InputError
from dreamset.core.files import read_json, write_json
from dreamset.data.runs import REAL
from dreamset.metrics import claims, recommendation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_SCOPES: Final = {
    "dataset": "one adapter for all classes",
    "class": "an adapter for each class",
    "image": "an adapter for each shot",
    "shared": "adapters of a class that share a half",
}
CAUTION: Final = (
    "The test images of the table chose this, so it is a hint. `dreamset claims fix` and seeds that nobody has scored "
    "can show whether it holds."
)


def write(params: Params, folder: Path, records: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """Write the recommendation at each number of shots that has seeds enough, and return their sentences.

    Args:
        params: all parameters.
        folder: of the table.
        records: of its cells.
    """
    table, told = {}, {}
    for shots in sorted({cell["shots"] for cell in records}):
        try:
            found = recommend(params, [cell for cell in records if cell["shots"] == shots])
        except InputError as error:
            # Too few seeds, or runs that have too little in common: the table stands without it.
            told[shots] = [f"No recommendation at {shots} shots. {error}"]
            continue
        told[shots] = sentences(params, found, shots)
        table[str(shots)] = found.record | {"sentences": told[shots]}
    write_json(folder / claims.RECOMMENDATIONS, table)
    return told


def recommend(
    params: Params, cells: Sequence[dict[str, Any]], budget: float | None = None
) -> recommendation.Recommendation:
    """Return the recommendation of cells of one number of shots; see ``recommendation.recommend``."""
    return recommendation.recommend(cells, params.evaluate.confidence, params.evaluate.bootstrap, budget)


def sentences(params: Params, found: recommendation.Recommendation, shots: object) -> list[str]:
    """Return a recommendation in words."""
    row = params.recipes.get(found.best.run.arm)
    scope = _SCOPES.get(row.scope or "") if row is not None else None
    return recommendation.sentences(found, shots, scope, params.evaluate.confidence)


def run(
    params: Params, workspace: Workspace, records: Sequence[dict[str, Any]], shots: int, budget: float | None
) -> list[str]:
    """Return what the cells of a table say at a number of shots.

    Args:
        params: all parameters.
        workspace: the project's workspace.
        records: of the cells.
        shots: images per class; the nearest number that the table has stands for it.
        budget: most seconds of adapting, tuning, drawing and training; None: any.

    Raises:
        InputError: there is no table, or it has too few seeds.
    """
    if not records:
        raise InputError(
            f"{workspace.results / 'table'}: there is no table over seeds; run `dreamset table --shots {shots} --seeds "
            "0-5` with the recipes in question."
        )
    at = min((cell["shots"] for cell in records), key=lambda k: (abs(k - shots), k))
    found = recommend(params, [cell for cell in records if cell["shots"] == at], budget)
    said = sentences(params, found, at)
    if at != shots:
        said.insert(0, f"The table has no seeds at {shots} shots; those at {at} are the nearest.")
    warning = claims.read(params, workspace, [REAL, *params.recipes]).warning
    if warning is not None:
        said.insert(0, warning)
    if budget is not None:
        said.append(f"Runs with synthetic images that take more than {budget:.0f} s were left aside.")
    best = found.best.run.arm
    path = workspace.result("tune", best)
    study = read_json(path, f"dreamset tune {best}") if path.is_file() else {}
    if study.get("best"):
        said.append(f"Its study: {study['sentences'][0]}")
    return [*said, CAUTION]
