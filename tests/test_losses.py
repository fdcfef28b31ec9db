"""The losses beside that of the noise: what they are, and what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

import toy
from dreamset import adapt
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.splits import read_split
from dreamset.generator import losses, trained
from dreamset.generator.base_model import BaseModel


@pytest.fixture
def base(small: dict[str, Any]) -> BaseModel:
    return toy.base(small)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_right_prediction_stands_for_the_latents_it_came_from(kind: str) -> None:
    schedule = DDPMScheduler(prediction_type=kind)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500, 900])
    noisy = schedule.add_noise(latents, noise, t)
    right = noise if kind == "epsilon" else schedule.get_velocity(latents, noise, t)
    assert torch.allclose(losses.clean(schedule, noisy, t, right), latents, atol=1e-3)


def test_images_are_pushed_from_the_nearest_and_pulled_to_the_farthest_of_their_class() -> None:
    apart = losses.Apart(0.4)
    axes = torch.eye(4).view(4, 4, 1, 1)
    # Nothing is remembered yet.
    assert float(apart.loss(["a", "a", "b"], axes[:3], axes[[0, 3, 2]])) == 0
    drawn = (axes[:1] + axes[1:2]).requires_grad_()
    # Of class a: predicted were axes 0 and 1, real are axes 0 and 3; axis 2 is of another class.
    loss = apart.loss(["a"], drawn, axes[:1])
    root = 0.5**0.5
    assert loss.item() == pytest.approx(0.4 * (root - 0.25 * 0.0), abs=1e-6)
    loss.backward()
    assert drawn.grad is not None and drawn.grad.abs().sum() > 0
    # A class that nothing is remembered of counts for nothing, and takes part in no gradient.
    new = axes[:1].clone().requires_grad_()
    loss = apart.loss(["c"], new, axes[:1])
    loss.backward()
    assert loss.item() == 0 and new.grad is not None and not new.grad.any()
    # What was remembered comes back from a checkpoint.
    again = losses.Apart(0.4)
    again.restore(apart.captions, apart.state())
    assert torch.equal(again.loss(["a"], drawn, axes[:1]), apart.loss(["a"], drawn, axes[:1]))
    for _ in range(40):
        apart.loss(["a", "a"], axes[:2], axes[:2])
    assert len(apart.captions) == len(apart.state()["real"]) == losses.MEMORY


def drift(base: BaseModel, file: Path, caption: str) -> float:
    """How far an adapted base is from itself as it was, where no class is named."""
    held = losses.Held(base, [caption])
    noisy = torch.randn(8, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(50, 950, 8).long()
    with torch.no_grad(), trained.installed(base, file):
        return float(((base.predict(noisy, t, base.encode([caption] * 8)) - held.predict(noisy, t)) ** 2).mean())


def test_an_adapter_that_preserves_stays_with_the_base_where_no_class_is_named(
    small: dict[str, Any], tmp_path: Path, base: BaseModel
) -> None:
    small["models"]["bundled"]["adapt"]["dataset"] |= {"max_steps": 12, "warmup": 0, "lr": 0.02}
    found = {}
    for weight in (None, 5.0):
        if weight:
            small["recipes"]["datadream_dset"]["preserve"] = weight
        place = Workspace.at(tmp_path / str(weight))
        params = toy.parse(small)
        toy.prepare(params, place)
        adapt.run(params, place, "datadream_dset")
        (file,) = place.adapter("datadream_dset").glob("*.safetensors")
        found[weight] = drift(base, file, read_split(place.splits).classless)
    assert found[5.0] < 0.7 * found[None]
    card = (tmp_path / "5.0/models/adapters/datadream_dset/README.md").read_text()
    assert "held to the base on captions without a class at a weight of 5" in card


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of the digit {class}", "a photo of the digit"),
        ("a photo of {a class}, a type of pet.", "a photo of, a type of pet."),
        ("{class} texture", "texture"),
    ],
)
def test_a_caption_without_its_class(workspace: Workspace, template: str, words: str) -> None:
    import dataclasses

    split = dataclasses.replace(toy.write_splits(workspace), template=template)
    assert split.classless == words


@pytest.mark.parametrize(
    ("recipe", "change", "sentence"),
    [
        ("stable_diffusion", {"diversity": 0.1}, r"stable_diffusion\.diversity: there is nothing that adapter: none"),
        ("class_encoder_untuned", {"preserve": 0.1}, r"class_encoder_untuned\.preserve: needs captions that name no"),
        ("datadream_dset", {"preserve": 0}, r"datadream_dset\.preserve: .*above 0"),
    ],
)
def test_where_they_mean_nothing_they_are_refused(
    raw: dict[str, Any], recipe: str, change: dict[str, Any], sentence: str
) -> None:
    raw["recipes"][recipe] |= change
    with pytest.raises(InputError, match=sentence):
        toy.parse(raw)
