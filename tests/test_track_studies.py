"""Studies in MLflow: a run for each, with its trials below it."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import known_study
import studied
from dreamset import track
from dreamset.command import verbs
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from tracked import PARAMS, T0, aimed, client, empty_store, files_of, send_here, spool_one, waiting


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store."""
    return empty_store(tmp_path_factory.mktemp("store"))


def study_runs(workspace: Workspace) -> tuple[list[Any], dict[str, Any]]:
    """The runs of studies, and those of their trials by number."""
    mlflow = client(workspace)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(PARAMS.track.experiment).experiment_id])
    trials = [run for run in found if run.data.tags["kind"] == "trial"]
    assert len({run.data.tags["key"] for run in trials}) == len(trials)
    parents = [run for run in found if run.data.tags["kind"] == "study"]
    return parents, {run.data.tags["key"].removeprefix("trial/"): run for run in trials}


def test_a_study_is_a_run_with_a_nested_one_per_trial(workspace: Workspace, store: Path) -> None:
    shutil.copy(store, workspace.root)
    record = known_study.record()
    record["trials"][0]["samples"] = "picture"
    record["trials"][5]["samples"] = "of another machine"
    workspace.artifacts.mkdir(parents=True)
    (workspace.artifacts / "picture").write_bytes(b"png")
    plot = workspace.root / "history.csv"
    plot.write_text("trial,cas")
    track.study(workspace, PARAMS, known_study.RECIPE, record, [plot])
    shutil.rmtree(workspace.artifacts)
    send_here(workspace)
    assert waiting(workspace) == []

    [parent], trials = study_runs(workspace)
    assert parent.info.run_name == f"study {known_study.NAME}"
    assert parent.info.status == "FINISHED"
    assert (parent.info.start_time, parent.info.end_time) == (T0 * 1000, (T0 + 111) * 1000)
    assert parent.data.tags["best"] == "guidance 2.6, steps 25"
    assert parent.data.tags["mlflow.note.content"] == record["sentences"][0]
    assert parent.data.params["pruner"] == "hyperband"
    assert parent.data.params["recipe.search.guidance.high"] == "7.5"
    best = known_study.cas(2.6, 25, 27)
    figures = {"best_cas": best, "best_guidance": 2.6, "best_steps": 25, "best_trial": 5, "saved_resource": 0.42}
    figures |= {"trials_complete": 3, "trials_pruned": 2, "trials_failed": 1, "seconds": 120}
    assert parent.data.metrics == figures | {"default_cas": known_study.cas(2.0, 20, 27)}
    assert files_of(workspace, parent) == ["history.csv"]

    statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    assert [trials[number].info.run_name for number in "013"] == ["trial 0", "trial 1, pruned", "trial 3, failed"]
    assert trials["4"].data.tags["mlflow.note.content"] == "Pruned after 9 of 27 images per class."
    for row in record["trials"]:
        run = trials.pop(str(row["number"]))
        assert run.info.status == statuses[row["state"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["worker"] == "there:4711"
        assert run.data.params == {name: str(value) for name, value in row["params"].items()}
        assert ("cas" in run.data.metrics) == (row["state"] == "COMPLETE"), "CAS at few images is another number"
        assert run.data.tags.get("reason") == row["reason"]
        curve = client(workspace).get_metric_history(run.info.run_id, "cas_by_images_per_class")
        assert {str(point.step): point.value for point in curve} == row["rungs"]
        assert files_of(workspace, run) == (["samples.png"] if row["number"] == 0 else [])
    assert trials == {}


def test_where_images_are_searched_a_trial_tells_its_own(workspace: Workspace) -> None:
    record = known_study.record() | studied.OWN_IMAGES
    for row in record["trials"]:
        row.update(studied.own_images(20, 20, 60))
    track.study(workspace, PARAMS, known_study.RECIPE, record, [])
    send_here(workspace)
    _, trials = study_runs(workspace)
    assert trials["4"].data.tags["mlflow.note.content"] == "Pruned after 20 of 60 images per class."
    curve = client(workspace).get_metric_history(trials["0"].info.run_id, "cas_by_images_per_class")
    assert [(point.step, point.value) for point in curve] == [
        (step, record["trials"][0]["rungs"][rung]) for step, rung in ((20, "3"), (20, "9"), (60, "27"))
    ]


def test_the_stage_spools_its_study(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "stage_function", lambda _: lambda *_: {"recipe": known_study.RECIPE})
    monkeypatch.setattr(verbs, "_print", lambda *_: None)
    monkeypatch.setattr(verbs.ready, "refuse", lambda *_: None)  # there are no weights here
    monkeypatch.chdir(workspace.root)
    shutil.copy(Path(__file__).parents[1] / "params.yaml", workspace.root)
    for recipe, record in (
        (known_study.RECIPE, known_study.record()),
        ("datadream_dset", {"searched": [], "best": None}),
    ):
        write_json(workspace.result("tune", recipe), record)
        verbs.stage(Namespace(stage="tune", item=recipe, dry_run=False, params=None, worker=False))
    found = [track.spool.read(path) for path in waiting(workspace)]
    assert [run.stage for run in found] == ["study"], "a recipe without a study has nothing to tell"
    assert (track.spool.files_of(waiting(workspace)[0], 0) / f"{known_study.RECIPE}.json").is_file()


def test_a_study_that_goes_on_or_is_sent_again_stays_one_run(workspace: Workspace, store: Path) -> None:
    shutil.copy(store, workspace.root)
    whole = known_study.record()
    first = known_study.record(trials=whole["trials"][:4], best_trial=0, best=whole["trials"][0]["params"])
    track.study(workspace, PARAMS, known_study.RECIPE, first)
    send_here(workspace)
    [parent], trials = study_runs(workspace)
    # As a sender leaves them that is killed within a trial.
    client(workspace).set_terminated(trials["1"].info.run_id, "RUNNING")
    client(workspace).set_terminated(parent.info.run_id, "RUNNING")

    more = replace(PARAMS, tune=replace(PARAMS.tune, trials=6))
    for _ in range(2):
        track.study(workspace, more, known_study.RECIPE, whole)
    send_here(workspace)
    [again], now = study_runs(workspace)
    assert again.info.run_id == parent.info.run_id
    assert again.info.status == "FINISHED"
    assert (again.data.metrics["best_trial"], again.data.tags["best"]) == (5, "guidance 2.6, steps 25")
    assert sorted(now) == ["0", "1", "2", "3", "4", "5"]
    assert [now[number].info.run_id for number in "0123"] == [trials[number].info.run_id for number in "0123"]
    assert now["1"].info.status == "KILLED"
    history = client(workspace).get_metric_history(parent.info.run_id, "best_steps")
    assert sorted(point.value for point in history) == [20, 25], "what is sent twice is one point"

    # One of the same name in another storage.
    for row in whole["trials"]:
        row["started"] += 1e6
    track.study(workspace, PARAMS, known_study.RECIPE, whole)
    send_here(workspace)
    mlflow = client(workspace)
    experiment = mlflow.get_experiment_by_name(PARAMS.track.experiment).experiment_id
    assert len(mlflow.search_runs([experiment], "tags.kind = 'study'")) == 2


def test_a_study_without_a_feasible_trial_says_so_and_none_is_no_record(workspace: Workspace) -> None:
    track.study(workspace, PARAMS, known_study.RECIPE, {"recipe": known_study.RECIPE, "searched": [], "best": None})
    track.study(workspace, aimed(None), known_study.RECIPE, known_study.record())
    assert waiting(workspace) == []
    rows = [row | {"feasible": False} for row in known_study.trials()]
    track.study(workspace, PARAMS, known_study.RECIPE, known_study.record(trials=rows, best=None, best_trial=None))
    [path] = waiting(workspace)
    record = json.loads((path / "record.json").read_text())
    study, *trials = record["runs"]
    assert study["tags"]["best"] == "no feasible trial"
    assert "best_cas" not in study["metrics"]
    assert {trial["tags"]["feasible"] for trial in trials} == {"false"}


def test_a_password_of_the_storage_is_sent_nowhere(workspace: Workspace) -> None:
    storage = "postgresql+psycopg://me:top/se@cret@db.example/studies"
    params = replace(PARAMS, tune=replace(PARAMS.tune, storage=storage))
    spool_one(workspace, params, knobs=track.read_by(params, "tune", known_study.RECIPE))
    track.study(workspace, params, known_study.RECIPE, known_study.record())
    for path in waiting(workspace):
        assert "cret" not in (path / "record.json").read_text()
