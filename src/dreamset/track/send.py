"""The process that sends spooled records to MLflow: ``python -m dreamset.track.send``, with a job as JSON on stdin."""

from __future__ import annotations

import fcntl
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamset.track import local, models, spool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    from dreamset.track.spool import Record, Run

_NOT_IN_A_NAME: Final = re.compile(r"[^/\w.\- ]")
_PARAMS_PER_BATCH: Final = 100
_METRICS_PER_BATCH: Final = 1000
_MOST_RUNS: Final = 50_000  # MLflow's limit for one query
# MLflow 3 guesses what an experiment is about, and guesses language models; its page then hides training runs.
_KIND: Final = {"mlflow.experimentKind": "custom_model_development"}


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
                record = spool.read(path)
            except (OSError, ValueError, TypeError, KeyError) as error:
                _drop(path, error)
                continue
            try:
                _send(client, experiment, record, path)
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
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    store = local.file_of(uri)
    place = local.artifacts(store) if store else None
    if store and not store.exists():
        # Create it aside: a kill between its migrations would leave a store that no later run can open.
        aside = store.with_name(f"{store.name}.new")
        aside.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{aside}").create_experiment(experiment, place, _KIND)
        aside.rename(store)
    try:
        client = MlflowClient(uri)
        existing = client.get_experiment_by_name(experiment)
    except MlflowException as error:
        if sentence := local.of_another_version(uri, str(error)):
            sys.exit(sentence)
        raise
    if existing is None:
        name = client.create_experiment(experiment, place, _KIND)
    elif existing.lifecycle_stage != "active":
        sys.exit(f"its experiment {experiment!r} is deleted: restore it or set track.experiment")
    else:
        name = existing.experiment_id
        for key in _KIND.keys() - existing.tags.keys():
            client.set_experiment_tag(name, key, _KIND[key])
    if store and place and (sentence := local.follow(store, name, place)):
        print(f"{local.SAYS}{sentence}", flush=True)
    return client, name


def _send(client: MlflowClient, experiment: str, record: Record, folder: Path) -> None:
    """Send the runs of a record. A run that the server has goes on: nothing is in it twice, however often it is sent.

    What a lost reply or a killed sender left half done is done again, for ``sent`` is the last tag that is set.
    """
    from mlflow.entities import RunTag

    found = client.search_runs([experiment], f"tags.tree = '{record.tree}'", max_results=_MOST_RUNS)
    known = {run.data.tags.get("key"): run for run in found}
    ids = {key: str(run.info.run_id) for key, run in known.items()}
    for number, run in enumerate(record.runs):
        there, sent = known.get(run.key), run.content
        if there and there.info.status != "RUNNING" and there.data.tags.get("sent") == sent:
            continue
        tags = {"tree": record.tree, "key": run.key, "kind": run.kind, **run.tags}
        tags |= {"mlflow.note.content": run.note} if run.note else {}
        tags |= {} if run.above is None else {"mlflow.parentRunId": ids[run.above]}
        if there is None:
            created = client.create_run(experiment, int(run.started * 1000), tags, run.name)
            ids[run.key] = str(created.info.run_id)
        run_id = ids[run.key]
        _log(client, run_id, run, there.data.params if there else {})
        files = spool.files_of(folder, number)
        for path in sorted(files.iterdir()) if files.is_dir() else ():
            if run.model and path.name == spool.MODEL:
                models.log(client, experiment, run_id, run.model, path, _points(run))
            elif path.is_dir():
                client.log_artifacts(run_id, str(path), path.name)
            else:
                client.log_artifact(run_id, str(path))
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in {**tags, "sent": sent}.items()])
        ended = (there.info.end_time if there else None) or 0
        client.set_terminated(run_id, run.status, max(ended, int(run.ended * 1000)))


def _log(client: MlflowClient, run_id: str, run: Run, known: Mapping[str, str]) -> None:
    """Log parameters, figures and data sets; MLflow's parameters cannot change, so ``known`` ones stay."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    params = [Param(key, value[:6000]) for key, value in _named(run.params).items() if key not in known]
    for chunk in _chunks(params, _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=chunk)
    for chunk in _chunks(_points(run), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=chunk)
    inputs = []
    for row in run.datasets:
        source, profile = json.dumps({"uri": row.source}), json.dumps({"num_rows": row.images})
        images = Dataset(row.name, row.digest, "local", source, profile=profile)
        inputs.append(DatasetInput(images, [InputTag("mlflow.data.context", row.use)]))
    if inputs:
        client.log_inputs(run_id, inputs)


def _points(run: Run) -> list[Metric]:
    """Return final figures at the end of the run, and the points of its curves."""
    from mlflow.entities import Metric

    end = int(run.ended * 1000)
    points = [Metric(_name(name), value, end, 0) for name, value in run.metrics.items()]
    for name, curve in run.curves.items():
        points += [Metric(_name(name), value, int(at * 1000), step) for step, value, at in curve]
    return points


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
    # While the stage that has started this process is at work.
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401

    if asked := sys.stdin.read():
        send_all(json.loads(asked))
