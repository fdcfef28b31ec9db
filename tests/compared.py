"""A finished run, made up, of which MLflow is told: every stage has left its results, and nothing was computed."""

from __future__ import annotations

import time
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import reported
import toy
from dreamset.command import tracked
from dreamset.core.files import write_csv, write_json
from dreamset.track import send

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

SENTENCE = "These images cannot tell: resnet20 gets 2.2 percentage points more of 877 test images right."
STAGES = (*((stage, recipe) for recipe in reported.RECIPES for stage in ("adapt", "generate", "train")),)


def write(folder: Path, **changes: Any) -> tuple[Params, Workspace, dict[str, Any]]:
    """The parameters, the workspace with every result, and the content of ``results/evaluate.json``."""
    params = toy.params(train__baselines=[], **changes)
    workspace = reported.write(folder, params)
    record = reported.evaluation(params, toy.CLASSES, reported.accuracies(params))
    sets = {recipe: measures(place) for place, recipe in enumerate(reported.RECIPES)}
    costs = {recipe: {"seconds_adapt": 41.0, "seconds_generate": 12.0, "images": 18} for recipe in reported.RECIPES}
    verdict = {"of": "datadream_dset/both/resnet20", "minus": "real/real/resnet20", "outcome": "cannot_tell"}
    verdict |= {"difference": 0.0455, "low": -0.0113, "high": 0.0572, "sentence": SENTENCE}
    record |= {"shots": 4, "seed": 0, "protocol": "test", "sets": sets, "costs": costs, "verdict": verdict}
    write_json(workspace.result("evaluate"), record)
    for arm in ("real", *reported.RECIPES):
        rows = [row for row in record["runs"] if row["arm"] == arm]
        made = [{name: row[name] for name in ("train_on", "classifier", "seconds")} for row in rows]
        settings = {"configuration": {"lr": 0.003, "steps": 12}}
        write_json(workspace.result("train", arm), {"arm": arm, "runs": [row | settings for row in made]})
        loss = [
            {"run": f"{row['train_on']}_{row['classifier']}", "step": step, "loss": 3.0 / step}
            for row in rows
            for step in (4, 8, 12)
        ]
        write_csv(workspace.plots("train", arm) / "loss.csv", loss, ("run", "step", "loss"))
    return params, workspace, record


def measures(place: int) -> dict[str, Any]:
    return {"fid": 79.6 - 50 * place, "kid": 0.143, "coverage": 0.4, "near_duplicates": {"count": 4, "share": 0.02}}


def tell(params: Params, workspace: Workspace, evaluation: dict[str, Any]) -> None:
    """What the verbs tell at the end of each stage."""
    for stage, item in STAGES:
        tracked.stage(params, workspace, stage, item, {}, time.time())
    tracked.stage(params, workspace, "train", "real", {}, time.time())
    tracked.stage(params, workspace, "evaluate", None, evaluation, time.time())


def send_here(params: Params, workspace: Workspace) -> None:
    """What the sending process does, without the cost of one."""
    with chdir(workspace.root):
        # MLflow remembers a store by its address, and a relative one would be that of an earlier test.
        uri = f"sqlite:///{workspace.root}/mlflow.db"
        job = {"spool": str(workspace.spool), "uri": uri, "experiment": params.track.experiment}
        send.send_all(job)
