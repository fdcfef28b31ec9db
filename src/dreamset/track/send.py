"""The process that sends spooled records to MLflow: ``python -m dreamset.track.send``, with a job as JSON on stdin."""

from __future__ import annotations

import fcntl
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.track import spool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.tracking import MlflowClient

    from dreamset.track.spool import Run, Study, Trial

_NOT_IN_A_NAME: Final = re.compile(r"[^/\w.\- ]")
_PARAMS_PER_BATCH: Final = 100
_METRICS_PER_BATCH: Final = 1000
_MOST_RUNS: Final = 50_000  # MLflow's limit for one query


def send_all(job: Mapping[str, Any]) -> None:
    """Send the records by their start time, as the only sender of this spool; print a line for each of them."""
    from mlflow.exceptions import MlflowException

    folder = Path(job["spool"])
    with (folder / ".lock").open("w") as lock:
        # Two senders would send a record twice, and on an empty sqlite store each would crash the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        spool.sweep(folder)
        waiting = spool.records(folder)
        if not waiting:
            return
        client, experiment = _connect(job["uri"], job["experiment"])
        for path in waiting:
            try:
                run = spool.read(path)
            except (OSError, ValueError, TypeError) as error:
                _drop(path, error)
                continue
            try:
                if isinstance(run, spool.Study):
                    _send_study(client, experiment, run, path)
                else:
                    _send(client, experiment, run, path / "artifacts")
            except MlflowException as error:
                # A record that the server will never take must not hold up the others for ever.
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                _drop(path, error)
            else:
                spool.remove(path)
                print("sent", flush=True)


def _drop(path: Path, error: Exception) -> None:
    spool.put_aside(path, error)
    print("broken", flush=True)


def _connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client and the id of the experiment, which is created where it is missing."""
    from mlflow.tracking import MlflowClient

    artifacts = None
    if uri.startswith("sqlite:///"):
        store = Path(uri.removeprefix("sqlite:///")).absolute()
        artifacts = (Path.cwd() / "mlartifacts").as_uri()
        if not store.exists():
            # Create it aside: a kill between its migrations would leave a store that no later run can open.
            aside = store.with_name(f"{store.name}.new")
            aside.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{aside}").create_experiment(experiment, artifact_location=artifacts)
            aside.rename(store)
    client = MlflowClient(uri)
    existing = client.get_experiment_by_name(experiment)
    if existing is None:
        return client, client.create_experiment(experiment, artifact_location=artifacts)
    if existing.lifecycle_stage != "active":
        sys.exit(f"its experiment {experiment!r} is deleted: restore it or set track.experiment")
    return client, existing.experiment_id


def _send(client: MlflowClient, experiment: str, run: Run, artifacts: Path) -> None:
    """Send a record as one finished MLflow run, and never twice, even where the server's reply was lost."""
    for known in client.search_runs([experiment], f"tags.record = '{run.id}'"):
        if known.info.status == "FINISHED":
            return
        client.delete_run(known.info.run_id)
    parent = _parent(client, experiment, run)
    tags = {
        "record": run.id,
        "mlflow.parentRunId": parent,
        "dvc_stage": run.stage if run.item is None else f"{run.stage}@{run.item}",
        **_common_tags(run),
    }
    run_id = client.create_run(experiment, int(run.started * 1000), tags, tags["dvc_stage"]).info.run_id
    _log_params(client, run_id, run.params)
    _log_metrics(client, run_id, run)
    if artifacts.is_dir():
        client.log_artifacts(run_id, str(artifacts))
    client.set_terminated(run_id, end_time=int(run.ended * 1000))
    if run.item is None:
        # A stage that runs once speaks for the pipeline: its figures compare whole pipelines in MLflow's list.
        _log_metrics(client, parent, replace(run, curves={}))
    ended = client.get_run(parent).info.end_time or 0
    client.set_terminated(parent, end_time=max(ended, int(run.ended * 1000)))


def _send_study(client: MlflowClient, experiment: str, study: Study, folder: Path) -> None:
    """Send a study as a run with a nested run per trial; runs that the server has already stay as they are."""
    runs = client.search_runs([experiment], f"tags.study_id = '{study.study}'", max_results=_MOST_RUNS)
    known = {run.data.tags.get("trial"): run for run in runs}
    if None in known:
        parent = str(known[None].info.run_id)
        # MLflow's parameters cannot change, so a study that goes on keeps those that it began with.
        params = {name: value for name, value in _named(study.params).items() if name not in known[None].data.params}
    else:
        tags = {"study_id": study.study, **study.tags}
        parent = str(client.create_run(experiment, int(study.started * 1000), tags, study.name).info.run_id)
        params = study.params
    _log_params(client, parent, params)
    for trial in study.trials:
        sent = known.get(str(trial.number))
        if sent is not None and sent.info.status != "RUNNING":
            continue
        if sent is not None:
            client.delete_run(sent.info.run_id)
        tags = {"study_id": study.study, "trial": str(trial.number), "mlflow.parentRunId": parent, **trial.tags}
        run_id = client.create_run(experiment, int(trial.started * 1000), tags, trial.name).info.run_id
        _log_params(client, run_id, trial.params)
        _log_metrics(client, run_id, trial)
        picture = folder / "trials" / str(trial.number)
        if picture.is_dir():
            client.log_artifacts(run_id, str(picture))
        client.set_terminated(run_id, trial.status, int(trial.ended * 1000))
    for name, value in {**study.tags, "mlflow.note.content": study.note}.items():
        client.set_tag(parent, name, value)
    _log_metrics(client, parent, study)
    if (folder / "artifacts").is_dir():
        client.log_artifacts(parent, str(folder / "artifacts"))
    client.set_terminated(parent, end_time=int(study.ended * 1000))


def _parent(client: MlflowClient, experiment: str, run: Run) -> str:
    """Return the id of the pipeline's run, by its tag; create the run where it is missing."""
    query = f"tags.pipeline = '{run.pipeline}' and tags.dvc_stage = 'pipeline'"
    runs = client.search_runs([experiment], query, max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    tags = {"dvc_stage": "pipeline", **_common_tags(run)}
    name = f"pipeline {run.pipeline[:8]}"
    run_id = str(client.create_run(experiment, int(run.started * 1000), tags, name).info.run_id)
    _log_params(client, run_id, run.pipeline_params)
    return run_id


def _common_tags(run: Run) -> dict[str, str]:
    return {"pipeline": run.pipeline, "git_commit": run.commit, "mlflow.source.git.commit": run.commit}


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    for chunk in _chunks([Param(key, value[:6000]) for key, value in _named(params).items()], _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=chunk)


def _log_metrics(client: MlflowClient, run_id: str, run: Run | Study | Trial) -> None:
    """Log final figures at the end of the stage, and the points of a curve spread over its time."""
    from mlflow.entities import Metric

    end = int(run.ended * 1000)
    points = [Metric(_name(name), value, end, 0) for name, value in run.metrics.items()]
    for name, curve in run.curves.items():
        last = max((step for step, _ in curve), default=0) or 1
        for step, value in curve:
            at = run.started + (run.ended - run.started) * step / last
            points.append(Metric(_name(name), value, int(at * 1000), step))
    for chunk in _chunks(points, _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=chunk)


def _name(name: str) -> str:
    """Return a metric's name in the characters that MLflow allows."""
    return _NOT_IN_A_NAME.sub("_", name).strip("/.")[:250] or "_"


def _named(params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters with names that MLflow allows; names that become equal are numbered.

    Names contain those of classes, which may hold any character. Slashes go too: MLflow refuses ``a//b`` and
    ``a/../b``.
    """
    named: dict[str, str] = {}
    for key, value in params.items():
        name = plain = _name(key.replace("/", "_"))
        number = 1
        while name in named:
            number += 1
            name = f"{plain[:240]}_{number}"
        named[name] = value
    return named


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


if __name__ == "__main__":
    send_all(json.load(sys.stdin))
