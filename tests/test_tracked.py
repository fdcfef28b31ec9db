"""What MLflow is told of a pipeline, a table and a delivered classifier."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from contextlib import chdir, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import compared
import delivered
import made_up_cells
import reported
import toy
from dreamset import deliver, track
from dreamset.command import tracked, tracked_table
from dreamset.core.files import write_json
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.evaluate import output
from dreamset.sweep import table
from dreamset.track import local, send

if TYPE_CHECKING:
    from dreamset.params import Params

SHARED = {"accuracy", "accuracy_low", "accuracy_high", "seconds"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, whose making costs seconds."""
    folder = tmp_path_factory.mktemp("store")
    with chdir(folder):
        send._connect(f"sqlite:///{folder}/mlflow.db", toy.params().track.experiment)
    return folder / "mlflow.db"


def client(workspace: Workspace) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{workspace.root}/mlflow.db")


def runs(workspace: Workspace, query: str = "", order: list[str] | None = None) -> list[Any]:
    mlflow = client(workspace)
    experiment = mlflow.get_experiment_by_name("dreamset").experiment_id
    return list(mlflow.search_runs([experiment], query, order_by=order))


def told(tmp_path: Path, store: Path, **changes: Any) -> tuple[Params, Workspace, dict[str, Any]]:
    params, workspace, evaluation = compared.write(tmp_path, **changes)
    shutil.copy(store, workspace.root)
    compared.tell(params, workspace, evaluation)
    compared.send_here(params, workspace)
    assert track.spool.records(workspace.spool) == []
    return params, workspace, evaluation


Told = tuple["Params", Workspace, dict[str, Any]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Told:
    """A project of whose stages MLflow has been told; nobody changes it."""
    return told(tmp_path_factory.mktemp("told"), store)


def copied(known: Told, folder: Path) -> Workspace:
    """The same, to be changed."""
    shutil.copytree(known[1].root, folder, dirs_exist_ok=True)
    return Workspace.at(folder)


def test_each_classifier_is_a_run_with_the_same_names(known: Told) -> None:
    params, workspace, evaluation = known
    best = runs(workspace, order=["metrics.accuracy DESC"])
    measured = sorted(evaluation["runs"], key=lambda row: -row["accuracy"])
    assert [run.data.metrics["accuracy"] for run in best[: len(measured)]] == [row["accuracy"] for row in measured]
    assert best[0].info.run_name == "datadream_dset/both/resnet20"
    classifiers = {run.info.run_name: run for run in runs(workspace, "tags.kind = 'classifier'")}
    assert len(classifiers) == len(measured)
    [parent] = runs(workspace, "tags.kind = 'pipeline'")
    for row in measured:
        run = classifiers[f"{row['arm']}/{row['train_on']}/{row['classifier']}"]
        metrics, given = run.data.metrics, run.data.params
        assert metrics.keys() >= SHARED
        assert (metrics["accuracy_low"], metrics["accuracy_high"]) == (row["low"], row["high"])
        assert (given["arm"], given["train_on"], given["classifier"]) == (
            row["arm"],
            row["train_on"],
            row["classifier"],
        )
        assert (given["shots"], given["seed"]) == ("4", "0")
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert ("gain" in metrics) == (row["train_on"] == "both")
        assert ("cas" in metrics) == (row["train_on"] == "synthetic" and row["classifier"] == "resnet20")
        assert metrics.get("fid") == evaluation["sets"].get(row["arm"], {}).get("fid")
    one = classifiers["datadream_dset/both/resnet20"]
    assert one.data.metrics["seconds"] == 41.0 + 12.0 + 3.5
    assert one.data.metrics["gain"] == pytest.approx(0.9066 - 0.8611)
    assert one.data.metrics["gain_low"] == pytest.approx(0.9066 - 0.8611 - 0.0113)
    assert one.data.params["recipe.rank"] == str(params.recipes["datadream_dset"].rank)
    assert one.data.params["train.lr"] == "0.003"
    history = client(workspace).get_metric_history(one.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(4, 0.75), (8, 0.375), (12, 0.25)]
    inputs = {row.dataset.name: json.loads(row.dataset.profile)["num_rows"] for row in one.inputs.dataset_inputs}
    assert inputs == {"shots": 12, "datadream_dset": 18, "measured on": 60}


def test_the_pipeline_says_the_verdict_and_pictures_are_with_their_recipe(known: Told) -> None:
    _, workspace, _ = known
    [parent] = runs(workspace, "tags.kind = 'pipeline'")
    assert parent.data.tags["mlflow.note.content"] == compared.SENTENCE
    assert parent.data.metrics["verdict_gain"] == 0.0455
    assert "accuracy" not in parent.data.metrics, "it would be the best of its own runs"
    recipes = {run.info.run_name: run for run in runs(workspace, "tags.kind = 'recipe'")}
    assert recipes.keys() == set(reported.RECIPES)
    with chdir(workspace.root):
        files = [f.path for f in client(workspace).list_artifacts(recipes["datadream_dset"].info.run_id)]
    assert [name for name in files if name.endswith(".png")] == [f"samples_00{n}00.png" for n in (0, 1, 2)]
    assert recipes["datadream_dset"].data.metrics["fid"] == pytest.approx(29.6)
    every = runs(workspace)
    assert all(run.data.metrics for run in every), "no run is empty"
    assert all(run.info.status == "FINISHED" for run in every)


def test_what_is_told_again_is_there_once(known: Told, tmp_path: Path) -> None:
    params, _, evaluation = known
    workspace = copied(known, tmp_path)
    before = {run.info.run_name: run.info.run_id for run in runs(workspace)}
    run = runs(workspace, "tags.kind = 'classifier'")[0]
    # As a sender leaves it that is killed before the end of a run.
    client(workspace).set_terminated(run.info.run_id, "RUNNING")
    compared.tell(params, workspace, evaluation)
    compared.send_here(params, workspace)
    again = runs(workspace)
    assert {run.info.run_name: run.info.run_id for run in again} == before
    assert {run.info.status for run in again} == {"FINISHED"}
    points = client(workspace).get_metric_history(run.info.run_id, "loss")
    assert len(points) == 3 * (run.data.params["classifier"] != "clip_zeroshot")


def test_a_recipe_that_trains_nothing_has_no_run_of_its_adapting(tmp_path: Path) -> None:
    params, workspace, _ = compared.write(tmp_path)
    tracked.stage(params, workspace, "adapt", "stable_diffusion", {}, time.time())
    assert track.spool.records(workspace.spool) == []


def test_a_stage_tells_nothing_of_the_stages_after_it(tmp_path: Path) -> None:
    params, workspace, _ = compared.write(tmp_path)
    path = workspace.result("generate", "datadream_dset")  # of an earlier run, while this one adapts
    write_json(path, json.loads(path.read_text()) | {"sampler": {"guidance": 9.0, "strength": None}})
    for stage in ("adapt", "generate"):
        tracked.stage(params, workspace, stage, "datadream_dset", {}, time.time())
    records = [track.spool.read(path) for path in track.spool.records(workspace.spool)]
    adapt, generate = (next(r for r in records if r.stage == stage).runs[1] for stage in ("adapt", "generate"))
    assert "sampler.guidance" not in adapt.params
    assert "seconds_generate" not in adapt.metrics
    assert generate.params["sampler.guidance"] == "9.0"
    assert "sampler.strength" not in generate.params


def test_files_that_are_not_whole_fail_no_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params, workspace, evaluation = compared.write(tmp_path)
    del evaluation["runs"][0]["seconds"]
    tracked.stage(params, workspace, "evaluate", None, evaluation, time.time())
    assert track.spool.records(workspace.spool) == []
    assert capsys.readouterr().err == "dreamset: warning: evaluate is not tracked (KeyError: 'seconds').\n"


def test_each_fold_is_a_run_below_its_classifier(tmp_path: Path, store: Path) -> None:
    params, workspace, evaluation = compared.write(tmp_path, evaluate__folds=2)
    shutil.copy(store, workspace.root)
    evaluation["protocol"] = "cv"
    labels = [label for label in range(3) for _ in range(4)]
    guesses = {f"{row['arm']}/{row['train_on']}/{row['classifier']}": [0] * 12 for row in evaluation["runs"]}
    write_json(workspace.plots("evaluate") / "predictions.json", {"labels": labels, "predicted": guesses})
    tracked.stage(params, workspace, "evaluate", None, evaluation, time.time())
    compared.send_here(params, workspace)
    found = runs(workspace, "tags.kind = 'fold' and params.train_on = 'synthetic' and params.arm = 'datadream_dset'")
    assert {run.data.params["fold"] for run in found} == {"1", "2"}
    assert {run.data.metrics["accuracy"] for run in found} == {round(1 / 3, 4)}, "classes are in equal shares"
    above = {run.info.run_id: run.info.run_name for run in runs(workspace, "tags.kind = 'classifier'")}
    assert {above[run.data.tags["mlflow.parentRunId"]] for run in found} == {
        "datadream_dset/synthetic/resnet20",
        "datadream_dset/synthetic/clip_lora",
    }


def test_the_cells_of_a_table_are_runs_whose_seeds_compare(tmp_path: Path, store: Path) -> None:
    params = toy.params(active=["stable_diffusion", "datadream_dset"], train__classifiers=["resnet20"])
    workspace = Workspace.at(tmp_path)
    shutil.copy(store, workspace.root)
    folder, records = workspace.results / "table", []
    for seed in (0, 1, 2):
        evaluation, guesses = made_up_cells.made_up(replace(params, shots=4, seed=seed))
        facts = {"recipes": {}, "seconds": 2.0, "threads": 1, "device": "here"}
        records.append(facts | table.record(evaluation, guesses))
    table.write(params, folder, records, {"code": "one"})
    tracked_table.record(replace(params, track=replace(params.track, uri=None)), workspace)
    assert track.spool.records(workspace.spool) == []
    for code in ("one", "another that gives the same"):
        write_json(folder / "setting.json", json.loads((folder / "setting.json").read_text()) | {"code": code})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(track, "flush", lambda *_: None)
            tracked_table.record(params, workspace)
        compared.send_here(params, workspace)
    assert track.spool.records(workspace.spool) == []
    [above] = runs(workspace, "tags.kind = 'table'")
    assert "4 shots: " in above.data.tags["mlflow.note.content"]
    [gain] = client(workspace).get_metric_history(above.info.run_id, "gain")
    assert gain.step == 4
    assert {run.data.params["seed"] for run in runs(workspace, "tags.kind = 'cell'")} == {"0", "1", "2"}
    assert runs(workspace, "tags.kind = 'classifier'") == [], "the best seed is not the best run of a pipeline"
    query = "tags.kind = 'seed' and params.arm = 'datadream_dset' and params.train_on = 'both'"
    seeds = {run.data.params["seed"]: run.data.metrics for run in runs(workspace, query)}
    assert seeds.keys() == {"0", "1", "2"}
    for seed, record in enumerate(records):
        by_run = {(row["recipe"], row["train_on"]): row["accuracy"] for row in record["rows"]}
        alone = max(by_run["real", "real"], by_run["real", "real_strong"])
        assert seeds[str(seed)]["accuracy"] == pytest.approx(by_run["datadream_dset", "both"])
        assert seeds[str(seed)]["gain"] == pytest.approx(by_run["datadream_dset", "both"] - alone, abs=1e-4)


def test_the_delivered_classifier_is_a_model_that_labels_files(tmp_path: Path, store: Path) -> None:
    params, workspace, _evaluation = compared.write(tmp_path)
    shutil.copy(store, workspace.root)
    split = toy.write_splits(workspace, selection=3)
    folder = delivered.train(workspace, split, "real", "real", "resnet20")
    shutil.copytree(folder, workspace.classifier)
    path = workspace.classifier / "classifier.json"
    pixels = deliver._preprocessing(params, json.loads(path.read_text())["transform"], 16)
    decision = {"sentence": "It does not help.", "basis": "It rests on one seed, 0."}
    facts = {"preprocessing": pixels, "threshold": 0.0, "verdict": decision}
    write_json(path, json.loads(path.read_text()) | facts)
    chosen = {"arm": "real", "train_on": "real", "classifier": "resnet20"}
    write_json(workspace.result("deliver"), chosen)
    for _ in range(2):
        tracked.stage(params, workspace, "deliver", None, chosen, time.time())
        compared.send_here(params, workspace)
    [parent] = runs(workspace, "tags.kind = 'pipeline'")
    assert parent.data.tags["mlflow.note.content"] == "It does not help.\n\nIt rests on one seed, 0."
    experiment = client(workspace).get_experiment_by_name("dreamset").experiment_id
    [model] = client(workspace).search_logged_models([experiment])
    [run] = runs(workspace, "tags.kind = 'classifier'")
    assert (model.source_run_id, model.status) == (run.info.run_id, "READY")
    assert {metric.key: metric.value for metric in model.metrics}["accuracy"] == 0.8611

    import mlflow
    import pandas as pd

    from dreamset.use import predict

    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "good.png").write_bytes(png(toy.picture(1, np.random.default_rng(5))))
    with chdir(workspace.root):
        mlflow.set_tracking_uri(f"sqlite:///{workspace.root}/mlflow.db")
        loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
        answers = loaded.predict(pd.DataFrame({"path": ["good.png", "bad.png"]}))
        counts = predict.run(["good.png"], workspace.classifier, Path("out.csv"), None)
    assert loaded.metadata.signature.inputs.input_names() == ["path"]
    assert loaded.metadata.signature.outputs.input_names() == ["label", "probability", "abstained", "error"]
    assert counts.labelled == 1
    row = (tmp_path / "out.csv").read_text().splitlines()[1].split(",")
    assert (answers["label"][0], f"{answers['probability'][0]:.6f}") == (row[1], row[2])
    assert answers["label"][1] == ""
    assert answers["error"][1]


def test_artifacts_move_with_the_project(known: Told, tmp_path: Path) -> None:
    workspace = copied(known, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = Workspace.at(tmp_path / "there")
    [recipe] = [run for run in runs(moved, "tags.kind = 'recipe'") if run.info.run_name == "datadream_dset"]
    with chdir(moved.root):
        mlflow = client(moved)
        assert "samples_00100.png" in [file.path for file in mlflow.list_artifacts(recipe.info.run_id)]
    params, _, evaluation = compared.write(moved.root, seed=1)
    compared.tell(params, moved, evaluation)
    compared.send_here(params, moved)
    assert len(runs(moved, "tags.kind = 'pipeline'")) == 2
    assert not workspace.root.exists(), "nothing is written to where it was"


def test_a_store_with_absolute_places_is_brought_along_with_a_sentence(
    known: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, workspace = known[0], copied(known, tmp_path)
    old = tmp_path / "old place"  # what older runs, and MLflow itself, store
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as database, database:
        for name, column in local._PLACES:
            places = ("mlartifacts", f"{old.as_uri()}/mlartifacts")
            database.execute(f"UPDATE {name} SET {column} = replace({column}, ?, ?)", places)
    tracked.stage(params, workspace, "generate", "stable_diffusion", {}, time.time())
    capsys.readouterr()
    compared.send_here(params, workspace)
    assert capsys.readouterr().out == (
        "says the project has moved, so MLflow's files of earlier runs are now looked for in mlartifacts.\nsent\n"
    )
    uris = {run.info.artifact_uri.split("/")[0] for run in runs(workspace)}
    assert uris == {"mlartifacts"}
    assert not old.exists()


def test_a_store_elsewhere_keeps_its_artifacts_beside_it(tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert local.artifacts(tmp_path / "mlflow.db") == "mlartifacts"
        assert local.artifacts(tmp_path.parent / "shared/mlflow.db") == str(tmp_path.parent / "shared/mlartifacts")
    assert local.file_of("http://host/mlflow.db") is None


@pytest.mark.parametrize(
    ("revision", "mend"),
    [
        ("451aebb31d03", "`mlflow db upgrade sqlite:///mlflow.db`); 1 tracking record kept"),
        ("ffffffffffff", "`pip install --upgrade mlflow`, or give another track.uri); 1 tracking record kept"),
    ],
)
def test_a_store_of_another_mlflow_gets_the_whole_command(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str], revision: str, mend: str
) -> None:
    params, workspace, _ = compared.write(tmp_path)
    shutil.copy(store, workspace.root)
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    tracked.stage(params, workspace, "generate", "stable_diffusion", {}, time.time())
    capsys.readouterr()
    assert track.flush(workspace, params) == track.Flushed(waiting=1)
    assert mend in capsys.readouterr().err


def test_metrics_json_holds_a_dozen_figures(tmp_path: Path) -> None:
    params, _, evaluation = compared.write(tmp_path)
    assert output.summary(params, output.rows(evaluation), evaluation["verdict"]) == {
        "recipe": "datadream_dset",
        "classifier": "resnet20",
        "verdict": {"outcome": "cannot_tell", "gain": 0.0455, "low": -0.0113, "high": 0.0572},
        "cas": evaluation_of(evaluation, "datadream_dset/synthetic/resnet20"),
        "fid": pytest.approx(29.6),
        "near_duplicates": 4,
        "seconds": 41 + 12 + 4 * 3.5,
        "accuracy": {
            "zero_shot": 0.5432,
            "real": evaluation_of(evaluation, "real/real/resnet20"),
            "both": evaluation_of(evaluation, "datadream_dset/both/resnet20"),
        },
    }


def evaluation_of(evaluation: dict[str, Any], run: str) -> float:
    [row] = [row for row in evaluation["runs"] if f"{row['arm']}/{row['train_on']}/{row['classifier']}" == run]
    return float(row["accuracy"])
