"""What a person sees of a study while it goes on and afterwards: optuna-dashboard and MLflow, in a browser."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from PIL import Image

import browser
import compared
import known_study
import toy
from dreamset import track
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import write_metadata
from dreamset.study import artifacts
from dreamset.track import send

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_each_trial_that_drew_keeps_one_sheet(workspace: Workspace) -> None:
    made = known_study.run(workspace)
    kept = {row["samples"] for row in made["trials"] if "samples" in row}
    assert kept == {path.name for path in known_study.pictures(workspace)}
    assert [row["number"] for row in made["trials"] if "samples" not in row] == [3]
    sheet = Image.open(workspace.artifacts / made["trials"][0]["samples"])
    assert sheet.format == "PNG"
    # Three rows of three pictures of 16 px, magnified by whole factors.
    first = workspace.root / ".dreamset/tune/0/data/synthetic" / known_study.RECIPE / "000_bar/00000.png"
    tile = Image.open(first).convert("RGB").resize((48, 48), Image.Resampling.NEAREST)
    places = [(x, y) for x in range(sheet.width - 48) for y in range(sheet.height - 48) if _at(sheet, tile, x, y)]
    assert len(places) == 1


def _at(sheet: Image.Image, tile: Image.Image, x: int, y: int) -> bool:
    return sheet.getpixel((x, y)) == tile.getpixel((0, 0)) and (
        sheet.crop((x, y, x + tile.width, y + tile.height)).tobytes() == tile.tobytes()
    )


def test_a_trial_that_is_tried_again_keeps_the_sheet_of_the_first(workspace: Workspace) -> None:
    made = known_study.run(workspace)
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
    assert artifacts._title(trial.params) == "guidance 2.123, steps 7"


@contextmanager
def seen(root: Path, *command: str) -> Iterator[tuple[browser.Page, str]]:
    """A browser, and the address of a server of this machine alone; all that it has started ends with the block."""
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The dashboard's server leaves a file under the home directory.
    environment = {**os.environ, "HOME": str(root), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    # Seven processes that a study has no use for.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with (root / "server.log").open("wb") as log:
        running = subprocess.Popen(
            [Path(sys.executable).with_name(command[0]), *command[1:], "--host", "127.0.0.1", "--port", str(port)],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            with browser.opened(root / "profile") as page:
                page.call(
                    "Emulation.setDeviceMetricsOverride", width=1600, height=1000, deviceScaleFactor=1, mobile=False
                )
                wait_for(port, running)
                yield page, f"http://127.0.0.1:{port}"
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def wait_for(port: int, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while True:
        assert running.poll() is None, "the server has ended"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/")
            assert connection.getresponse().status < 400
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)
        else:
            return
        finally:
            connection.close()


def told(text: str) -> str:
    """An expression: the page shows this."""
    return f"document.body.textContent.includes({text!r})"


@pytest.mark.browser
def test_optuna_dashboard_shows_trials_their_states_and_pictures(workspace: Workspace) -> None:
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("optuna-dashboard is not installed")
    known_study.run(workspace)
    command = ("optuna-dashboard", "sqlite:///studies.db", "--artifact-dir", ".dreamset/artifacts")
    with seen(workspace.root, *command) as (page, address):
        home = f"{address}/dashboard"
        page.open(home, told(known_study.NAME), 30)
        page.open(f"{home}/studies/1", f"{told('Best Trial (number=5)')} && {told('CAS')}", 30)
        page.until(told("CAS at 3, 9, 27 images per class"))
        page.open(f"{home}/studies/1/trials?numbers=1", told("Trial 5"), 30)
        page.until("document.querySelector('img[src*=artifacts]')?.naturalWidth > 100")
        listed = page.js("document.body.innerText").split("\n")
        states = [listed[listed.index(f"Trial {number}") + 1] for number in range(len(known_study.TRIALS))]
        assert states == ["Complete", "Pruned", "Complete", "Fail", "Pruned", "Complete"]
        page.open(f"{home}/studies/1/trials?numbers=3", told("too few for this scheduler"), 30)


@dataclass(frozen=True)
class Shown:
    """MLflow's pages: those of a study in experiment 1, those of a pipeline in experiment 2."""

    page: browser.Page
    address: str
    evaluation: dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    params, workspace, evaluation = compared.write(tmp_path_factory.mktemp("shown"), track__experiment="pipelines")
    track.study(workspace, toy.params(), known_study.RECIPE, known_study.record())
    with chdir(workspace.root):
        # MLflow remembers a store by its address, and a relative one would be that of an earlier test.
        uri = f"sqlite:///{workspace.root}/mlflow.db"
        send.send_all({"spool": str(workspace.spool), "uri": uri, "experiment": "studies"})
    compared.tell(params, workspace, evaluation)
    compared.send_here(params, workspace)
    command = ("mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1")
    with seen(workspace.root, *command) as (page, address):
        yield Shown(page, address, evaluation)


@pytest.fixture
def shown(server: Shown) -> Shown:
    server.page.open("about:blank", "true")  # nothing that another test has opened is taken for what this one opens
    return server


@pytest.mark.browser
def test_mlflow_shows_a_study_with_its_trials_below_it(shown: Shown) -> None:
    page = shown.page
    page.open(f"{shown.address}/#/experiments/1/runs", told(f"study {known_study.NAME}"), 30)
    assert not page.js(told("trial 5"))
    page.click(".ag-row [col-id*='Run Name'] button")
    page.until(told("trial 5"))
    links = dict(
        page.js(
            "[...document.querySelectorAll(\".ag-row [col-id*='Run Name'] a\")].map(a => [a.innerText.trim(), a.href])"
        )
    )
    names = ["trial 5", "trial 4, pruned", "trial 3, failed", "trial 2", "trial 1, pruned", "trial 0"]
    assert list(links) == [f"study {known_study.NAME}", *names]
    for name, words in (
        ("trial 4, pruned", (told("Killed"), told("Pruned after 9 of 27 images per class."))),
        ("trial 3, failed", (told("Failed"), told("too few for this scheduler"))),
        (f"study {known_study.NAME}", (told("Finished"), told("guidance 2.6, steps 25"), told("best_cas"))),
    ):
        page.open(links[name], " && ".join(words), 30)


@pytest.mark.browser
def test_mlflow_compares_the_classifiers_of_a_pipeline(shown: Shown) -> None:
    page, evaluation = shown.page, shown.evaluation
    names = [f"{row['arm']}/{row['train_on']}/{row['classifier']}" for row in evaluation["runs"]]
    accuracy = dict(zip(names, (row["accuracy"] for row in evaluation["runs"]), strict=True))
    best = sorted(names, key=lambda name: -accuracy[name])
    asked = {"searchFilter": "tags.kind = 'classifier'", "orderByKey": "metrics.`accuracy`", "orderByAsc": "false"}
    home = f"{shown.address}/#/experiments/2/runs?workflowType=machine_learning"
    page.open(home, told("pipeline "), 30)
    assert page.js(told("Model metrics")) or not page.js(told("Prompts")), "the pages for language models are away"
    listed = f"{home}&{urlencode(asked, quote_via=quote)}"
    # The list's rows stand on the page in any order; their places are in an attribute.
    place = "Number(a.closest('.ag-row').getAttribute('row-index'))"
    rows = (
        "[...document.querySelectorAll(\".ag-row [col-id*='Run Name'] a\")]"
        f".map(a => [{place}, a]).sort((one, other) => one[0] - other[0]).map(pair => pair[1])"
    )
    first = f"{rows}[0]?.innerText.trim() === {best[0]!r}"
    page.open(listed, f"{rows}.length === {len(names)} && {first}", 30)
    links = page.js(f"{rows}.map(a => [a.innerText.trim(), a.href])")
    assert [accuracy[name] for name, _ in links] == [accuracy[name] for name in best]
    page.open(f"{listed}&compareRunsMode=CHART", told("accuracy_low"), 30)
    bars = "document.querySelectorAll('.js-plotly-plot .barlayer .point').length"
    page.until(f"{bars} >= 20", 30)
    runs = [href.rpartition("/")[2].partition("?")[0] for _, href in links]
    chosen = urlencode({"runs": json.dumps(runs), "experiments": '["2"]'}, quote_via=quote)
    page.open(f"{shown.address}/#/compare-runs?{chosen}", f"{told('Box Plot')} && {told('Parallel Coordinates')}", 30)
    page.open(f"{shown.address}/#/experiments/2/runs/{runs[0]}", told("gain_low"), 30)
    asked |= {"searchFilter": "tags.kind = 'recipe'", "orderByKey": "metrics.`fid`"}
    page.open(f"{home}&{urlencode(asked, quote_via=quote)}", f"{rows}.length === 2", 30)
    recipe = page.js(f"{rows}.find(a => a.innerText.trim() === 'datadream_dset').href").partition("?")[0]
    page.open(f"{recipe}/artifacts", told("samples_00100.png"), 30)
