"""`dreamset compare`: runs of the workspace, of records, of commits and of DVC's experiments, in 80 columns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamset.command import comparing
from dreamset.command.cli import main
from dreamset.core.workspace import Workspace

ROOT = Path(__file__).parents[1]


def metrics(gain: float, seconds: float = 12.0) -> dict[str, Any]:
    """What evaluate writes into results/metrics.json."""
    return {
        "recipe": "datadream_light",
        "classifier": "resnet20",
        "verdict": {"outcome": "cannot_tell", "gain": gain, "low": gain - 0.02, "high": gain + 0.03},
        "cas": 0.5,
        "seconds": seconds,
        "accuracy": {"real_strong": 0.9, "both_strong": 0.9 + gain},
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A repository with the parameters and no run; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "results").mkdir()
    git("init", "-q")
    return Workspace.at(tmp_path)


def git(*words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *author, *words], capture_output=True, text=True, check=True).stdout.strip()


def run(gain: float, *changes: str, seconds: float = 12.0) -> None:
    """Leave the results and the parameters of a run."""
    if changes:
        main(["set", *changes])
    Path("results/metrics.json").write_text(json.dumps(metrics(gain, seconds)))


def commit() -> str:
    git("add", "-A")
    git("commit", "-qm", "a run")
    return git("rev-parse", "--short=7", "HEAD")


def rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line]
    return {line[:22].strip(): [line[i : i + 14].strip() for i in range(22, len(line), 14)] for line in lines}


def test_commits_experiments_and_the_workspace_stand_beside_each_other(
    project: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run(0.01)
    first = commit()
    run(0.02, "shots=8", "models.sd15.licence=other", "track.experiment=other")
    second = commit()
    run(0.03, "train.classifiers=[resnet20, clip_lora, linear_probe]")
    git("add", "-A")
    git("commit", "-qm", "of an experiment")
    git("update-ref", "refs/exps/ab/cdef/muddy-fork", "HEAD")
    git("reset", "-q", "--hard", second)
    run(0.04, "generate.per_class=200")
    capsys.readouterr()
    main(["compare"])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    found = rows(shown)
    assert found[""][0] == "now" and {*found[""][1:]} == {first, second, "muddy-fork"}
    assert [found["gain, points"][found[""].index(name)] for name in ("now", "muddy-fork", second, first)] == [
        "+4.0",
        "+3.0",
        "+2.0",
        "+1.0",
    ]
    assert found["real + synthetic, %"][0] == "94.0"
    assert found["shots"][found[""].index(first)] == "4" and found["shots"][0] == "8"
    assert found["generate.per_class"][0] == "200" and "null" in found["generate.per_class"]
    assert "train.classifiers" in found
    # Neither another model's row nor where runs are recorded makes a difference.
    assert not any("licence" in name or "track" in name for name in found)

    main(["compare", first, "now"])
    assert rows(capsys.readouterr().out)["gain, points"] == ["+1.0", "+4.0"]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "nothing"])
    said = capsys.readouterr().err
    assert "no run 'nothing'; there are now, " in said and said.count("\n") == 1


def test_a_project_whose_results_git_does_not_take_has_its_own_records(
    project: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.root / ".git")
    with pytest.raises(SystemExit, match="2"):
        main(["compare"])
    assert "run `dvc repro` first" in capsys.readouterr().err
    for gain, change in ((0.01, "shots=4"), (0.02, "shots=8")):
        run(gain, change)
        comparing.keep(project, project.root / "params.yaml")
    # The same run again, only slower, is not another one; and what was changed since is not what the run used.
    run(0.02, seconds=99.0)
    comparing.keep(project, project.root / "params.yaml")
    run(0.02, "shots=1", seconds=99.0)
    capsys.readouterr()
    main(["compare"])
    found = rows(capsys.readouterr().out)
    assert found["gain, points"] == ["+2.0", "+1.0"] and found["shots"] == ["8", "4"]
    assert found["seconds"] == ["99", "12"]


def test_evaluate_keeps_a_record(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamset.command import ready, tracked, verbs

    monkeypatch.setattr(tracked, "stage", lambda *_: None)
    monkeypatch.setattr(ready, "refuse", lambda *_, **__: None)  # there are no weights here
    monkeypatch.setattr(verbs, "_print", lambda *_: None)
    monkeypatch.setattr(verbs, "stage_function", lambda _: lambda *_: run(0.01) or {})  # type: ignore[func-returns-value]
    main(["evaluate"])
    (record,) = project.runs.iterdir()
    assert json.loads(record.read_text())["params"]["shots"] == 4


def test_more_than_four_runs_stand_below_each_other_and_torch_is_not_needed(project: Workspace) -> None:
    for shots in range(1, 7):
        run(shots / 100, f"shots={shots}")
        comparing.keep(project, project.root / "params.yaml")
    code = "import sys; from dreamset.command.cli import main; main(['compare', '--last', '6']);"
    code += "assert not {'torch', 'dvc', 'mlflow'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("shots")] == [
        ["shots", "6", "5", "4", "3"],
        ["shots", "2", "1"],
    ]
