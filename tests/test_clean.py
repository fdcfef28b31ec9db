"""`dreamset clean`: what can be made again goes, what a person made or decided stays, links lead nowhere."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamset.command.cli import main
from dreamset.core import locks
from dreamset.core.workspace import Workspace

ROOT = Path(__file__).parents[1]
GOES = (
    "data/real/a.png",
    "data/real_test/a.png",
    "data/splits/train.json",
    "data/synthetic/datadream_dset/000_a/0.png",
    "data/synthetic/a_recipe_of_before/0.png",
    "data/near_test/a.png",
    "models/adapters/datadream_dset/adapters.json",
    "models/classifiers/real/x/model.safetensors",
    "models/classifier/model.safetensors",
    "results/metrics.json",
    "results/report.html",
    "results/train/real.json",
    "results/plots/evaluate/accuracy.csv",
    ".dreamset/shards/k/done.json",
    ".dreamset/unfinished/k/state.safetensors",
    ".dreamset/scratch/x",
)
STAYS = (
    "params.yaml",
    "data/raw/cat/1.png",
    "data/review/datadream_dset.json",
    "data/synthetic/.gitignore",
    "models/base/sd/model_index.json",
    "results/table/summary.csv",
    "results/notes of mine.txt",
    "studies.db",
    "mlflow.db",
    ".dreamset/own/datadream_dset/lora.safetensors",
    ".dreamset/track/record.json",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which everything was made; the current folder."""
    root = tmp_path / "project"
    for name in (*GOES, *STAYS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "models/adapters/datadream_dset/adapters.json").write_text('{"adapters": []}')
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    monkeypatch.chdir(root)
    return root


def test_what_can_be_made_again_goes_and_the_rest_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "models/adapters/datadream_dset/mine.safetensors").write_text("a LoRA of my own")
    outside = project.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (project / "data/synthetic/elsewhere").symlink_to(outside)
    (project / "data/real/link").symlink_to(outside)
    main(["clean", "--dry-run"])
    shown = capsys.readouterr().out
    assert all((project / name).exists() for name in (*GOES, *STAYS))
    assert "data/synthetic/datadream_dset\n" in shown and "MB in all. Kept: data/raw, data/review" in shown
    assert "left as it is, for it is a link: data/synthetic/elsewhere\n" in shown
    main(["clean", "--yes"])
    assert [name for name in GOES if (project / name).exists()] == []
    assert [name for name in STAYS if not (project / name).exists()] == []
    assert (outside / "precious").exists() and (project / "data/synthetic/elsewhere").is_symlink()
    own = project / ".dreamset/own/datadream_dset/mine.safetensors"
    assert own.read_text() == "a LoRA of my own" and str(own) in capsys.readouterr().out
    (project / "data/synthetic/elsewhere").unlink()
    main(["clean", "--yes"])
    assert capsys.readouterr().out == "nothing here that can be made again\n"


def test_a_folder_that_is_a_link_stays_with_all_in_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = project.parent / "away"
    (project / "data").rename(away)
    (project / "data").symlink_to(away)
    main(["clean", "--yes"])
    assert (away / "synthetic/datadream_dset/000_a/0.png").exists() and (away / "real/a.png").exists()
    assert "for it is a link: data\n" in capsys.readouterr().out
    assert not (project / "models/classifier").exists()


def test_nobody_to_ask_and_a_run_that_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["clean"])
    assert "say --yes to remove this" in capsys.readouterr().err
    with locks.turn(Workspace.at(project).locks, "train_real"), pytest.raises(SystemExit, match="1"):
        main(["clean", "--yes"])
    assert "train_real is running" in capsys.readouterr().err
    (project / "dvc.yaml").unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["clean", "--yes"])
    assert "dvc.yaml: cannot be read" in capsys.readouterr().err
    assert all((project / name).exists() for name in GOES)


@pytest.mark.parametrize(("answer", "gone"), [(b"\n", False), (b"y\n", True)])
def test_a_terminal_is_asked(project: Path, answer: bytes, gone: bool) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dreamset", "clean"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer)
    assert process.wait(60) == 0
    os.close(ours)
    assert (project / "results/metrics.json").exists() != gone
