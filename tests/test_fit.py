"""The training of any classifier: shares of batches, weights, schedules, scored steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset.classifiers import fit, resnet20
from dreamset.core.errors import InputError
from dreamset.data import arrays


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


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    source = fit.Source("real", _labelled(5), 1.0, 1.0)
    classifier = Scripted([0] * 3)
    classifier.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="no longer finite"):
        fit.fit(
            classifier, [source], _labelled(3), _schedule(), selections=3, invariances=(), crop=1.0, seed=("test", 0)
        )
