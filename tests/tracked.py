"""What tests of tracking share: spooled runs, and a look into the store that they are sent to."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toy
from dreamset import track
from dreamset.core.workspace import Workspace
from dreamset.track import send, spool

if TYPE_CHECKING:
    from dreamset.params import Params

PARAMS = toy.load(Path(__file__).parents[1] / "params.yaml")
T0 = 1_700_000_000.0


def empty_store(folder: Path) -> Path:
    """A store without runs, whose making costs seconds."""
    path = folder / "mlflow.db"
    with chdir(folder):  # beside it, not in the repository, are the files of its runs
        send._connect(f"sqlite:///{path}", PARAMS.track.experiment)
    return path


def aimed(uri: str | None, timeout_s: float = 1) -> Params:
    return replace(PARAMS, track=replace(PARAMS.track, uri=uri, timeout_s=timeout_s))


def spool_one(
    workspace: Workspace,
    params: Params = PARAMS,
    item: str | None = "datadream_dset",
    *,
    files: list[Path] | None = None,
    started: float = T0,
    ended: float | None = None,
    knobs: dict[str, str] | None = None,
    **more: Any,
) -> None:
    """The run of a recipe in that of its pipeline; or, without an item, the pipeline's alone."""
    tree, everything, tags = track.pipeline(workspace, params)
    ended = started + 90 if ended is None else ended
    own = {} if item else more
    top = spool.Run("", f"pipeline {tree[:8]}", "pipeline", started, ended, tags=tags, params=everything, **own)
    below = [spool.Run(item, item, "recipe", started, ended, "", params=knobs or {}, **more)] if item else []
    track.record(workspace, params, "adapt", tree, [top, *below], {item or "": spool.named(files or [])})


def waiting(workspace: Workspace) -> list[Path]:
    return track.spool.records(workspace.spool)


def client(workspace: Workspace) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{workspace.root}/mlflow.db")


def runs(workspace: Workspace) -> dict[str, Any]:
    mlflow = client(workspace)
    experiment = mlflow.get_experiment_by_name(PARAMS.track.experiment).experiment_id
    found = mlflow.search_runs([experiment])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def send_here(workspace: Workspace) -> None:
    """What the sending process does, without the cost of one."""
    with chdir(workspace.root):
        job = {
            "spool": str(workspace.spool),
            "uri": f"sqlite:///{workspace.root}/mlflow.db",
            "experiment": PARAMS.track.experiment,
        }
        send.send_all(job)


def files_of(workspace: Workspace, run: Any) -> list[str]:
    with chdir(workspace.root):  # where a relative place leads, as that of the store
        return [file.path for file in client(workspace).list_artifacts(run.info.run_id)]
