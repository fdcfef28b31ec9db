"""Training: shares of batches, equal steps, selection, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset import classifiers, train
from dreamset.classifiers import fit, fitting, resnet20
from dreamset.classifiers.parts import Part
from dreamset.core.errors import InputError
from dreamset.core.files import read_json
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, runs
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.params import Params

RECIPE = "datadream_dset"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    place = Workspace.at(tmp_path)
    toy.write_splits(place, selection=3)
    toy.write_synthetic(place, RECIPE)
    # Training may not so much as look: the test manifest is not there.
    place.test_split.unlink()
    return place


def _labelled(n: int, value: int = 0) -> arrays.Labelled:
    labels = np.arange(n) % 3
    return arrays.Labelled(np.full((n, 16, 16, 3), value, np.uint8), labels, tuple(map(str, range(n))))


def _schedule(**changes: Any) -> Any:
    params = toy.params(**{f"models__bundled__train__resnet20__{k}": v for k, v in changes.items()})
    return params.base.train.rows["resnet20"]


class Scripted(torch.nn.Module):
    """Right on a scripted number of the three selection images, and counts its steps in a parameter."""

    size = 16
    label_smoothing = 0.0

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.script, self.calls = script, 0
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            return images.mean((1, 2, 3))[:, None] * 0 + self.weight
        right = self.script[self.calls]
        self.calls += 1
        guess = torch.tensor([label if label < right else (label + 1) % 3 for label in range(3)])
        return torch.nn.functional.one_hot(guess, 3).float()


def test_every_scored_step_can_be_come_back_to() -> None:
    script = [1, 3, 2, 2]
    classifier = Scripted(script)
    weights = []
    classifier.weight.register_hook(lambda _: weights.append(classifier.weight.detach().clone()))
    source = fit.Source("real", _labelled(5), 1.0, 1.0)
    schedule = _schedule(steps=8, batch=4, warmup=0, lr=0.1)
    data = _labelled(3)
    history = fit.fit(classifier, [source], data, schedule, selections=4, invariances=(), crop=1.0, seed=("test", 0))
    assert list(history.logits) == list(history.states) == [2, 4, 6, 8]
    assert [int((logits.argmax(1) == data.labels).sum()) for logits in history.logits.values()] == script
    last = classifier.weight.detach().clone()
    assert torch.equal(history.states[8]["weight"], last)
    # The hook saw the weights before each step, so those after the fourth stand next in line.
    fit.restore(classifier, history.states[4])
    assert torch.equal(classifier.weight, weights[4])
    assert not torch.equal(classifier.weight, last)


def test_training_that_stops_early_is_the_beginning_of_one_that_does_not() -> None:
    found = []
    for stop in (None, 4):
        torch.manual_seed(0)
        network = resnet20.network(3, 4, 16, 0.0)
        source = fit.Source("real", _labelled(5, 9), 1.0, 1.0)
        schedule = _schedule(steps=8, batch=4, warmup=2)
        history = fit.fit(
            network, [source], _labelled(3), schedule, selections=2, invariances=(), crop=0.5, seed=("s",), stop=stop
        )
        found.append((history, network.state_dict()))
    assert found[0][0].losses[:4] == found[1][0].losses
    assert len(found[0][0].losses) == 8
    assert all(torch.equal(found[0][0].states[4][name], value) for name, value in found[1][1].items())


def test_the_plateau_lowers_the_rate_and_ends_where_the_score_gains_no_more() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    watch, rates = fit.Plateau(optimizer), []
    # The best but once more at the fifth, and then equal scores, which are no better.
    for score in (0.5, 0.4, 0.4, 0.4, 0.6, *[0.6] * 24):
        assert not watch.over(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert watch.over(0.6)
    assert rates == pytest.approx([1e-3] * 14 + [1e-4] * 10 + [1e-5] * 5)
    for _ in range(20):
        watch.over(0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(fit.FLOOR)


@pytest.mark.parametrize("plateau", [False, True])
def test_rates_of_both_schedules_as_they_are_used(plateau: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, plain = [], torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *rest: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return plain(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    for name, value in (("SCORINGS", 10), ("PATIENCE", 2), ("STOP", 5)):
        monkeypatch.setattr(fit, name, value)
    schedule, data = _schedule(steps=20, batch=4, warmup=3, lr=0.1), _labelled(3)
    # Scored at every second step: once while it warms up, then better once, and never again.
    classifier = Scripted([3, 1, 2, 2, 1, 2, 2, 2, 2, 2])
    weights: list[torch.Tensor] = []
    classifier.weight.register_hook(lambda _: weights.append(classifier.weight.detach().clone()))
    source = fit.Source("real", _labelled(5), 1.0, 1.0)
    more: dict[str, Any] = {"selections": 10, "invariances": (), "crop": 1.0, "seed": ("test", 0), "plateau": plateau}
    history = fit.fit(classifier, [source], data, schedule, **more)
    assert rates[:4] == [fit.learning_rate(step, schedule) for step in range(4)]
    if not plateau:
        assert rates == [fit.learning_rate(step, schedule) for step in range(20)]
        assert list(history.logits) == list(history.curve) == list(range(2, 21, 2))
        return
    assert rates == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 7, *[0.01] * 4, *[0.001] * 2])
    assert len(history.losses) == 16
    assert list(history.curve) == list(range(2, 17, 2))
    # The best of all, which can be come back to.
    assert list(history.logits) == list(history.states) == [2]
    assert torch.equal(history.states[2]["weight"], weights[2])


def test_a_plateau_keeps_the_best_step_and_needs_images_to_go_by(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "STOP", 3)
    changes: dict[str, Any] = {"train__classifiers": ["resnet20"], "train__baselines": [], "selection": "extra:3"}
    params = toy.params(**changes, models__bundled__train__resnet20__schedule="plateau")
    runs = {run["train_on"]: run for run in train.run(params, workspace, "real")["runs"]}
    for kind in ("real", "real_strong"):
        run = runs[kind]
        scores = {point["step"]: point["accuracy"] for point in run["selection_curve"]}
        assert run["chosen_step"] == max(scores, key=lambda step: (scores[step], -step))
        assert run["loss"][-1]["step"] == max(scores) <= run["steps"] == 12
        record = classifiers.load(workspace.classifiers("real") / f"{kind}_resnet20")
        held = arrays.real(read_split(workspace.splits).selection, workspace.cell, 16)
        right = (record.logits(held.images).argmax(1) == held.labels).mean()
        assert right == pytest.approx(scores[run["chosen_step"]], abs=1e-4)
    more = runs["real_more"]
    assert (more["chosen_step"], more["selection_curve"], more["loss"][-1]["step"]) == (12, [], 12)
    cosine = {run["train_on"]: run for run in train.run(toy.params(**changes), workspace, "real")["runs"]}
    assert cosine["real_more"]["loss"] == more["loss"]
    assert cosine["real"]["loss"][-1] != runs["real"]["loss"][-1]


def test_scales_are_nested_and_change_no_other_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train__classifiers": ["resnet20"], "train__baselines": [], "generate__per_class": 6}
    changes |= {"models__bundled__train__resnet20__steps": 4, "models__bundled__train__resnet20__warmup": 1}
    places = [Workspace.at(tmp_path / name) for name in ("plain", "scaled")]
    for place, each in zip(places, (6, 12), strict=True):
        toy.write_splits(place)
        if each == 12:
            # The first six of each class are those of the other set.
            _grow(places[0], place)
        else:
            toy.write_synthetic(place, RECIPE, per_class=each)
    plain = train.run(toy.params(**changes), places[0], RECIPE)["runs"]
    params = toy.params(**changes, train__scales=[1, 3])
    scaled = train.run(params, places[1], RECIPE)["runs"]
    timed = ("seconds", "images_per_second")
    for one, two in zip(plain, scaled, strict=False):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}
    sized = scaled[len(plain) :]
    assert [(run["train_on"], run["synthetic_images"], run["steps"], run["real_images"]) for run in sized] == [
        ("synthetic_x1", 12, 4, 0),
        ("synthetic_x3", 36, 4, 0),
    ]
    assert [run.kind.scale for run in runs.runs(params, RECIPE)] == [None] * 3 + [1, 3]
    part = Part(params, places[1], read_split(places[1].splits), RECIPE, places[1].shards)
    small, large = (part.scaled(scale, resnet20.network(3, 4, 16, 0.0)) for scale in (1, 3))
    for label in range(3):
        own = [name for name, its in zip(small.names, small.labels, strict=True) if its == label]
        assert own == [name for name, its in zip(large.names, large.labels, strict=True) if its == label][:4]
    # What the curve is compared with is trained though nothing else asks for it.
    other = toy.params(**changes, train__scales="ravuri_vinyals", models__bundled__tune__classifier="resnet50")
    assert [run.folder for run in runs.runs(other, "real")[-2:]] == ["real_resnet50", "real_strong_resnet50"]
    with pytest.raises(InputError, match=rf"too few images for train.scales: 3; run `dreamset generate {RECIPE}`"):
        train.run(params, places[0], RECIPE)


def _grow(small: Workspace, large: Workspace) -> None:
    """The synthetic dataset of ``small`` with as many more images of each class behind."""
    toy.write_synthetic(large, RECIPE, per_class=12, seed=9)
    rows = read_metadata(large.synthetic(RECIPE))
    first = {row.file_name: row for row in read_metadata(small.synthetic(RECIPE))}
    for name in first:
        (large.synthetic(RECIPE) / name).write_bytes((small.synthetic(RECIPE) / name).read_bytes())
    write_metadata(large.synthetic(RECIPE), [first.get(row.file_name, row) for row in rows])


def test_without_selection_images_nothing_is_scored() -> None:
    classifier = Scripted([])
    source = fit.Source("real", _labelled(5), 1.0, 1.0)
    nothing = arrays.Labelled(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, np.int64), ())
    history = fit.fit(
        classifier, [source], nothing, _schedule(steps=6), selections=3, invariances=(), crop=1.0, seed=("test", 0)
    )
    assert (history.logits, history.states, len(history.losses)) == ({}, {}, 6)
    assert classifier.weight.abs().sum() > 0


def test_every_batch_of_both_holds_its_share_of_each() -> None:
    network = resnet20.network(3, 4, 16, 0.0)
    sources = [
        fit.Source("real", _labelled(4, 255), 0.5, 0.8),
        fit.Source("synthetic", _labelled(90, 0), 0.5, 0.2),
    ]
    loader = fit._Loader(network, sources, 10, lambda images, size: images, ("test", 0))  # type: ignore[arg-type]
    for _ in range(30):
        images, labels, _ = loader.batch()
        assert images.shape == (10, 3, 16, 16)
        assert images[:, 0, 0, 0].tolist() == [1.0] * 5 + [0.0] * 5
        assert [len(part) for part in labels] == [5, 5]


@pytest.mark.parametrize("part", ["whole", "head"])
def test_the_last_steps_of_both_may_learn_from_real_images_alone(part: str) -> None:
    torch.manual_seed(0)
    network: Any = resnet20.network(3, 4, 16, 0.0)
    bright: list[float] = []
    network.register_forward_pre_hook(
        lambda module, inputs: bright.append(float((inputs[0].mean((1, 2, 3)) > 0.5).float().mean()))
    )
    sources = [fit.Source("real", _labelled(6, 255), 0.5, 0.8), fit.Source("synthetic", _labelled(9, 0), 0.5, 0.2)]
    more: dict[str, Any] = {"selections": 4, "invariances": (), "crop": 1.0, "seed": ("finish",)}
    history = fit.fit(
        network, sources, _labelled(3), _schedule(steps=8, batch=4, warmup=0), **more, finish=fit.Finish(0.5, part)
    )
    # Every second step scores three black images.
    assert [bright[i] for i in (0, 1, 3, 4, 6, 7, 9, 10)] == [0.5] * 4 + [1.0] * 4
    assert len(history.losses) == 8
    middle, end = history.states[4], history.states[8]
    changed = {name for name in middle if not torch.equal(middle[name], end[name])}
    assert {"head.weight", "head.bias"} <= changed
    assert (changed == {"head.weight", "head.bias"}) is (part == "head")


def test_the_loss_weighs_each_image_whatever_it_is_mixed_with() -> None:
    logits, truth = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, 1])
    weights = torch.tensor([0.5, 2.0, 0.5])
    each = [float(torch.nn.functional.cross_entropy(logits[i : i + 1], truth[i : i + 1])) for i in range(3)]
    expected = sum(w * e for w, e in zip(weights.tolist(), each, strict=True)) / 3
    assert float(fit._entropy(logits, truth, 0.0, weights)) == pytest.approx(expected)
    assert float(fit._entropy(logits, truth, 0.1, torch.ones(3))) == pytest.approx(
        float(fit._entropy(logits, truth, 0.1, None))
    )
    # A row that weighs nothing moves nothing: of two classes of images the network learns the one that counts.
    images = _labelled(6)
    data = dataclasses.replace(images, weights=np.where(images.labels == 0, 3.0, 0.0).astype(np.float32))
    losses = []
    for source in (images, data):
        network = Scripted([0] * 9)
        more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": ("near",)}
        course = _schedule(steps=30, batch=6, warmup=0, lr=0.5)
        fit.fit(network, [fit.Source("synthetic", source, 1.0, 1.0)], _labelled(0), course, **more)
        losses.append(network.weight.detach())
    assert losses[1].argmax() == 0 and losses[1][0] - losses[1][1:].max() > 1
    assert (losses[0] - losses[0].mean()).abs().max() < 0.5


def test_what_has_no_last_layer_cannot_finish_with_it() -> None:
    finish, source = fit.Finish(0.5, "head"), fit.Source("real", _labelled(5), 1.0, 1.0)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": ("finish",)}
    with pytest.raises(InputError, match="has no last layer that learns; set it to whole"):
        fit.fit(Scripted([]), [source], _labelled(0), _schedule(steps=4), finish=finish, **more)


def test_the_loss_of_both_weighs_real_rows_by_lambda() -> None:
    network = resnet20.network(3, 4, 16, 0.1).eval()
    real, synthetic = _labelled(4, 255), _labelled(4, 0)

    def loss(*sources: fit.Source) -> float:
        return float(fit._Loader(network, sources, 4 * len(sources), lambda x, size: x, ("t",)).loss().detach())  # type: ignore[arg-type]

    both = loss(fit.Source("real", real, 0.5, 0.7), fit.Source("synthetic", synthetic, 0.5, 0.3))
    alone = [loss(fit.Source(name, data, 1, 1)) for name, data in (("real", real), ("synthetic", synthetic))]
    assert alone[0] != pytest.approx(alone[1])
    assert both == pytest.approx(0.7 * alone[0] + 0.3 * alone[1], rel=1e-5)


def test_a_stream_shows_every_image_once_before_any_again() -> None:
    stream = fit.Stream(7, torch.Generator().manual_seed(0))
    seen = torch.cat([stream.take(5) for _ in range(14)]).reshape(10, 7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in seen)
    assert len({tuple(epoch.tolist()) for epoch in seen}) > 5


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    schedule = _schedule(steps=100, warmup=10, lr=1.0)
    rates = [fit.learning_rate(step, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_real_and_recipe_train_equal_steps_and_write_what_others_read(workspace: Workspace) -> None:
    toy.write_clip(workspace.root / "models/base/clip")
    params = toy.params(selection="extra:3")
    results = {arm: train.run(params, workspace, arm) for arm in ("real", RECIPE)}
    assert [(r["train_on"], r["classifier"]) for r in results["real"]["runs"]] == [
        *((kind, "resnet20") for kind in ("real", "real_strong", "real_more")),
        *((kind, "clip_lora") for kind in ("real", "real_strong", "real_more")),
        ("real", "linear_probe"),
    ]
    runs = [run for result in results.values() for run in result["runs"]]
    assert len(runs) == 12
    for name, steps in (("resnet20", 12), ("clip_lora", 6)):
        assert {run["steps"] for run in runs if run["classifier"] == name} == {steps}
    assert {(run["train_on"], run["real_images"], run["synthetic_images"]) for run in runs} == {
        ("real", 12, 0),
        ("real_strong", 12, 0),
        ("real_more", 21, 0),
        ("synthetic", 0, 18),
        ("both", 12, 18),
        ("both_strong", 12, 18),
    }
    result = results[RECIPE]
    assert read_json(workspace.result("train", RECIPE), "") == result
    assert {run["train_on"]: (run["labels_train_per_class"], run["labels_selection_per_class"]) for run in runs} == {
        **dict.fromkeys(("real", "real_strong", "synthetic", "both", "both_strong"), (4, 3)),
        "real_more": (7, 0),
    }
    assert all((run["selection"], run["temperature_images"]) == ("extra:3", 9) for run in result["runs"])
    assert [point["step"] for point in result["runs"][0]["selection_curve"]] == [4, 8, 12]
    folder = workspace.classifiers(RECIPE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "both_clip_lora",
        "both_resnet20",
        "both_strong_resnet20",
        "shards.json",
        "synthetic_clip_lora",
        "synthetic_resnet20",
    ]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    record = read_json(folder / "both_clip_lora/classifier.json", "")
    assert record["classes"] == list(toy.CLASSES)
    assert record["base"] == "models/base/clip"
    assert record["chosen_step"] in (2, 4, 6)
    assert classifiers.load(folder / "both_clip_lora").logits(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 3)
    with (workspace.plots("train", RECIPE) / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {path.name for path in folder.glob("*/")}
    assert float(rows[0]["loss"]) > 0


def _learning(**changes: Any) -> Params:
    """ResNet-20 alone, with enough steps to learn the toy classes."""
    row = {"steps": 30, "batch": 18, "width": 4, "lr": 0.02} | changes
    return toy.params(
        selection="extra:3",
        train__classifiers=["resnet20"],
        train__baselines=[],
        **{f"models__bundled__train__resnet20__{k}": v for k, v in row.items()},
    )


def test_training_learns_and_repeats_and_does_not_know_the_recipe(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.at(tmp_path / "other")
    shutil.copytree(workspace.cell / "data", other.cell / "data")
    toy.write_synthetic(other, "stable_diffusion")
    params = _learning()
    first = train.run(params, workspace, RECIPE)
    twin = train.run(params, other, "stable_diffusion")  # the same images under another name, without shards to share
    for one, two in zip(first["runs"], twin["runs"], strict=True):
        assert one["loss"] == two["loss"]
        assert one["loss"][-1]["loss"] < 0.7 * one["loss"][0]["loss"]
        assert max(point["accuracy"] for point in one["selection_curve"]) > 0.7
    name = "synthetic_resnet20/model.safetensors"
    assert (workspace.classifiers(RECIPE) / name).read_bytes() == (
        other.classifiers("stable_diffusion") / name
    ).read_bytes()


def test_a_killed_run_goes_on_with_the_next_classifier(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what another recipe has learned from the same images is not learned again; one step more is."""
    fitted: list[str] = []
    plain = fit.fit

    def counted(*rest: Any, **named: Any) -> Any:
        if len(fitted) == 2 and "killed" not in fitted:
            fitted.append("killed")
            raise KeyboardInterrupt
        fitted.append(named["what"])
        return plain(*rest, **named)

    monkeypatch.setattr(fit, "fit", counted)
    params = _learning(steps=4)
    with pytest.raises(KeyboardInterrupt):
        train.run(params, workspace, RECIPE)
    assert not workspace.classifiers(RECIPE).exists()
    first = train.run(params, workspace, RECIPE)
    runs = [f"train {RECIPE} {kind} resnet20" for kind in ("synthetic", "both", "both_strong")]
    assert fitted == [*runs[:2], "killed", runs[2]]
    assert train.run(params, workspace, RECIPE) == first
    toy.write_synthetic(workspace, "stable_diffusion")
    assert train.run(params, workspace, "stable_diffusion")["runs"] == first["runs"]
    record = read_json(workspace.classifiers("stable_diffusion") / "both_resnet20/classifier.json", "")
    assert (record["arm"], record["chosen_step"]) == ("stable_diffusion", first["runs"][1]["chosen_step"])
    assert len(fitted) == 4
    train.run(_learning(steps=5), workspace, RECIPE)
    assert len(fitted) == 7


def test_labels_come_from_the_metadata_and_changed_files_are_named(workspace: Workspace) -> None:
    split = read_split(workspace.splits)
    folder = workspace.synthetic(RECIPE)
    data = arrays.synthetic(folder, split, 16)
    assert data.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    other = type(split)(**(split.__dict__ | {"classes": ("bar", "spot", "plank")}))
    with pytest.raises(InputError, match="holds class 'plank'"):
        arrays.synthetic(folder, other, 16)
    victim = folder / data.names[3]
    victim.write_bytes((folder / data.names[4]).read_bytes())
    with pytest.raises(InputError, match=rf"{data.names[3]}.*dreamset generate {RECIPE}"):
        arrays.synthetic(folder, split, 16)
    (workspace.cell / split.train[0].path).unlink()
    with pytest.raises(InputError, match="dreamset prepare"):
        arrays.real(split.train, workspace.cell, 16)


def test_an_unknown_arm_is_named(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="neither 'real' nor an active recipe"):
        train.run(toy.params(), workspace, "datadream_cls")


def test_a_failed_run_leaves_the_old_classifiers(workspace: Workspace) -> None:
    changes: dict[str, Any] = {"selection": "extra:3", "train__baselines": []}
    params = toy.params(train__classifiers=["resnet20"], **changes)
    train.run(params, workspace, "real")
    before = sorted(path.name for path in workspace.classifiers("real").rglob("*"))
    with pytest.raises(InputError, match="open_clip folder"):
        train.run(toy.params(**changes), workspace, "real")
    assert sorted(path.name for path in workspace.classifiers("real").rglob("*")) == before
    assert [path.name for path in workspace.classifiers("real").parent.iterdir()] == ["real"]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    source = fit.Source("real", _labelled(5), 1.0, 1.0)
    classifier = Scripted([0] * 3)
    classifier.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="no longer finite"):
        fit.fit(
            classifier, [source], _labelled(3), _schedule(), selections=3, invariances=(), crop=1.0, seed=("test", 0)
        )


def test_importing_the_stages_is_cheap() -> None:
    code = "import sys, dreamset.train, dreamset.evaluate; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_missing_weights_are_told_before_anything_is_trained(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained first")

    monkeypatch.setattr(fitting, "_fit", never)
    params = toy.params(train__classifiers=["resnet20", "clip_lora"], models__bundled__clip="hub:nobody/nothing")
    with pytest.raises(InputError, match="dreamset fetch"):
        train.run(params, workspace, "real")
