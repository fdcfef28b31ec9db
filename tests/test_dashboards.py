"""What a person sees of a study while it goes on and afterwards: optuna-dashboard and MLflow, in a browser."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import browser
import studied
import toy
from dreamset import track
from dreamset.errors import InputError
from dreamset.study import artifacts
from dreamset.synthetic import write_metadata
from dreamset.track import send
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_each_trial_that_drew_keeps_one_sheet(workspace: Workspace) -> None:
    made = studied.run(workspace)
    kept = {row["samples"] for row in made["trials"] if "samples" in row}
    assert kept == {path.name for path in studied.pictures(workspace)}
    assert [row["number"] for row in made["trials"] if "samples" not in row] == [3]
    sheet = Image.open(workspace.artifacts / made["trials"][0]["samples"])
    assert sheet.format == "PNG"
    # Three rows of three pictures of 16 px, magnified by whole factors.
    first = workspace.root / ".dreamset/tune/0/data/synthetic" / studied.RECIPE / "000_bar/00000.png"
    tile = Image.open(first).convert("RGB").resize((48, 48), Image.Resampling.NEAREST)
    places = [(x, y) for x in range(sheet.width - 48) for y in range(sheet.height - 48) if _at(sheet, tile, x, y)]
    assert len(places) == 1


def _at(sheet: Image.Image, tile: Image.Image, x: int, y: int) -> bool:
    return sheet.getpixel((x, y)) == tile.getpixel((0, 0)) and (
        sheet.crop((x, y, x + tile.width, y + tile.height)).tobytes() == tile.tobytes()
    )


def test_a_trial_that_is_tried_again_keeps_the_sheet_of_the_first(workspace: Workspace) -> None:
    made = studied.run(workspace)
    kept = made["trials"][0]["samples"]
    again: Any = SimpleNamespace(user_attrs={"samples": kept})
    assert artifacts.keep_samples(again, workspace.root, toy.CLASSES, workspace) == kept
    # Another machine's picture is not here, and the trial has to draw anyway.
    (workspace.artifacts / kept).unlink()
    again.params = {}
    with pytest.raises(InputError, match=r"metadata\.jsonl: is missing"):
        artifacts.keep_samples(again, workspace.root, toy.CLASSES, workspace)


def test_a_sheet_of_many_large_classes_stays_small(workspace: Workspace) -> None:
    folder, rows = workspace.root, []
    for label in range(24):
        for index in range(12):
            Image.new("RGB", (200, 200), (label * 10, index * 20, 0)).save(folder / f"{label}_{index}.png")
            rows.append(toy.synthetic_image(f"{label}_{index}.png", label, f"class {label}", index))
    write_metadata(folder, rows)
    trial: Any = SimpleNamespace(user_attrs={}, params={"guidance": 2.123456, "steps": 7})
    sheet = artifacts._sheet(trial, folder, [f"class {label}" for label in range(24)])
    step = 64 + 4
    assert 20 * step < sheet.height < 22 * step
    assert 10 * step < sheet.width < 13 * step
    assert artifacts._told(trial.params) == "guidance 2.123, steps 7"


@dataclass(frozen=True)
class Seen:
    """A browser, and the addresses of what it looks at."""

    page: browser.Page
    optuna: str
    mlflow: str


@contextmanager
def serving(command: list[str], root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of this machine alone, on a free port, in a process group that ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The dashboard's server leaves a file under the home directory.
    environment = {**os.environ, "HOME": str(root), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (root / f"server-{port}.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"127.0.0.1:{port}", running
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def answers(address: str, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while True:
        assert running.poll() is None, "the server has ended"
        try:
            connection = http.client.HTTPConnection(address, timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().status < 400
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)
        else:
            return
        finally:
            connection.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """One study, before both dashboards and a browser: their starts take most of the time."""
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("optuna-dashboard is not installed")
    root = tmp_path_factory.mktemp("project")
    workspace = Workspace.at(root)
    params = toy.params()
    record = studied.run(workspace)
    track.study(workspace, params, studied.RECIPE, record)
    with chdir(root):
        send.send_all({"spool": str(workspace.spool), "uri": "sqlite:///mlflow.db", "experiment": "dreamset"})
    shown = ["-c", "from optuna_dashboard._cli import main; main()", "sqlite:///studies.db", "--artifact-dir"]
    kept = ["-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
    with ExitStack() as stack:
        optuna, first = stack.enter_context(serving([*shown, ".dreamset/artifacts"], root))
        mlflow, second = stack.enter_context(serving(kept, root))
        page = stack.enter_context(browser.opened(tmp_path_factory.mktemp("profile")))
        page.call("Emulation.setDeviceMetricsOverride", width=1600, height=1000, deviceScaleFactor=1, mobile=False)
        answers(optuna, first)
        answers(mlflow, second)
        yield Seen(page, f"http://{optuna}/dashboard", f"http://{mlflow}/#/experiments/1/runs")


def told(text: str) -> str:
    """An expression: the page shows this."""
    return f"document.body.textContent.includes({text!r})"


@pytest.mark.browser
def test_optuna_dashboard_shows_trials_their_states_and_pictures(seen: Seen) -> None:
    page = seen.page
    page.open(seen.optuna, told(studied.NAME), 30)
    page.open(f"{seen.optuna}/studies/1", f"{told('Best Trial (number=5)')} && {told('CAS')}", 30)
    page.until(told("CAS by images per class: 3, 9, 27"))
    page.open(f"{seen.optuna}/studies/1/trials?numbers=1", told("Trial 5"), 30)
    page.until("document.querySelector('img[src*=artifacts]')?.naturalWidth > 100")
    listed = page.js("document.body.innerText").split("\n")
    states = [listed[listed.index(f"Trial {number}") + 1] for number in range(len(studied.TRIALS))]
    assert states == ["Complete", "Pruned", "Complete", "Fail", "Pruned", "Complete"]
    page.open(f"{seen.optuna}/studies/1/trials?numbers=3", told("too few for this scheduler"), 30)


@pytest.mark.browser
def test_mlflow_shows_a_study_with_its_trials_below_it(seen: Seen) -> None:
    page = seen.page
    page.open(seen.mlflow, told(f"study {studied.NAME}"), 30)
    assert not page.js(told("trial 5"))
    page.click(".ag-row [col-id*='Run Name'] button")
    page.until(told("trial 5"))
    rows = "[...document.querySelectorAll(\".ag-row [col-id*='Run Name'] a\")].map(a => a.innerText.trim())"
    names = ["trial 5", "trial 4, pruned", "trial 3, failed", "trial 2", "trial 1, pruned", "trial 0"]
    assert page.js(rows) == [f"study {studied.NAME}", *names]
    links = dict(page.js(rows.replace("a.innerText.trim()", "[a.innerText.trim(), a.href]")))
    for name, shown in (
        ("trial 4, pruned", (told("Killed"), told("Pruned after 9 of 27 images per class."))),
        ("trial 3, failed", (told("Failed"), told("too few for this scheduler"))),
        (f"study {studied.NAME}", (told("Finished"), told("guidance 2.6, steps 25"), told("best/cas"))),
    ):
        page.open(links[name], " && ".join(shown), 30)
