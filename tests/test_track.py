from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dreamset import track
from dreamset.core.workspace import Workspace
from dreamset.track import spool
from tracked import PARAMS, T0, aimed, client, empty_store, runs, send_here, spool_one, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store."""
    return empty_store(tmp_path_factory.mktemp("store"))


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
