"""What MLflow is told: a run per pipeline, and nested in it one per recipe and one per classifier.

``tracked_runs`` says what is in them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from dreamset import track
from dreamset.command import tracked_runs as runs
from dreamset.core.errors import InputError
from dreamset.core.files import digest, read_json, sha256_file
from dreamset.data import primary
from dreamset.data.runs import Kind, Run
from dreamset.evaluate import output
from dreamset.metrics.gains import Gain, over_real
from dreamset.track import spool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreamset.core.workspace import Workspace
    from dreamset.params import Params

_ITEMS: Final = ("adapt", "generate", "train")  # stages that run once per recipe and leave a record for MLflow


def stage(
    params: Params,
    workspace: Workspace,
    name: str,
    item: str | None,
    summary: Mapping[str, Any],
    started: float,
    process: track.Sender | None = None,
) -> None:
    """Spool what a stage has done, at its end; no failure of it fails the stage.

    Args:
        params: all parameters.
        workspace: where the results are.
        name: the stage.
        item: the recipe or the arm; None for a stage that runs once.
        summary: what its ``run`` returned.
        started: seconds since the epoch.
        process: what sends, where ``track.sender`` has started it.
    """
    try:
        if _stage(params, workspace, name, item, summary, started):
            track.finish(workspace, params, name, started, process)
    except (InputError, OSError, LookupError, TypeError, ValueError) as error:
        # The stage has done its work, whatever its files lack that MLflow is told of.
        track.warn(f"{name} is not tracked ({type(error).__name__}: {error}).")


def _stage(
    params: Params, workspace: Workspace, name: str, item: str | None, summary: Mapping[str, Any], started: float
) -> bool:
    """Return whether anything was spooled."""
    if params.track.uri is None:
        return False
    private = not params.report.show_real
    if name == "tune" and item:
        files = runs.artifacts(workspace, name, item, private)
        track.study(workspace, params, item, read_json(workspace.result(name, item), f"dreamset tune {item}"), files)
        return True
    tree, everything, tags = track.pipeline(workspace, params)
    top: dict[str, Any] = {}
    below: list[runs.Told] = []
    if name in _ITEMS and item:
        below = runs.recipes(params, workspace, (item,), (name,)) + runs.trained(params, workspace, item, name)
    elif name == "evaluate":
        top, below = _evaluated(params, workspace, summary)
    elif name == "deliver":
        top, below = _delivered(params, workspace)
    if item and not below:
        return False  # a recipe that nothing is trained for has nothing to tell yet
    files = [] if item else runs.artifacts(workspace, name, item, private)
    top["tags"] = tags | top.get("tags", {})
    pipeline = spool.Run(
        runs.PIPELINE, f"pipeline {tree[:8]}", "pipeline", started, time.time(), params=everything, **top
    )
    told = [(pipeline, spool.named(files)), *below]
    track.record(workspace, params, name, tree, [run for run, _ in told], {run.key: files for run, files in told})
    return True


def _evaluated(
    params: Params, workspace: Workspace, evaluation: Mapping[str, Any]
) -> tuple[dict[str, Any], list[runs.Told]]:
    """Return what an evaluation says of its pipeline, and its recipes and classifiers, each whole."""
    rows, verdict = output.rows(dict(evaluation)), evaluation.get("verdict")
    choice = primary.settle(params, workspace)
    compact = output.summary(choice, rows, verdict)
    top: dict[str, Any] = {"metrics": runs.numbers(compact), "tags": {"primary": choice.primary_recipe}}
    if verdict:
        top |= {"note": verdict["sentence"]}
    gains = [Gain.read(row) for row in evaluation["differences"]]
    below = runs.recipes(params, workspace, params.active, ("adapt", "generate", "evaluate"), evaluation)
    for row in rows:
        run = Run(row["recipe"], Kind.parse(row["train_on"]), row["classifier"])
        below.append(
            runs.classifier(params, workspace, run, row, over_real(gains, run.arm, run.classifier, (run.kind,)))
        )
    return top, below + runs.over_folds(params, workspace, evaluation, rows)


def _delivered(params: Params, workspace: Workspace) -> tuple[dict[str, Any], list[runs.Told]]:
    """Return the verdict that decided what is delivered, and the run of that classifier with the model."""
    from dreamset import classifiers
    from dreamset.use import served

    record = read_json(workspace.classifier / classifiers.RECORD, "dreamset deliver")
    evaluation = read_json(workspace.result("evaluate"), "dreamset evaluate")
    decision, chosen = record["verdict"], read_json(workspace.result("deliver"), "dreamset deliver")
    run = Run(chosen["arm"], Kind.parse(chosen["train_on"]), chosen["classifier"])
    content = digest([[path.name, sha256_file(path)] for path in sorted(workspace.classifier.iterdir())])[:16]
    model = spool.Model("classifier", content, served.__name__, served.INPUTS, served.OUTPUTS)
    gains = [Gain.read(row) for row in evaluation["differences"]]
    below = [
        runs.classifier(params, workspace, run, row, over_real(gains, run.arm, run.classifier, (run.kind,)), model)
        for row in output.rows(evaluation)
        if (row["recipe"], row["train_on"], row["classifier"]) == (run.arm, str(run.kind), run.classifier)
    ]
    return {"note": f"{decision['sentence']}\n\n{decision['basis']}"}, below
