"""The weights that a study of the epoch chooses among: kept on the way, each by itself, dropped when it is done."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from safetensors.torch import load_file

import toy
from dreamset import adapt, generate, tune
from dreamset.core import locks
from dreamset.core.errors import InputError
from dreamset.core.strict import read_yaml
from dreamset.core.workspace import Workspace
from dreamset.data import folds, tuned
from dreamset.data.adapters import read_adapters
from dreamset.data.splits import read_split, write_split
from dreamset.data.work import Work
from dreamset.generator import training
from dreamset.generator.trained import FILES
from dreamset.params import Params
from dreamset.study import space

LORA, CLASSES, ENCODER, UNET = "datadream_dset", "datadream_cls", "class_encoder", "class_encoder_ft"
SEARCH = {"epoch": {"low": 0.25, "high": 1.0}}
SHARES = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def raw_epochs(small: dict[str, Any]) -> dict[str, Any]:
    """Seven steps, whose places are after 2, 4, 5 and 7 of them."""
    small["active"], small["after"] = ["stable_diffusion", LORA, CLASSES, ENCODER], {UNET: ENCODER}
    small["recipes"][ENCODER]["context_length"] = 6
    for recipe in (LORA, CLASSES, ENCODER, UNET):
        small["recipes"][recipe]["search"] = SEARCH
    rows = small["models"]["bundled"]["adapt"]
    rows |= {"kept": 4, "sample_every": 4}
    for row in ("dataset", "class_encoder", "whole_unet"):
        rows[row] |= {"epochs": 9, "max_steps": 7, "batch": 10, "warmup": 0}
    rows["class"] |= {"epochs": 4, "max_steps": 7, "batch": 1, "warmup": 0}
    return small


def ready(raw: dict[str, Any], folder: Path) -> tuple[Params, Workspace]:
    params, workspace = toy.parse(raw), Workspace.at(folder)
    toy.prepare(params, workspace)
    return params, workspace


def tune_parent(params: Params, workspace: Workspace, epoch: float | None) -> None:
    """What the study of the class encoder has chosen."""
    toy.write_study(params, workspace, ENCODER, best=None if epoch is None else {"epoch": epoch})


def adapted(params: Params, workspace: Workspace, recipe: str, epoch: float | None = None) -> dict[str, torch.Tensor]:
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
    tune_parent(params, workspace, 0.5)
    own = adapt._training(Work.read(params, workspace, recipe))
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
    assert [[*kept] for kept in own.kept] == [[2, 4, 5]] * len(own.jobs)
    found = {share: adapted(params, workspace, recipe, share) for share in SHARES}
    assert equal(found[1.0], last)
    assert not equal(found[0.75], last)
    assert not equal(found[0.25], found[0.5])
    if recipe in (LORA, CLASSES):
        # The averaged weights after two steps, of the adapter's last layer.
        assert any(torch.equal(value, at[2][-1, 0]) for value in found[0.25].values())
    summary = adapt.run(params.with_values(recipe, {"epoch": 0.5}), workspace, recipe)
    assert summary["steps"] == 4 * len(own.scopes)
    grids = sorted(path.name for path in workspace.plots("adapt", recipe).glob("*.png"))
    assert grids == ["samples_00000.png", "samples_00004.png"]
    record = json.loads((workspace.adapter(recipe) / "adapters.json").read_text())
    assert record["settings"]["epoch"] == 0.5
    assert sorted(record["kept"]) == sorted(key for kept in own.kept for key in kept.values())
    card = (workspace.adapter(recipe) / "README.md").read_text()
    assert "those after 50 % of the training" in card


def test_training_does_not_depend_on_the_epoch_that_is_used(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    keys = [
        adapt._training(Work.read(params.with_values(ENCODER, values), workspace, ENCODER)).jobs[0].key
        for values in ({}, {"epoch": 0.25}, {"epoch": 1.0}, {"lr": 0.5})
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize(
    ("epoch", "kept", "said"),
    [
        (0.3, 4, rf"recipes.{LORA}.epoch: no weights are kept after 0.3 of the training; give a multiple of 0.25"),
        (2, 4, rf"recipes.{LORA}.epoch: expected"),
        (1.0, 7, r"adapt.kept: must divide 1000"),
    ],
)
def test_an_epoch_that_is_not_kept_is_one_sentence(
    raw_epochs: dict[str, Any], epoch: float, kept: int, said: str
) -> None:
    raw_epochs["models"]["bundled"]["adapt"]["kept"] = kept
    raw_epochs["recipes"][LORA]["epoch"] = epoch
    with pytest.raises(InputError, match=said):
        toy.parse(raw_epochs)


def test_places_of_few_steps_fall_together(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    raw_epochs["models"]["bundled"]["adapt"] |= {"kept": 10}
    raw_epochs["models"]["bundled"]["adapt"]["dataset"] |= {"max_steps": 3}
    params, workspace = ready(raw_epochs, tmp_path)
    own = [
        adapt._training(Work.read(params.with_values(LORA, {"epoch": place / 10}), workspace, LORA))
        for place in range(1, 11)
    ]
    assert [training.stops for training in own] == [[stop] for stop in (1, 1, 1, 1, 2, 2, 2, 2, None, None)]
    assert equal(adapted(params, workspace, LORA, 0.1), adapted(params, workspace, LORA, 0.4))


# Few shots have few steps, so that they are tried with each model.
@pytest.mark.parametrize(("shots", "model"), [("all", "bundled"), (20, "sd21_base"), (3, "bundled"), (3, "sd21_base")])
@pytest.mark.parametrize("recipe", [ENCODER, UNET])
def test_what_is_searched_is_there_in_every_fold_and_on_all_shots(
    tmp_path: Path, shots: Any, model: str, recipe: str
) -> None:
    raw = read_yaml(toy.ROOT / "params.yaml")
    raw |= {"shots": shots, "model": model, "active": [ENCODER], "after": {UNET: ENCODER}}
    raw["models"][model]["judge"] = str(toy.ROOT / "models/base/judge")
    params = toy.parse(raw)
    workspace, kept = Workspace.at(tmp_path), params.base.adapt.kept
    params = params.with_values(ENCODER, {"epoch": 0.5})
    toy.prepare(params, workspace)
    toy.write_study(params, workspace, ENCODER, best={"epoch": 0.5})
    assert space.ranges(params, workspace, recipe)["epoch"] == space.Range(0.1, 1.0, 1 / kept)


def test_trials_take_places_and_nothing_between(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    raw_epochs["models"]["bundled"]["adapt"]["kept"] = 10
    raw_epochs["recipes"][LORA]["search"] = {"epoch": {"low": 0.12, "high": 0.79}}
    params, workspace = toy.parse(raw_epochs), Workspace.at(tmp_path)
    ranges = space.ranges(params, workspace, LORA)
    study, taken = optuna.create_study(), set()
    for _ in range(60):
        taken.add(space.suggest(study.ask(), ranges)["epoch"])
    assert taken == {0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    # The end of the training, which is what the row means, is not among them. Its weights are there to compare with.
    assert space.row_values(params, LORA, ranges) == {"epoch": 1.0}
    assert space.row_values(params.with_values(LORA, {"epoch": 0.25}), LORA, ranges) is None
    assert space.row_values(params.with_values(LORA, {"epoch": 0.3}), LORA, ranges) == {"epoch": 0.3}


def forgotten(params: Params, workspace: Workspace, recipe: str, record: dict[str, Any]) -> int:
    split = read_split(workspace.splits)
    objective = SimpleNamespace(
        recipe=recipe, space=params.recipes[recipe].search.knobs, holdouts=[SimpleNamespace(split=split)]
    )
    return tune._forget_epochs(params, workspace, objective, record)


def test_epochs_are_forgotten_and_trained_again_when_asked_for(
    raw_epochs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = ready(raw_epochs, tmp_path)
    second, third = (adapted(params, workspace, ENCODER, epoch) for epoch in (0.5, 0.75))
    record = {"trials": [{"params": {"epoch": 0.75}}], "best": {"epoch": 0.75}}
    end = adapt._training(Work.read(params, workspace, ENCODER)).jobs[0].key
    lock = locks.take(workspace.shards / f".{end}{locks.SUFFIX}")
    assert lock is not None
    # Another process is at this very training.
    assert forgotten(params, workspace, ENCODER, record) == 0
    lock.release()
    assert forgotten(params, workspace, ENCODER, record) == 2
    assert forgotten(params, workspace, ENCODER, record) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Together, "run", lambda *_: pytest.fail("trained again"))
        assert equal(adapted(params, workspace, ENCODER, 0.75), third)
        adapted(params, workspace, ENCODER)
    assert equal(adapted(params, workspace, ENCODER, 0.5), second)
    assert forgotten(params, workspace, ENCODER, {"trials": [{"params": {}}], "best": None}) == 3


def test_trainings_of_every_rate_are_forgotten(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    raw_epochs["recipes"][LORA]["search"] = SEARCH | {"lr": {"low": 1e-4, "high": 1e-2}}
    params, workspace = ready(raw_epochs, tmp_path)
    for lr in (1e-3, 2e-3):
        adapted(params.with_values(LORA, {"lr": lr}), workspace, LORA)
    trials = [{"params": {"lr": lr, "epoch": 0.5}} for lr in (1e-3, 1e-3, 2e-3)]
    assert forgotten(params, workspace, LORA, {"trials": trials, "best": {"lr": 1e-3, "epoch": 0.5}}) == 3 + 2


def test_what_another_row_wants_of_the_same_training_stays(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    fixed, studied = dict(raw_epochs["recipes"][LORA]), dict(raw_epochs["recipes"][LORA])
    del fixed["search"]
    scaled = studied | {"adapter_scales": [0.5]}
    raw_epochs["recipes"] |= {"fixed": fixed | {"epoch": 0.25}, "studied": studied, "scaled": scaled}
    record = {"trials": [{"params": {"epoch": 0.75}}], "best": {"epoch": 0.75}}
    ready(raw_epochs | {"active": [LORA], "after": {}}, tmp_path)
    for active, gone in (([LORA, "studied"], 0), ([LORA, "scaled"], 0), ([LORA, "fixed"], 1), ([LORA], 1)):
        params, workspace = toy.parse(raw_epochs | {"active": active, "after": {}}), Workspace.at(tmp_path)
        adapted(params, workspace, LORA)
        assert forgotten(params, workspace, LORA, record) == gone, active


def test_nothing_is_kept_where_nothing_is_searched(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    del raw_epochs["recipes"][LORA]["search"]
    params, workspace = ready(raw_epochs, tmp_path)
    adapted(params, workspace, LORA)
    assert len([path for path in workspace.shards.iterdir() if path.is_dir()]) == 1
    # Asked for by hand, it is trained with keeping on.
    adapted(params, workspace, LORA, 0.5)
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
    del raw_epochs["recipes"][UNET]["search"]
    params, workspace = ready(raw_epochs, tmp_path)
    with pytest.raises(InputError, match="dreamset tune class_encoder"):
        adapt.run(params, workspace, UNET)
    second, last = (adapted(params, workspace, ENCODER, epoch)["contexts"] for epoch in (0.5, 1.0))
    for chosen, contexts in ((0.5, second), (None, last)):
        tune_parent(params, workspace, chosen)
        assert torch.equal(adapted(params, workspace, UNET)["contexts"], contexts)
    assert generate.run(params, workspace, UNET)["images"] == 40


def test_a_fold_starts_from_an_encoder_of_its_own_at_the_same_epoch(raw_epochs: dict[str, Any], tmp_path: Path) -> None:
    del raw_epochs["recipes"][UNET]["search"]
    params, workspace = ready(raw_epochs, tmp_path)
    tune_parent(params, workspace, 0.5)
    chosen = tuned.applied(params, workspace, UNET)
    split, fold = read_split(workspace.splits), Workspace(workspace.root, workspace.root / "fold")
    own = folds.without(split, split.train[:1], workspace)
    write_split(fold.splits, own)
    # Nothing of the encoder is there, nor of its study.
    contexts = adapted(chosen, fold, UNET)["contexts"]
    second = adapted(chosen, fold, ENCODER)["contexts"]
    assert torch.equal(contexts, second)
    assert not torch.equal(contexts, adapted(params, workspace, ENCODER, 0.5)["contexts"])
