"""Guidance by another network, by another class, or toward a shot; and where it ends."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.data.work import Work
from dreamset.drawing import guides, starts
from dreamset.generator import base_model, lora, sampler
from dreamset.generator.base_model import BaseModel
from dreamset.generator.sampler import Guide
from dreamset.params import Params
from dreamset.params.knobs import Lora
from dreamset.params.model import Sampler
from test_generator import generators, shaken
from tiny import write_pipeline

RECIPE = "datadream_guided"


@pytest.fixture(autouse=True)
def _found_from_anywhere(small: dict[str, Any]) -> None:
    small["models"]["bundled"]["clip"] = str(toy.ROOT / "models/base/clip")


@pytest.fixture
def base(small: dict[str, Any]) -> BaseModel:
    row = toy.parse(small).base
    return base_model.load(Path(row.generator), row, torch.device("cpu"))


@pytest.fixture
def adapted(base: BaseModel, tmp_path: Path) -> Path:
    """The file of an adapter that changes U-Net and text encoder a lot."""
    adapters = shaken(base, Lora(2, 4.0, unet=True, text_encoder=True), ("one",), amount=0.3)
    adapters.save("one", tmp_path)
    lora.detach(adapters)
    return tmp_path / lora.WEIGHTS


@torch.no_grad()
def drawn(base: BaseModel, guide: Guide | None, guidance: float, empty: Any = None, name: Any = "ddim") -> torch.Tensor:
    prompts = base.encode(["a", "b"])
    empty = base.encode(["", ""]) if empty is None else empty
    return sampler.draw(base, Sampler(name, 4, guidance), prompts, empty, generators(2), guide=guide)


def test_the_base_guides_what_its_adapter_draws(base: BaseModel, adapted: Path) -> None:
    with torch.no_grad():
        empty = base.encode(["", ""])
    before, twin = drawn(base, None, 2.0), base.twin()
    # Without an adapter both networks are the same.
    assert (drawn(base, Guide(network=twin), 2.0, empty) - before).abs().max() < 1e-5
    alone = sampler.draw(twin, Sampler("ddim", 4, 1.0), empty, empty, generators(2))
    with lora.fused(base, adapted):
        ordinary = drawn(base, None, 2.0)
        guided = drawn(base, Guide(network=twin), 2.0, empty)
        # eps_base(empty) + w (eps_adapted(prompt) - eps_base(empty)): at 0 only the base is left, at 1 the adapted one.
        assert (drawn(base, Guide(network=twin), 0.0, empty) - alone).abs().max() < 1e-5
        assert torch.equal(drawn(base, Guide(network=twin), 1.0, empty), drawn(base, None, 1.0))
    assert (guided - ordinary).abs().max() > 0.01
    assert torch.equal(drawn(base, None, 2.0), before)


def test_guidance_ends_where_the_recipe_says(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    predict = BaseModel.predict
    monkeypatch.setattr(BaseModel, "predict", lambda self, x, *more: rows.append(len(x)) or predict(self, x, *more))
    half = drawn(base, Guide(until=0.5), 3.0)
    assert rows == [4, 4, 2, 2]
    rows.clear()
    assert not torch.equal(drawn(base, Guide(until=1.0), 3.0), half)
    assert rows == [4] * 4
    # However short, one step is guided.
    rows.clear()
    drawn(base, Guide(until=0.01), 3.0)
    assert rows == [4, 2, 2, 2]


@pytest.mark.parametrize("name", sorted(sampler.SCHEDULERS))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_full_pull_draws_the_shot(small: dict[str, Any], tmp_path: Path, name: str, prediction: str) -> None:
    generator = str(write_pipeline(tmp_path, prediction_type=prediction))
    row = dataclasses.replace(toy.parse(small).base, generator=generator)
    base = base_model.load(Path(row.generator), row, torch.device("cpu"))
    modes = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(5))
    shots = base.decode(modes)
    plain, weak, full = (drawn(base, Guide(modes=modes, pull=pull), 2.0, name=name) for pull in (1e-9, 0.3, 1.0))
    distances = [float((images - shots).abs().mean()) for images in (plain, weak, full)]
    assert distances[0] > distances[1] > distances[2]
    # The last step of the others leaves noise of its own.
    assert distances[2] < 1e-4 or name != "dpmsolver++"


def made(small: dict[str, Any], workspace: Workspace, **knobs: Any) -> tuple[Params, list[SyntheticImage]]:
    small["recipes"][RECIPE] = {k: v for k, v in (small["recipes"][RECIPE] | knobs).items() if v is not None}
    small["active"] = ["stable_diffusion", RECIPE]
    params = toy.parse(small)
    adapt.run(params, workspace, RECIPE)
    generate.run(params, workspace, RECIPE)
    return params, read_metadata(workspace.synthetic(RECIPE))


def test_each_guide_draws_other_images_and_says_what_it_did(
    prepared: tuple[Params, Workspace], small: dict[str, Any]
) -> None:
    _, workspace = prepared
    pictures, cards = {}, {}
    for guide in ("adapted", "base", "other_class", "mode"):
        params, images = made(small, workspace, guide=guide, guide_until=0.9)
        work = guides.applied(Work.read(params, workspace, RECIPE))
        pictures[guide] = tuple(image.sha256 for image in images)
        cards[guide] = (workspace.synthetic(RECIPE) / "README.md").read_text()
        columns = json.loads((workspace.synthetic(RECIPE) / "metadata.jsonl").read_text().splitlines()[0])
        assert ("avoid" in columns) == (guide == "other_class") == ("name: avoid" in cards[guide])
        assert ("toward" in columns) == (guide == "mode") == ("name: toward" in cards[guide])
        for image in images:
            if guide == "other_class":
                assert image.avoid == work.avoided[image.label] != image.prompt
            if guide == "mode":
                (shot,) = starts.choose(work.split, params.seed, [(image.label, image.index)])
                assert image.toward == shot.sha256
                assert image.shot is None
    assert len(set(pictures.values())) == 4
    assert "Guidance: guidance ends after 90 % of the steps." in cards["adapted"]
    assert "the unconditional half is the base's" in cards["base"]
    assert "stands for the empty prompt" in cards["other_class"]
    assert "pulled toward a shot of its class, by 0.1 of what is left" in cards["mode"]


def test_the_nearest_other_class_is_another_one(prepared: tuple[Params, Workspace], small: dict[str, Any]) -> None:
    small["recipes"][RECIPE] |= {"guide": "other_class"}
    work = Work.read(toy.parse(small), prepared[1], RECIPE)
    avoided = guides.applied(work).avoided
    prompts = [work.split.prompt(label) for label in range(len(work.split.classes))]
    assert len(avoided) == len(prompts)
    assert all(other in prompts and other != own for own, other in zip(prompts, avoided, strict=True))
    # Shots may be given class by class.
    uneven = dataclasses.replace(work, split=dataclasses.replace(work.split, shots={"zero": 1, "one": 2}))
    assert guides.applied(uneven).avoided == avoided
    alone = dataclasses.replace(work, split=dataclasses.replace(work.split, classes=work.split.classes[:1]))
    with pytest.raises(InputError, match=r"recipes\.datadream_guided\.guide: other_class needs a second class"):
        guides.applied(alone)


@pytest.mark.parametrize(
    ("recipe", "knobs", "words"),
    [
        ("stable_diffusion", {"guide": "base"}, r"recipes\.stable_diffusion\.guide: base needs an adapter"),
        (RECIPE, {"pull": 0.2}, r"pull: belongs to guide: mode"),
        (RECIPE, {"sampler": {"guidance": 1.0}}, r"guidance: 1 is the prompt alone, so that guide has no part"),
        ("datadream_cls", {"guide": "base", "sampler": {"guidance": 1}}, r"guidance: 1 is the prompt alone"),
        (RECIPE, {"guide_until": 0}, r"guide_until.*above 0"),
        (RECIPE, {"guide": "elsewhere"}, r"recipes\.datadream_guided\.guide"),
        ("retrieved", {"guide": "mode"}, r"retrieval draws nothing that could be guided"),
    ],
)
def test_a_guide_without_a_part_is_refused(raw: dict[str, Any], recipe: str, knobs: dict[str, Any], words: str) -> None:
    raw["recipes"][recipe] |= knobs
    raw["active"] = ["stable_diffusion", *([recipe] if recipe != "stable_diffusion" else [])]
    with pytest.raises(InputError, match=words):
        toy.parse(raw)


def test_two_networks_are_not_moved_on_and_off_a_device(raw: dict[str, Any]) -> None:
    raw["models"]["bundled"]["memory"] = ["offload"]
    raw["active"] = [RECIPE]
    with pytest.raises(InputError, match=r"base keeps two U-Nets on the device; take offload out of models\.bundled"):
        toy.parse(raw)
