"""Every command of the README is run, one after the other, as a reader of it would."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import test_readme
from dreamset.command import cli, run
from dreamset.command.reproduce import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

pytestmark = [pytest.mark.dvc, pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")]

# What takes long is made small, with the command that the README names for it.
SMALL = [
    "shots=2",
    "active=[stable_diffusion,datadream_light]",
    "expect.per_class=2",
    "expect.steps=1",
    "expect.on_no_help=go",
    "adapt.sample_images=1",
    "adapt.sample_steps=1",
    "train.classifiers=[resnet20]",
    "train.simple=[pixels]",
    "train.selections=1",
    "evaluate.bootstrap=100",
    "deliver.calibrate=false",
    "track.uri=null",
    "models.bundled.adapt.dataset.max_steps=2",
    "models.bundled.adapt.class.max_steps=2",
    "models.bundled.generate.steps=1",
    "models.bundled.generate.per_class=4",
    "models.bundled.adapt.dataset.batch=4",
    "models.bundled.train.resnet20.steps=2",
    "models.bundled.train.resnet20.width=4",
    "models.bundled.train.resnet20.batch=8",
    "models.bundled.train.linear_probe.batch=8",
    "models.bundled.train.linear_probe.steps=2",
]
# Numbers of the README that would take minutes, and those that are run in their place.
FEWER = {
    "generate.per_class=200": "generate.per_class=6",
    "active=[stable_diffusion,datadream_cls]": "active=[stable_diffusion,datadream_light,datadream_cls]",
    "--shots 4 16 --seeds 0-4": "--shots 1 --seeds 0-0",
}
# What is there after a command, by its start.
MADE = {
    "dreamset init": "my-project/params.yaml",
    "dreamset run": "results/report.html",
    "dreamset predict": "predictions.csv",
    "dreamset export --onnx": "classifier.onnx",
    "dreamset export --public": "published/metadata.jsonl",
    "dreamset export --kohya": "loras",
    "dreamset table": "results/table/README.md",
    "dreamset claims": "results/table/fixed/round-1.json",
}
# They set up the machine, go on until they are stopped, or need more seeds. Other tests run these: test_review ...
APART = ("make", "pip", "source", "mlflow", "dreamset review", "dreamset recommend")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder ``photos`` of handwritten digits, with its images for testing apart."""
    digits = load_digits()
    for label, name in ((3, "three"), (7, "seven")):
        for index, row in enumerate(np.flatnonzero(digits.target == label)[:10]):
            folder = tmp_path / "photos" / ("test" if index < 5 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[row] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).resize((16, 16)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def at_once(root: Path, targets: Sequence[str], handle: Callable[[Event], None], *_: Any) -> None:
    """Run the stages of ``dvc.yaml`` in their order in this process, where DVC would start one for each.

    ``test_pipeline`` runs DVC itself.
    """
    everything = run.planned(root)
    last = next((place for place, one in enumerate(everything) if one.name in targets), len(everything) - 1)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    for one in everything[: last + 1]:
        handle(Event("start", one.name))
        if one.stage:
            cli.main([one.stage, *([one.item] if one.item else [])])
        else:
            subprocess.run(stages[one.name]["cmd"], shell=True, cwd=root, check=True, env=_environment())
        handle(Event("end", one.name))


def _environment() -> Mapping[str, str]:
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def test_the_commands_of_the_readme_run_in_their_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "reproduce", at_once)
    monkeypatch.chdir(photos.parent)
    done: list[str] = []
    for line in map(shlex.join, test_readme.commands(test_readme.README)):
        if line.startswith(APART):
            continue
        words = shlex.split(functools.reduce(lambda said, pair: said.replace(*pair), FEWER.items(), line))
        if words in (["dreamset", "run"], ["dreamset", "clean"]):
            words.append("--yes")  # there is no terminal to ask on
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            (photos.parent / "my-project/photos").symlink_to(photos)
            cli.main(["set", *SMALL])
        elif words[0] == "dreamset":
            cli.main(words[1:])
        else:
            subprocess.run(words, check=True, env=_environment(), stdout=subprocess.DEVNULL)
        done.append(line)
        made = next((file for start, file in MADE.items() if line.startswith(start)), ".")
        assert Path(made).exists(), line
    assert len(done) > 15 and len(set(done)) == len(done) - 2  # `dreamset run` stands there three times
    assert not Path("results/report.html").exists()  # the last command gives disk space back
