"""The weights of the epochs that a study chooses among: kept on the way, each by itself, dropped when it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toy
from dreamset import adapt, folds, generate, prepare, tuned
from dreamset import params as parameters
from dreamset.adapters import read_adapters
from dreamset.errors import InputError
from dreamset.generator import training
from dreamset.generator.trained import FILES
from dreamset.params import Params
from dreamset.splits import read_split, write_split
from dreamset.workspace import Workspace

LORA, CLASSES, ENCODER, UNET = "datadream_dset", "datadream_cls", "class_encoder", "class_encoder_ft"
SEARCH = {"epoch": {"low": 1, "high": 4}}


@pytest.fixture
def raw_epochs(small: dict[str, Any]) -> dict[str, Any]:
    """Seven steps of two an epoch, of the 20 shots; every epoch is kept. The fourth is cut short."""
    small["active"], small["after"] = ["stable_diffusion", LORA, CLASSES, ENCODER], {UNET: ENCODER}
    small["recipes"][ENCODER]["context_length"] = 6
    for recipe in (LORA, CLASSES, ENCODER, UNET):
        small["recipes"][recipe]["search"] = SEARCH
    rows = small["models"]["bundled"]["adapt"]
    rows |= {"keep_every": 1, "sample_every": 4}
    for row in ("dataset", "class_encoder", "whole_unet"):
        rows[row] |= {"epochs": 9, "max_steps": 7, "batch": 10, "warmup": 0}
    rows["class"] |= {"epochs": 4, "max_steps": 7, "batch": 1, "warmup": 0}
    return small


def ready(raw: dict[str, Any], folder: Path) -> tuple[Params, Workspace]:
    params, workspace = parameters.parse(raw), Workspace.at(folder)
    prepare.run(params, workspace)
    return params, workspace


def tune_parent(params: Params, workspace: Workspace, epoch: int | None) -> None:
    """What the study of the class encoder has chosen."""
    toy.write_study(params, workspace, ENCODER, best=None if epoch is None else {"epoch": epoch})


def adapted(params: Params, workspace: Workspace, recipe: str, epoch: int | None = None) -> dict[str, torch.Tensor]:
    """The weights of a recipe, at an epoch."""
    adapt.run(params if epoch is None else params.with_values(recipe, {"epoch": epoch}), workspace, recipe)
    adapter = read_adapters(workspace.adapter(recipe))[-1]
    return load_file(workspace.adapter(recipe) / adapter.file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("recipe", [LORA, CLASSES, ENCODER, UNET])
def test_an_epoch_is_what_a_training_had_reached_then(
    raw_epochs: dict[str, Any], tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    tune_parent(params, workspace, 2)
    assert adapt.kept_epochs(params, read_split(workspace.splits), recipe) == (1, 2, 3, 4)
    own = adapt._training(params, workspace, read_split(workspace.splits), recipe)
    at: dict[int, torch.Tensor] = {}
    train_step = training.Together._train_step

    def watching(self: training.Together) -> None:
        train_step(self)
        if self.jobs[-1].key == own.jobs[-1].key:
            at[self.step] = self.averaged[-1].clone()

    with monkeypatch.context() as patch:
        patch.setattr(training.Together, "_train_step", watching)
        last = adapted(params, workspace, recipe)
    assert sorted(at) == [1, 2, 3, 4, 5, 6, 7]
    # From here on everything is there.
    monkeypatch.setattr(training.Together, "run", lambda *_: pytest.fail("trained again"))
    found = {epoch: adapted(params, workspace, recipe, epoch) for epoch in (1, 2, 3, 4)}
    assert equal(found[4], last)
    assert not equal(found[3], last)
    assert not equal(found[1], found[2])
    if recipe in (LORA, CLASSES):
        # The averaged weights after the two steps of an epoch, of the adapter's last layer.
        assert any(torch.equal(value, at[2]) for value in found[1].values())
    summary = adapt.run(params.with_values(recipe, {"epoch": 2}), workspace, recipe)
    assert summary["steps"] == 4 * len(own.scopes)
    grids = sorted(path.name for path in workspace.plots("adapt", recipe).glob("*.png"))
    assert grids == ["samples_00000.png", "samples_00004.png"]
    record = json.loads((workspace.adapter(recipe) / "adapters.json").read_text())
    assert record["settings"]["epoch"] == 2


def test_training_does_not_depend_on_the_epoch_that_is_used(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    split = read_split(workspace.splits)
    keys = [
        adapt._training(params.with_values(ENCODER, values), workspace, split, ENCODER).jobs[0].key
        for values in ({}, {"epoch": 1}, {"epoch": 4}, {"lr": 0.5})
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_an_epoch_that_is_not_kept_is_one_sentence(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    raw_epochs["models"]["bundled"]["adapt"]["keep_every"] = 3
    params, workspace = ready(raw_epochs, tmp_path)
    assert adapt.kept_epochs(params, read_split(workspace.splits), LORA) == (3, 4)
    for epoch in (2, 5):
        with pytest.raises(InputError, match=rf"recipes.{LORA}.epoch: no weights are kept at epoch {epoch}; .* 3, 4"):
            adapted(params, workspace, LORA, epoch)


def test_epochs_are_forgotten_and_trained_again_when_asked_for(
    raw_epochs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    adapted(params, workspace, ENCODER)
    second, third = (adapted(params, workspace, ENCODER, epoch) for epoch in (2, 3))
    assert adapt.forget_epochs(params, workspace, ENCODER, keep=3) == 2
    assert adapt.forget_epochs(params, workspace, ENCODER, keep=3) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Together, "run", lambda *_: pytest.fail("trained again"))
        assert equal(adapted(params, workspace, ENCODER, 3), third)
        adapted(params, workspace, ENCODER)
    assert equal(adapted(params, workspace, ENCODER, 2), second)
    assert adapt.forget_epochs(params, workspace, ENCODER, keep=None) == 3


def test_nothing_is_kept_where_nothing_is_searched(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    del raw_epochs["recipes"][LORA]["search"]
    params, workspace = ready(raw_epochs, tmp_path)
    adapted(params, workspace, LORA)
    assert len([path for path in workspace.shards.iterdir() if path.is_dir()]) == 1
    # Asked for by hand, it is trained with keeping on.
    adapted(params, workspace, LORA, 2)
    assert len([path for path in workspace.shards.iterdir() if path.is_dir()]) == 4


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("recipe", [LORA, UNET])
def test_a_killed_run_keeps_the_same_epochs(
    raw_epochs: dict[str, Any], tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [ready(raw_epochs, tmp_path / name) for name in ("a", "b")]
    for params, workspace in places:
        tune_parent(params, workspace, None)
    adapt.run(*places[0], recipe)
    params, workspace = places[1]
    if recipe == UNET:
        adapt.run(params, workspace, ENCODER)
    steps = iter(range(5))
    train_step = training.Together._train_step

    def dying(self: training.Together) -> None:
        if next(steps, None) is None:
            raise Killed
        train_step(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Together, "_train_step", dying)
        adapt.run(params, workspace, recipe)
    # The kept ones of four steps stay, and are not written again.
    adapt.run(params, workspace, recipe)
    one, other = (
        {
            path.parent.name: path.read_bytes()
            for path in place.shards.glob(f"*/{FILES[params.recipes[recipe].adapter]}")
        }
        for _, place in places
    )
    assert one == other
    assert len(one) >= 4


def test_a_unet_starts_from_the_epoch_that_was_chosen(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    with pytest.raises(InputError, match="dreamset tune class_encoder"):
        adapt.run(params, workspace, UNET)
    second, last = (adapted(params, workspace, ENCODER, epoch)["contexts"] for epoch in (2, 4))
    for chosen, contexts in ((2, second), (None, last)):
        tune_parent(params, workspace, chosen)
        assert torch.equal(adapted(params, workspace, UNET)["contexts"], contexts)
    assert generate.run(params, workspace, UNET)["images"] == 40


def test_a_fold_starts_from_an_encoder_of_its_own_at_the_same_epoch(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    del raw_epochs["recipes"][UNET]["search"]
    params, workspace = ready(raw_epochs, tmp_path)
    tune_parent(params, workspace, 2)
    chosen = tuned.applied(params, workspace, UNET)
    split, fold = read_split(workspace.splits), Workspace(workspace.root, workspace.root / "fold")
    own = folds.without(split, split.train[:1], workspace)
    write_split(fold.splits, own)
    # Nothing of the encoder is there, nor of its study.
    contexts = adapted(chosen, fold, UNET)["contexts"]
    second = adapted(chosen, fold, ENCODER)["contexts"]
    assert torch.equal(contexts, second)
    assert not torch.equal(contexts, adapted(params, workspace, ENCODER, 2)["contexts"])
