"""A row that no paper has, composed of knobs alone: it runs, goes on after a kill to the same bytes, and is studied."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import toy
from dreamset import adapt, generate, tune
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import read_metadata
from dreamset.drawing import draw

if TYPE_CHECKING:
    from pathlib import Path

    from dreamset.params import Params

# A LoRA per class, from shots at strength 0.5, asked for by captions, filtered by argmax, guided by the base, PDA x2.
ROW = {
    "adapter": "lora",
    "scope": "class",
    "rank": 2,
    "alpha": 2,
    "unet": True,
    "text_encoder": True,
    "init": "image",
    "prompt": "caption",
    "captions": "attributes",
    "filter": "argmax",
    "filter_tries": 2,
    "guide": "base",
    "post_augment": {"copies": 2},
    "sampler": {"strength": 0.5, "steps": 4, "guidance": 1.5},
}


class Killed(BaseException):
    """The process is killed."""


@pytest.fixture
def composed(small: dict[str, Any]) -> dict[str, Any]:
    """Raw parameters whose one recipe is ``ROW``, on the bundled base, which draws digits that CLIP reads."""
    row = small["models"]["bundled"]
    row |= {"generator": str(toy.ROOT / "models/base/sd"), "clip": str(toy.ROOT / "models/base/clip")}
    row["generate"] |= {"per_class": 6, "batch": 10}
    row["train"]["resnet20"] |= {"width": 4, "steps": 4, "batch": 8, "warmup": 1}
    row["tune"] = {"classifier": "resnet20", "steps": 4, "per_class": [3, 6]}
    small["recipes"]["composed"] = dict(ROW)
    small |= {"active": ["composed"], "primary": "composed", "selection": "extra:2", "shots": 3}
    small["tune"]["trials"] = 1
    small["track"]["uri"] = None
    return small


def made(params: Params, workspace: Workspace) -> dict[str, bytes]:
    """Every file of the data set, by name."""
    adapt.run(params, workspace, "composed")
    generate.run(params, workspace, "composed")
    folder = workspace.synthetic("composed")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_runs_and_goes_on_after_a_kill_to_the_same_bytes(
    composed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = toy.parse(composed)
    whole, broken = Workspace.at(tmp_path / "whole"), Workspace.at(tmp_path / "broken")
    for workspace in (whole, broken):
        toy.prepare(params, workspace)
    files = made(params, whole)
    images = read_metadata(whole.synthetic("composed"))
    assert len(images) == 60 and sum(image.copy_of is None for image in images) == 20
    drawn = [image for image in images if image.copy_of is None]
    # Each knob has left its mark.
    assert all(image.adapter and image.shot and image.told and image.attributes and image.tries for image in drawn)
    assert all(image.told != image.shot for image in drawn)
    card = files["README.md"].decode()
    for words in ("one per class", "caption of a shot", "Filter: of at most 2", "half is the base's", "with noise of"):
        assert words in card, words
    write, written = draw.write, iter(range(7))

    def dying(*arguments: Any) -> None:
        if next(written, None) is None:
            arguments[-1].close()  # a killed process holds no shard
            raise Killed
        write(*arguments)

    monkeypatch.setattr(draw, "write", dying)
    with pytest.raises(Killed):
        made(params, broken)
    monkeypatch.undo()
    assert made(params, broken) == files


def test_it_is_studied(composed: dict[str, Any], workspace: Workspace) -> None:
    composed["recipes"]["composed"]["search"] = {
        "guidance": {"low": 0.5, "high": 3.0},
        "strength": {"low": 0.3, "high": 0.9},
    }
    params = toy.parse(composed)
    toy.prepare(params, workspace)
    adapt.run(params, workspace, "composed")
    tune.run(params, workspace, "composed")
    record = json.loads(workspace.result("tune", "composed").read_text())
    (trial,) = record["trials"]
    assert record["searched"] == ["guidance", "strength"] and trial["state"] == "COMPLETE"
    generate.run(params, workspace, "composed")
    image = read_metadata(workspace.synthetic("composed"))[0]
    assert {name: image.sampler[name] for name in record["best"]} == record["best"]
