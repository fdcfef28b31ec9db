from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import known_study
import studied
import toy
from dreamset import track
from dreamset.command import verbs
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.track import send, spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.params import Params

PARAMS = toy.load(Path(__file__).parents[1] / "params.yaml")
T0 = 1_700_000_000.0


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, whose making costs seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with chdir(path.parent):  # beside it, not in the repository, are the files of its runs
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


def test_nothing_else_imports_mlflow() -> None:
    source = Path(track.__file__).parents[1]
    users = {path for path in source.rglob("*.py") if re.search(r"^\s*(import|from) mlflow\b", path.read_text(), re.M)}
    assert {path.parent.name for path in users} == {"track"}


def test_importing_it_loads_no_mlflow() -> None:
    code = "import sys, dreamset.track; sys.exit(any(name.startswith(('mlflow', 'torch')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_runs_parent_params_curves_artifacts_and_times_reach_sqlite_once(workspace: Workspace, tmp_path: Path) -> None:
    grid = tmp_path / "a/samples.png"
    other = tmp_path / "b/samples.png"
    for path, text in ((grid, b"one"), (other, b"two")):
        path.parent.mkdir()
        path.write_bytes(text)
    curve = [(step, 1 / (step + 1)) for step in range(1200)]
    loss = {"loss": spool.spread(curve, T0, T0 + 90)}
    spool_one(workspace, curves=loss, metrics={"loss_last": 0.5}, knobs={"rank": "16"}, files=[grid, other])
    grid.unlink()  # as DVC does before the next run of a stage
    spool_one(workspace, item=None, started=T0 + 100, ended=T0 + 130, metrics={"accuracy/ß #1": 0.75}, note="It helps.")

    assert track.flush(workspace, PARAMS) == track.Flushed(sent=2)
    assert waiting(workspace) == []
    found = runs(workspace)
    parent = found.pop(next(name for name in found if name.startswith("pipeline ")))
    assert found.keys() == {"datadream_dset"}
    adapt = found["datadream_dset"]
    assert adapt.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert adapt.data.tags["tree"] == parent.data.tags["tree"]
    assert {run.info.status for run in (adapt, parent)} == {"FINISHED"}
    assert (adapt.info.start_time, adapt.info.end_time) == (T0 * 1000, (T0 + 90) * 1000)
    assert (parent.info.start_time, parent.info.end_time) == (T0 * 1000, (T0 + 130) * 1000)
    assert adapt.data.params == {"rank": "16"}
    assert parent.data.params["recipes.datadream_light.scope"] == "dataset"
    assert parent.data.params["base.adapt.class.lr"] == str(PARAMS.base.adapt.class_.lr)
    assert adapt.data.metrics == {"loss": curve[-1][1], "loss_last": 0.5}
    assert parent.data.metrics == {"accuracy/ß _1": 0.75}
    assert parent.data.tags["mlflow.note.content"] == "It helps."
    history = client(workspace).get_metric_history(adapt.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == curve
    assert {point.timestamp for point in history if point.step == 1199} == {(T0 + 90) * 1000}
    with chdir(workspace.root):
        listed = [file.path for file in client(workspace).list_artifacts(adapt.info.run_id)]
    assert sorted(listed) == ["b_samples.png", "samples.png"]
    assert len(list((workspace.root / "mlartifacts").rglob("*.png"))) == 2

    assert track.flush(workspace, PARAMS) == track.Flushed()
    spool_one(workspace, item="datadream_cls")
    send_here(workspace)
    assert len(runs(workspace)) == 3, "a later stage joins its pipeline's run"


def send_here(workspace: Workspace) -> None:
    """What the sending process does, without the cost of one."""
    with chdir(workspace.root):
        job = {
            "spool": str(workspace.spool),
            "uri": f"sqlite:///{workspace.root}/mlflow.db",
            "experiment": PARAMS.track.experiment,
        }
        send.send_all(job)


def test_two_flushes_at_once_meeting_no_store_lose_and_double_nothing(workspace: Workspace) -> None:
    for number in range(6):
        spool_one(workspace, item=f"arm_{number}", started=T0 + number)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: track.flush(workspace, PARAMS), range(2)))
    assert sum(result.sent for result in results) == 6
    assert len(runs(workspace)) == 7
    assert waiting(workspace) == []


def test_a_lost_reply_is_not_sent_twice_and_a_broken_record_is_set_aside(
    workspace: Workspace, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool_one(workspace)
    record = waiting(workspace)[0]
    content = (record / "record.json").read_bytes()
    shutil.copy(store, workspace.root)
    send_here(workspace)
    assert waiting(workspace) == []
    # The server had taken it, but the sender was killed before it removed the record.
    record.mkdir()
    (record / "record.json").write_bytes(content)
    spool_one(workspace, item="datadream_cls", started=T0 + 1)
    torn = waiting(workspace)[1]
    (torn / "record.json").write_bytes((torn / "record.json").read_bytes()[:-20])
    assert track.flush(workspace, PARAMS) == track.Flushed(sent=1, set_aside=1)
    assert sorted(name.split()[0] for name in runs(workspace)) == ["datadream_dset", "pipeline"]
    assert "1 tracking record could not be used" in capsys.readouterr().err
    assert "JSONDecodeError" in (workspace.spool / "broken" / torn.name / "reason.txt").read_text()


@contextmanager
def failing_server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def hanging_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts; nobody ever reads
        yield f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dead_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://user:secret@127.0.0.1:{port}"


@pytest.mark.parametrize(
    "server", [dead_port, lambda: failing_server(500), hanging_server], ids=["dead", "500", "hangs"]
)
def test_a_server_that_fails_costs_a_warning_and_no_record(
    server: Any, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as uri:
        spool_one(workspace)
        before = time.monotonic()
        spool_one(workspace, item="datadream_cls")
        track.finish(workspace, aimed(uri), "report", T0)
        took = time.monotonic() - before
    assert took < 20, "one call, no retries, and the import of mlflow on a busy machine"
    assert len(waiting(workspace)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "127.0.0.1" in error
    assert "2 tracking records kept in .dreamset/track" in error
    assert "secret" not in error


def test_a_sender_past_all_patience_is_killed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "_PATIENCE_S", -0.8)
    spool_one(workspace)
    with hanging_server() as uri:
        assert track.flush(workspace, aimed(uri)) == track.Flushed(waiting=1)
    assert "not done within 0.6 s" in capsys.readouterr().err


def test_only_long_stages_and_the_report_send(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(track, "flush", lambda *_: flushed.append(len(waiting(workspace))))
    spool_one(workspace)
    track.finish(workspace, PARAMS, "prepare", time.time() - 1)
    assert flushed == []
    track.finish(workspace, PARAMS, "adapt", time.time() - 121)
    track.finish(workspace, PARAMS, "report", time.time() - 1)
    assert flushed == [1, 1]


def test_the_sender_of_the_last_stage_starts_with_it_and_ends_with_it(workspace: Workspace) -> None:
    with track.sender(workspace, PARAMS, "evaluate") as process:
        assert process is None
    with pytest.raises(ZeroDivisionError), track.sender(workspace, PARAMS, "report") as process:
        assert process.poll() is None
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL
    with track.sender(workspace, aimed(None), "report") as process:
        assert process is None


def test_without_a_uri_nothing_is_written(workspace: Workspace) -> None:
    spool_one(workspace, aimed(None))
    track.finish(workspace, aimed(None), "report", T0)
    assert list(workspace.root.iterdir()) == []


def test_a_spool_that_cannot_be_written_and_a_missing_file_are_warnings(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    spool_one(workspace, files=[workspace.root / "gone.png"])
    assert "without" in capsys.readouterr().err
    assert len(waiting(workspace)) == 1
    blocked = Workspace.at(workspace.root / "file")
    blocked.root.write_text("not a folder")
    spool_one(blocked)
    assert "is not tracked" in capsys.readouterr().err


def test_the_pipeline_is_the_parameters_that_matter(workspace: Workspace) -> None:
    same = replace(PARAMS, track=replace(PARAMS.track, timeout_s=9))
    for params in (PARAMS, same, replace(PARAMS, seed=1)):
        spool_one(workspace, params, started=T0 + params.seed)
    pipelines = [spool.read(path).tree for path in waiting(workspace)]
    assert pipelines[0] == pipelines[1] != pipelines[2]


def test_names_of_classes_that_mlflow_refuses_are_cleaned(workspace: Workspace, store: Path) -> None:
    shutil.copy(store, workspace.root)
    odd = {"it's (old)": 4, "it?s [old]": 8, "a/../b": 1, "x//y": 2, "ß" * 300: 3, "ß" * 299 + "z": 5}
    spool_one(workspace, replace(PARAMS, shots=odd))
    send_here(workspace)
    assert waiting(workspace) == []
    assert not (workspace.spool / "broken").exists()
    for run in (run for name, run in runs(workspace).items() if name.startswith("pipeline ")):
        found = {name: value for name, value in run.data.params.items() if name.startswith("shots.")}
        assert sorted(found.values()) == ["1", "2", "3", "4", "5", "8"]
        assert found["shots.it_s _old_"] == "4"
        assert found["shots.it_s _old__2"] == "8"


def files_of(workspace: Workspace, run: Any) -> list[str]:
    with chdir(workspace.root):  # where a relative place leads, as that of the store
        return [file.path for file in client(workspace).list_artifacts(run.info.run_id)]


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
