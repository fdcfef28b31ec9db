"""``dreamset run`` and ``dreamset check``: what stands against a run, what it costs, and what is shown of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

import toy
from dreamset.command import check, cli, costs, counts, own, plan, reproduce, run, screen, timed_steps, times
from dreamset.command.reproduce import Event
from dreamset.core import locks
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import write_json
from dreamset.core.workspace import Workspace
from dreamset.data.splits import read_split, write_split
from dreamset.metrics import power
from dreamset.metrics.mcnemar import mcnemar

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

# --- check -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the project's parameters and weights, and an empty graph."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(ROOT / "models/base")
    return tmp_path


def changed(root: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The problems of a project whose parameters are changed."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    change(raw)
    (root / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return check.problems(root, root / "params.yaml")[1]


def test_nothing_stands_against_the_default(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    assert check.problems(project, project / "params.yaml")[1] == []
    monkeypatch.chdir(project)
    cli.main(["check"])
    assert "all is well" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(active=["stable_difusion"]), ["params.yaml: active: no row 'stable_difusion'"]),
        (
            lambda raw: raw.update(after={"class_encoder_ft": "class_encoder"}),
            ["after.class_encoder_ft: '"],
        ),
        (
            lambda raw: raw["models"]["bundled"]["generate"].update(guidance=200),
            ["generate.guidance: expected"],
        ),
        (
            lambda raw: raw["prepare"].update(source="imagefolder:photos"),
            ["photos is no folder; write"],
        ),
        (lambda raw: raw["prepare"].update(source="csv:list.csv"), ["list.csv is no file; write csv:FILE"]),
        (lambda raw: raw["prepare"].update(source="photos"), ["prepare.source: expected one of digits"]),
        (lambda raw: raw["compute"].update(store="foo://x"), ["compute.store: no file system has the protocol foo"]),
        (lambda raw: raw["tune"].update(storage="sqllite:///s.db"), ["tune.storage: studies are kept in sqlite or"]),
        (
            lambda raw: raw["models"]["bundled"].update(judge="elsewhere"),
            ["judge: elsewhere is no folder here"],
        ),
        (lambda raw: raw["models"]["bundled"].update(clip="elsewhere"), ["bundled.clip: elsewhere is no folder here"]),
        (lambda raw: raw["models"]["bundled"].update(licence="sai-nc-community"), ["set accept_licence: true"]),
        (lambda raw: raw["models"]["bundled"].update(generator="hub:a/b@0"), ["a/b at revision 0 is missing"]),
        # All at once: two values, then a rule, the source and the weights.
        (
            lambda raw: (raw["tune"].update(trials=0), raw["adapt"].update(sample_steps=0), raw.update(shot=3)),
            ["shot: unknown key", "tune.trials: expected", "adapt.sample_steps: expected"],
        ),
        (
            lambda raw: (
                raw.update(selection="by eye"),
                raw["prepare"].update(source="imagefolder:photos", window=[3, 1]),
                raw["models"]["bundled"].update(judge="elsewhere"),
            ),
            ["selection: expected", "prepare.window: expected", "photos is no folder", "judge: elsewhere"],
        ),
    ],
)
def test_each_problem_is_a_sentence_with_its_mend(
    project: Path, change: Callable[[dict[str, Any]], object], words: list[str]
) -> None:
    found = changed(project, change)
    assert len(found) == len(words)
    for word in words:
        assert any(word in sentence for sentence in found), (word, found)
    assert all(sentence.endswith(".") for sentence in found)


def test_a_list_and_folders_are_held_against_the_shots(project: Path) -> None:
    for name in ("circle", "star"):
        (project / "photos" / name).mkdir(parents=True)
    (project / "list.csv").write_text("path,label\na.png,circle\nb.png,star\n")
    (project / "odd.csv").write_text("path,label,splt\na.png,circle,test\n")

    def told(source: str, shots: object) -> list[str]:
        return changed(project, lambda raw: (raw["prepare"].update(source=source), raw.update(shots=shots)))

    for source in ("imagefolder:photos", "csv:list.csv"):
        assert told(source, {"circle": 2, "star": 2}) == []
        (sentence,) = told(source, {"Circle": 2, "star": 2})
        assert sentence.startswith("shots: 'Circle' is no class of") and "its classes are circle, star" in sentence
        assert told(source, {"circle": 2}) == [
            "shots: gives no number for class 'star'; give one for each class, 1 or more."
        ]
    (sentence,) = told("csv:odd.csv", 1)
    assert "it names 'splt': write split" in sentence


def test_slices_by_group_need_groups_once_the_images_are_there(prepared: tuple[Any, Workspace]) -> None:
    params, workspace = prepared
    check.prepared(params, workspace)
    asked = dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, slices=("group",)))
    record = json.loads(workspace.result("prepare").read_text())
    for groups, refused in ((None, True), (1, True), (2, False)):
        write_json(workspace.result("prepare"), record | {"test_groups": groups})
        with pytest.raises(InputError, match="of one group or of none") if refused else contextlib.nullcontext():
            check.prepared(asked, workspace)


def test_a_damaged_weight_and_a_place_that_cannot_be_written_are_found(project: Path) -> None:
    (project / "models/base").unlink()
    shutil.copytree(ROOT / "models/base", project / "models/base")
    (project / "models/base/sd/unet/diffusion_pytorch_model.safetensors").write_bytes(b"half")
    (project / "results").write_text("a file")
    found = check.problems(project, project / "params.yaml")[1]
    assert any("is no whole file of weights" in sentence for sentence in found)
    assert any("lies below a file" in sentence for sentence in found)


def test_several_problems_are_listed_and_the_status_is_2(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["models"]["bundled"] |= {"judge": "elsewhere", "clip": "nowhere"}
    (project / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as left:
        cli.main(["check"])
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dreamset: 2 problems, and nothing was changed:"
    assert [line[:2] for line in lines[1:]] == ["- ", "- "]


def test_a_folder_that_is_no_project_is_told_apart(project: Path) -> None:
    inside = project / "data/raw"
    inside.mkdir(parents=True)
    with pytest.raises(InputError, match=f"go to {project}, which is one"):
        check.project(inside)
    (project / ".dvc").rmdir()
    with pytest.raises(InputError, match="DVC is not initialised here; run `dvc init"):
        check.project(project)


# --- what DVC prints -------------------------------------------------------------------------------------------------

PRINTED = """\
WARNING: stage: 'models/base/dvc.yaml:clip' is frozen. Its dependencies are not going to be reproduced.
Stage 'models/base/dvc.yaml:clip' didn't change, skipping
Running stage 'prepare':
> dreamset prepare
prepare: 40 images

  and a sentence
Updating lock file 'dvc.lock'

Running stage 'raw':
> test -e data/raw || { mkdir data/raw; }
Stage 'expect' is cached - skipping run, checking out outputs
Running stage 'adapt@light':
> dreamset adapt light
adapt: warning: a LoRA stood here
ERROR: failed to reproduce 'adapt@light': failed to run: dreamset adapt light, exited with 2

To track the changes with git, run:

	git add dvc.lock
"""


def test_only_what_stages_say_is_shown() -> None:
    assert [*reproduce.follow(PRINTED.splitlines())] == [
        Event("skip", "models/base/dvc.yaml:clip"),
        Event("start", "prepare"),
        Event("line", "prepare: 40 images"),
        Event("line", "  and a sentence"),
        Event("end", "prepare"),
        Event("start", "raw"),  # its lock did not change
        Event("end", "raw"),
        Event("skip", "expect"),
        Event("start", "adapt@light"),
        Event("line", "adapt: warning: a LoRA stood here"),
        Event("fail", "adapt@light", 2),
    ]


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (
            "ERROR: failed to reproduce 'raw': [Errno 2] No such file: 'x'",
            ["DVC could not run raw: [Errno 2]"],
        ),
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running", ["DVC: Unable to acquire lock"]),
        ("WARNING: 'a' is not cached", ["dreamset: DVC warns: 'a' is not cached"]),
        ("Use `dvc push` to send your updates to remote storage.", []),
    ],
)
def test_what_goes_wrong_with_dvc_itself_is_told(printed: str, words: list[str]) -> None:
    lines = [event.text for event in reproduce.follow([printed]) if event.kind == "line"]
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


# --- a whole run, with stages that are stubs -------------------------------------------------------------------------

STUB = """\
import pathlib, sys, time
name, wait, status = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
pathlib.Path(name + ".out").write_text("begun")
try:
    time.sleep(wait)
except KeyboardInterrupt:
    pathlib.Path(name + ".saved").write_text("")
    print("dreamset: interrupted; run the same command to go on.", file=sys.stderr)
    sys.exit(130)
print(f"{name}: done" if not status else f"dreamset: {name}: no memory; lower batch.", flush=True)
sys.exit(status)
"""
# In place of DVC: it runs one stage, deaf to interrupts as DVC is meanwhile, and says what DVC says.
FAKE = """\
import signal, subprocess, sys
print("WARNING: stage: 'models/base/dvc.yaml:clip' is frozen. Its dependencies are not going to be reproduced.")
print("Running stage 'expect':\\n> dreamset expect", flush=True)
stage = subprocess.Popen([sys.executable, "stub.py", "expect", *sys.argv[1:3]])
signal.signal(signal.SIGINT, signal.SIG_IGN)
if status := stage.wait():
    print(f"ERROR: failed to reproduce 'expect': failed to run: dreamset expect, exited with {status}")
    sys.exit(255)
print("Updating lock file 'dvc.lock'\\n\\nTo track the changes with git, run:\\n\\n\\tgit add dvc.lock")
"""


@pytest.fixture
def stubs(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the two programs above."""
    (project / "stub.py").write_text(STUB)
    (project / "fake.py").write_text(FAKE)
    monkeypatch.chdir(project)
    return project


def faked(monkeypatch: pytest.MonkeyPatch, wait: float = 0, status: int = 0) -> None:
    """Let the program above stand for DVC."""
    monkeypatch.setattr(reproduce, "DVC", (sys.executable, "fake.py", str(wait), str(status)))


def test_a_failed_stage_has_the_last_word_and_its_status_is_passed_on(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faked(monkeypatch, status=2)
    with pytest.raises(SystemExit) as left:
        run.run(stubs, None, yes=True)
    assert left.value.code == 2
    assert capsys.readouterr().out.splitlines()[-1] == "dreamset: expect: no memory; lower batch."
    assert locks.busy(Workspace.at(stubs).locks) == []


@pytest.mark.parametrize(("number", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_reaches_the_stage_which_saves_its_work(stubs: Path, number: str, status: int, word: str) -> None:
    # A shell starts what it puts into the background deaf to interrupts, and the tests may be there.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from dreamset.command import cli, reproduce; "
        "reproduce.DVC = (sys.executable, 'fake.py', '60', '0'); cli.main(['run', '--yes'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=stubs,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (stubs / "expect.out").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(getattr(signal, number))
    printed, said = process.communicate(timeout=60)
    assert (stubs / "expect.saved").is_file()
    assert process.returncode == status
    assert said == f"dreamset: {word}; run the same command to go on.\n"
    assert "ERROR" not in printed + said


def test_a_typo_leaves_the_splits_where_they_are(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "DVC", ("false",))
    toy.write_splits(Workspace.at(stubs))
    before = {path: path.read_bytes() for path in (stubs / "data").rglob("*") if path.is_file()}
    changed(stubs, lambda raw: raw.update(active=["stable_difusion"]))
    with pytest.raises(InputError, match="no row 'stable_difusion'"):
        run.run(stubs, None, yes=True)
    assert {path: path.read_bytes() for path in (stubs / "data").rglob("*") if path.is_file()} == before


def test_beside_another_run_it_does_not_start(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch)
    place = Workspace.at(stubs).locks
    for name, words in (("adapt_light", "adapt_light is running"), ("run", "`dreamset run` is running")):
        lock = locks.take(place / f"{name}.lock")
        assert lock is not None
        with pytest.raises(StoppedError, match=words):
            run.run(stubs, None, yes=True)
        lock.release()


def test_a_disk_that_is_too_small_is_told_before_anything_runs(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "DVC", ("false",))
    toy.write_splits(Workspace.at(stubs))
    usage = shutil.disk_usage(stubs)
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoppedError, match=r"writes about .* MB and 1\.0 kB are free; make room"):
        run.run(stubs, None, yes=True)


def test_without_a_terminal_it_shows_the_table_and_needs_yes(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faked(monkeypatch)
    place = Workspace.at(stubs)
    toy.write_splits(place)
    write_json(place.result("prepare"), {"test": 640})
    todo = [run.Planned("generate@stable_diffusion", "generate", "stable_diffusion"), run.Planned("mine", "", None)]
    monkeypatch.setattr(run, "planned", lambda _: todo)
    monkeypatch.setattr(
        timed_steps, "timed", lambda *_: ({"start": timed_steps.Timed(2), "draw": timed_steps.Timed(0.1)}, {})
    )
    with pytest.raises(InputError, match="no terminal to ask on; `dreamset run --yes`"):
        run.run(stubs, None, yes=False)
    shown = capsys.readouterr().out
    # 3 classes, 50 images each, 20 steps of 0.1 s, and the start.
    assert "150 images" in shown
    assert "5 min" in shown
    assert "a gain of 5.1 points" in shown
    assert "from five timed steps" in shown
    assert "frozen" not in shown
    assert max(map(len, shown.splitlines())) <= screen.WIDTH


@pytest.mark.dvc
def test_a_run_through_dvc_is_calm(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=stubs, check=True)
    (stubs / ".dvc/config").write_text("[core]\n    analytics = false\n")
    made = {
        name: {"cmd": f"{sys.executable} stub.py {name} 0 0", "deps": deps, "outs": [f"{name}.out"]}
        for name, deps in (("prepare", ["stub.py"]), ("expect", ["prepare.out"]), ("evaluate", ["prepare.out"]))
    }
    (stubs / "dvc.yaml").write_text(yaml.safe_dump({"stages": made}))
    place = Workspace.at(stubs)
    toy.write_splits(place)
    write_json(place.result("prepare"), {"test": 640})
    monkeypatch.setattr(timed_steps, "_probe", lambda *_: {})
    run.run(stubs, None, yes=True)
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if "done" in line] == [
        "prepare: done",
        "expect: done",
        "evaluate: done",
    ]
    assert "others" in shown
    assert not any(word in shown for word in ("lock file", "git add", "dvc push", "Running stage", "skipping"))


# --- the bar ---------------------------------------------------------------------------------------------------------


def test_the_time_left_follows_the_pace_of_what_is_done() -> None:
    progress = screen.Progress({"a": 60.0, "b": 60.0, "c": 60.0})
    assert progress.at(0.0) == (0.0, pytest.approx(120.0, abs=61))
    progress.start("a", 0.0)
    share, left = progress.at(30.0)
    assert share == pytest.approx(1 / 6)
    assert left == pytest.approx(150)
    progress.end("a", 150.0)  # twice as slow as thought: (150 + 30) / (60 + 30)
    progress.start("b", 150.0)
    share, left = progress.at(150.0)
    assert share == pytest.approx(1 / 3)
    assert left == pytest.approx(240)
    # A stage that goes on longer than thought says that the rest will, too.
    assert progress.at(600.0)[1] > 240 > progress.at(260.0)[1]
    # What takes longer than thought stays almost done, and what was up to date is no work.
    assert progress.at(1000.0)[0] < 2 / 3
    progress.skip("c")
    assert progress.at(150.0)[0] == pytest.approx(1 / 2)


def test_without_a_terminal_there_is_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    shown = screen.Screen({"adapt@light": 100.0, "evaluate": 50.0}, terminal=False)
    shown.handle(Event("start", "adapt@light"))
    for _ in range(130):
        now[0] += 1
        shown.tick()
    shown.handle(Event("line", "adapt: 400 steps"))
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("run: adapt light, 1 of 2, about ")
    assert lines[2] == "adapt: 400 steps"


# --- estimates -------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path)
    toy.write_splits(made)
    write_json(made.result("prepare"), {"test": 24})
    return made


DONE = {"seconds": 30.0, "drawn": 150, "drawn_now": 150}


def test_a_record_counts_for_its_machine_and_model_alone(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    params = toy.params()
    times.remember(params, place, "generate", "stable_diffusion", DONE, 30.0)
    found = times.estimate(params, place, "generate", "stable_diffusion", {})
    assert found.seconds == pytest.approx(30)
    assert found.source.startswith("measured here on 20")
    # Half as many images take half as long; loading the base, which took 4 s of the 34, takes as long.
    times.remember(params, place, "generate", "stable_diffusion", DONE, 34.0)
    fewer = times.estimate(toy.params(generate__per_class=25), place, "generate", "stable_diffusion", {})
    assert fewer.seconds == pytest.approx(19)
    row = "models__bundled__"
    for other in (
        {f"{row}generator": "hub:a/b"},
        {f"{row}resolution": 512},
        {f"{row}dtype": "bfloat16"},
        {f"{row}generate__steps": 50},
        {"recipes__stable_diffusion__sampler": {"guidance": 1.0}},
    ):
        assert times.estimate(toy.params(**other), place, "generate", "stable_diffusion", {}).seconds is None
    assert times.estimate(params, place, "generate", "datadream_dset", {}).seconds is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert times.estimate(params, place, "generate", "stable_diffusion", {}).seconds is None


def test_work_that_was_found_finished_is_no_measure(place: Workspace) -> None:
    params = toy.params()
    times.remember(params, place, "generate", "stable_diffusion", DONE | {"drawn_now": 0}, 0.5)
    times.remember(params, place, "adapt", "datadream_dset", {"seconds": 60.0}, 1.0)
    times.remember(params, place, "train", "real", {"runs": [{"seconds": 5.0}, {"seconds": 5.0}]}, 1.0)
    for stage, item in (("generate", "stable_diffusion"), ("adapt", "datadream_dset"), ("train", "real")):
        assert times.estimate(params, place, stage, item, {}).seconds is None
    times.remember(params, place, "evaluate", None, {}, 40.0)
    times.remember(params, place, "evaluate", None, {}, 2.0)
    assert times.estimate(params, place, "evaluate", None, {}).seconds == pytest.approx(40)


def test_candidates_of_a_filter_are_no_images(place: Workspace) -> None:
    params = toy.params(recipes__stable_diffusion__filter="k_of_n")
    chosen = {"filter": {"kind": "k_of_n"}, "drawn": 1200, "images": 150, "drawn_now": 150}
    times.remember(params, place, "generate", "stable_diffusion", DONE | chosen, 32.0)
    more = toy.params(recipes__stable_diffusion__filter="k_of_n", generate__per_class=100)
    # All of the 30 seconds grow with the images, and the other two do not.
    assert times.estimate(more, place, "generate", "stable_diffusion", {}).seconds == pytest.approx(62)


def test_without_a_record_timed_steps_are_multiplied(place: Workspace) -> None:
    params = toy.params(models__bundled__adapt__sample_every=1000)
    steps = {
        "start": timed_steps.Timed(2),
        "draw": timed_steps.Timed(0.01, fixed=0.1),
        "adapt datadream_dset": timed_steps.Timed(0.5),
        "classifier resnet20": timed_steps.Timed(0.2),
        "classifier clip_lora": timed_steps.Timed(1.0),
        "classifier linear_probe": timed_steps.Timed(0.1),
        "judge": timed_steps.Timed(0.001),
    }

    def seconds(stage: str, item: str | None, params: Any = params) -> float:
        found = times.estimate(params, place, stage, item, steps)
        assert found.source == times.STEPS
        assert found.seconds is not None
        return found.seconds

    # 3 classes of 50 images, each of 20 steps.
    assert seconds("generate", "stable_diffusion") == pytest.approx(2 + 150 * 0.3)
    # An epoch of 12 shots in a batch of 32 is a step, and 200 of them; two grids of 12 images of 20 steps.
    assert seconds("adapt", "datadream_dset") == pytest.approx(2 + 200 * 0.5 + 2 * 12 * 0.3)
    # Two recipes with the same adapter train it once.
    light = toy.params(active=["datadream_dset", "datadream_light"])
    assert seconds("adapt", "datadream_light", light) == pytest.approx(2)
    # resnet20 and clip_lora plain and strongly augmented, and the probe: 12, 6 and 6 steps.
    assert seconds("train", "real") == pytest.approx(2 + 2 * 12 * 0.2 + 2 * 6 * 1.0 + 6 * 0.1)
    assert seconds("evaluate", None) > 2
    assert times.estimate(params, place, "generate", "datadream_dset", {"start": steps["start"]}).words == (
        "not known: draw could not be timed here"
    )
    assert times.estimate(params, place, "generate", "retrieved", steps).seconds is None


def test_the_folds_of_delivery_cost_what_they_make_anew(place: Workspace) -> None:
    steps = {
        "start": timed_steps.Timed(2),
        "draw": timed_steps.Timed(0.01, fixed=0.1),
        "adapt datadream_light": timed_steps.Timed(0.5),
        "adapt class_encoder": timed_steps.Timed(0.25),
        "adapt class_encoder_ft": timed_steps.Timed(1.0),
        "classifier resnet20": timed_steps.Timed(0.2),
        "classifier clip_lora": timed_steps.Timed(1.0),
        "classifier linear_probe": timed_steps.Timed(0.1),
    }

    def seconds(params: Any) -> float:
        found = times.estimate(params, place, "deliver", None, steps).seconds
        assert found is not None
        return found

    def names(params: Any) -> list[str]:
        return times.wanted(params, place, "deliver", None)

    # The recipe of the verdict shares its adapter with another one; the folds train it for this one alone.
    changes = {"models__bundled__adapt__sample_every": 1000, "active": ["datadream_dset", "datadream_light"]}
    changes["primary"] = "datadream_light"
    asked = [toy.params(**changes, deliver__calibrate=wanted) for wanted in (True, False)]
    folds = counts.selecting(read_split(place.splits))
    # What learns from the real images alone, and the verdict's classifier once more on the images of the fold: their
    # adapter takes 200 steps and two grids of 12 images, and then 3 classes of 50 are drawn.
    alone, making = 12 * 0.2 + 6 * 1.0 + 6 * 0.1, 200 * 0.5 + (2 * 12 + 150) * 0.3
    assert seconds(asked[0]) - seconds(asked[1]) == pytest.approx(folds * (alone + 12 * 0.2 + making)) and folds > 1
    fitted = ["classifier resnet20", "classifier clip_lora", "classifier linear_probe"]
    assert [names(one) for one in asked] == [["start", *fitted, "adapt datadream_light", "draw"], ["start"]]
    assert timed_steps.needed(asked[0], "deliver", None, cv=True) == ["start"]
    # Where the selection is by folds, too, the training has made them.
    chosen = toy.params(**changes, selection="cv", deliver__calibrate=True)
    assert names(chosen) == ["start"] and seconds(chosen) == seconds(asked[1])
    # `expect` decides on auto; until then it is the first adapted one.
    auto = toy.params(**changes | {"primary": "auto"}, deliver__calibrate=True)
    assert "adapt datadream_dset" in names(auto)
    write_json(place.result("expect"), {"primary": {"order": ["datadream_light", "datadream_dset"]}})
    assert "adapt datadream_light" in names(auto) and seconds(auto) == seconds(asked[0])
    # Another recipe's folds are no measure of these.
    assert times._key(asked[0], place, "deliver", None) == times._key(auto, place, "deliver", None)
    other = toy.params(**changes | {"primary": "datadream_dset"}, deliver__calibrate=True)
    assert times._key(asked[0], place, "deliver", None) != times._key(other, place, "deliver", None)
    # What it starts from is adapted in the folds, too: 200 steps before 200.
    lineage = {"active": ["class_encoder"], "after": {"class_encoder_ft": "class_encoder"}}
    lineage["primary"] = "class_encoder_ft"
    after = toy.params(**changes | lineage, deliver__calibrate=True)
    assert names(after) == ["start", *fitted, "adapt class_encoder", "adapt class_encoder_ft", "draw"]
    slower = steps | {"adapt class_encoder": timed_steps.Timed(0.75)}
    found = [times.estimate(after, place, "deliver", None, timed).seconds for timed in (steps, slower)]
    assert found[0] is not None and found[1] is not None
    work = counts.of(after, place, "adapt", "class_encoder")
    assert found[1] - found[0] == pytest.approx(folds * 0.5 * work["steps"]) and work["steps"] > 0
    # What retrieval takes is not known, and nothing is timed for it.
    retrieved = toy.params(**changes | {"active": ["retrieved"], "primary": "retrieved"}, deliver__calibrate=True)
    assert names(retrieved) == ["start"]
    assert times.estimate(retrieved, place, "deliver", None, steps).words == "not known: it has not run here yet"


def test_cross_validation_costs_its_folds(tmp_path: Path) -> None:
    place = Workspace.at(tmp_path)
    split = toy.write_splits(place)
    write_split(place.splits, dataclasses.replace(split, protocol="cv"))
    write_json(place.result("prepare"), {"test": 0})
    names = ("resnet20", "clip_lora", "linear_probe")
    steps = {f"classifier {name}": timed_steps.Timed(1e-9) for name in names} | {"judge": timed_steps.Timed(0)}
    steps |= {"draw": timed_steps.Timed(0, fixed=1.0), "adapt datadream_dset": timed_steps.Timed(0)}
    found = times.estimate(toy.params(evaluate__folds=4), place, "evaluate", None, steps)
    # In each of four folds 150 images of two recipes, and three grids of 12.
    assert found.seconds == pytest.approx(4 * (300 + 3 * 12), abs=10)


def test_timed_steps_are_kept_by_machine_and_model(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def probe(root: Path, file: Path, names: list[str]) -> dict[str, Any]:
        asked.append(names)
        return {name: {"seconds": 1.0} if name != "judge" else {"failed": "no such folder"} for name in names}

    monkeypatch.setattr(timed_steps, "_probe", probe)
    params, file, names = toy.params(), place.root / "params.yaml", ["start", "draw", "judge"]
    found, failed = timed_steps.timed(params, place, file, names)
    assert (found.keys(), failed) == ({"start", "draw"}, {"judge": "no such folder"})
    timed_steps.timed(params, place, file, names)
    assert timed_steps.kept(params, place, names).keys() == {"start", "draw"}
    timed_steps.timed(toy.params(models__bundled__resolution=64), place, file, names)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    timed_steps.timed(params, place, file, ["draw"])
    assert asked == [names, ["judge"], ["draw", "judge"], ["draw"]]
    # What another version wrote, or half a file, is measured again.
    for text in ('{"runs": {}, "steps": {"a": 1}}', '{"format', "[]"):
        (place.root / ".dreamset/times.json").write_text(text)
        assert timed_steps.kept(params, place, names) == {}


def test_the_steps_are_real_ones(prepared: tuple[Any, Workspace]) -> None:
    from dreamset.command import probe

    params, place = prepared
    (place.root / ".dreamset").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "models/base/clip", place.root / "models/base/clip")
    names = ["draw", "adapt datadream_dset", "adapt datadream_cls", "classifier resnet20", "judge", "classifier none"]
    found = dict(probe.measure(params, place, names))
    assert all(found[name]["seconds"] > 0 for name in names[:-1])
    assert all(found[name]["bytes"] > 1000 for name in names[1:4])
    assert "none" in found["classifier none"]["failed"]
    assert [*(place.root / ".dreamset").glob("timed-*")] == []


def test_a_dry_run_answers_first(place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    params = toy.params()
    times.remember(params, place, "generate", "stable_diffusion", DONE, 30.0)
    lines = plan.describe(params, place, "generate", "stable_diffusion").splitlines()
    assert lines[1] == "makes: 150 images in data/synthetic/stable_diffusion"
    assert lines[2].startswith("takes: 30 s, as measured here on 20")
    assert not any(line.startswith("parameters") for line in lines)
    assert "parameters:" in plan.describe(params, place, "generate", "stable_diffusion", verbose=True)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5400, "1 h 30 min"), (90000, "25 h")]
)
def test_times_are_said_in_words(seconds: float, words: str) -> None:
    assert times.duration(seconds) == words


# --- what it can show ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [20, 40, 160])
def test_the_smallest_gain_is_found_four_times_in_five(images: int) -> None:
    gain = power.smallest_shown(images, 0.95)
    assert gain is not None
    share = max(power.DISCORDANT, gain)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(images, [(share + gain) / 2, (share - gain) / 2, 1 - share], 3000)
    p = {pair: mcnemar(np.repeat([1.0, -1.0], pair)).p for pair in {(int(up), int(down)) for up, down, _ in drawn}}
    found = np.mean([up > down and p[int(up), int(down)] <= 0.05 for up, down, _ in drawn])
    assert found == pytest.approx(0.8, abs=0.025)


def test_more_images_show_smaller_gains_and_five_show_none() -> None:
    gains = [power.smallest_shown(images, 0.95) for images in (12, 48, 640)]
    assert gains == sorted(gains, reverse=True)  # type: ignore[type-var]
    assert power.smallest_shown(5, 0.95) is None
    assert "can show no gain at all" in power.words(5, 0.95, "shots")


# --- one's own images ------------------------------------------------------------------------------------------------


def test_a_folder_of_one_s_own_takes_the_place_of_the_digits(project: Path, tmp_path_factory: Any) -> None:
    images = tmp_path_factory.mktemp("photos")
    with pytest.raises(InputError, match="holds no folder"):
        own.use(project, images)
    (images / "cat").mkdir()
    (project / "data/raw").mkdir(parents=True)
    (project / "data/raw/README.md").write_text("Your images")
    assert len(own.use(project, images)) == 3
    assert (project / "data/raw").resolve() == images
    text, before = ((folder / "params.yaml").read_text(encoding="utf-8") for folder in (project, ROOT))
    lines = [(one, other) for one, other in zip(text.splitlines(), before.splitlines(), strict=True) if one != other]
    assert [one.partition("#")[0].strip() for one, _ in lines] == ["shots: all", "source: imagefolder:data/raw"]
    assert all(one.partition("#")[2] == other.partition("#")[2] for one, other in lines)
    assert own.use(project, images) == []
    (project / "data/raw").unlink()
    (project / "data/raw/dog").mkdir(parents=True)
    with pytest.raises(InputError, match="holds images already"):
        own.use(project, images)


def test_the_end_names_the_verdict_the_classifier_and_one_next_step(place: Workspace) -> None:
    write_json(place.result("evaluate"), {"test_images": 640})
    delivered = {"arm": "real", "classifier": "resnet20", "accuracy": 0.9516, "low": 0.9, "high": 0.99}
    told = {"finding": "Synthetic images helped: +2.0 points.", "advice": "Use this one."}
    write_json(place.result("deliver"), delivered | told | {"outcome": "helps", "protocol": "test"})
    (place.results / "report.html").write_text("")
    lines = run.ending(toy.params(), place)
    text = "\n".join(lines)
    assert lines[0] == "Synthetic images helped: +2.0 points. Use this one."
    assert "95.2 % of 640 test images right (90.0 to 99.0)" in " ".join(text.split())
    assert "results/report.html" in text and "Over" not in text
    write_json(place.result("deliver"), delivered | told | {"recommended": "Over 10 seeds: leave them."})
    assert "Over 10 seeds: leave them." in run.ending(toy.params(), place)
    write_json(place.result("deliver"), delivered | told | {"outcome": "helps", "protocol": "test"})
    assert lines[-1].startswith("Next: `dreamset predict")
    assert json.loads(place.result("deliver").read_text())["outcome"] == "helps"
    # Where `expect` decides, its recipe's images are named.
    order = {"known": False, "order": ["datadream_dset", "datadream_light"], "reason": "."}
    write_json(place.result("expect"), {"primary": order})
    place.synthetic("datadream_dset").mkdir(parents=True)
    assert "data/synthetic/datadream_dset" in "\n".join(run.ending(toy.params(primary="auto"), place))


@pytest.mark.parametrize(
    ("expectation", "answer", "goes"), [("adapt", "", True), ("no help", "", False), ("no help", "y", True)]
)
def test_no_answer_means_no_where_no_help_is_expected(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, expectation: str, answer: str, goes: bool
) -> None:
    write_json(place.result("expect"), {"expectation": expectation})
    monkeypatch.setattr(run, "_watched", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if goes:
        run._ask(place)
        return
    with pytest.raises(SystemExit) as left:
        run._ask(place)
    assert left.value.code == 0


def test_what_expect_said_is_shown_where_it_has_nothing_to_do(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (stubs / "fake.py").write_text("print(\"Stage 'expect' didn't change, skipping\")")
    faked(monkeypatch)
    write_json(Workspace.at(stubs).result("expect"), {"sentences": ["Expect no help."]})
    run.run(stubs, None, yes=True)
    assert "Expect no help." in capsys.readouterr().out
