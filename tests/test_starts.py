"""Images that start from shots: the same whatever they are drawn with, spread evenly, and from no held-out image."""

import dataclasses
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

import toy
from dreamset import adapt, generate
from dreamset.command import cli, plan
from dreamset.core.errors import InputError
from dreamset.core.images import read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.seeds import image_seed
from dreamset.core.workspace import Workspace
from dreamset.data import folds
from dreamset.data.splits import read_split, write_split
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.data.work import Work
from dreamset.drawing import starts
from dreamset.drawing.blocks import plan as plan_of
from dreamset.generator import base_model, sampler, trainings
from dreamset.generator.base_model import BaseModel
from dreamset.params import Params
from dreamset.params.model import Sampler
from dreamset.use import export

RECIPE = "stable_diffusion"


@pytest.fixture
def started(small: dict[str, Any]) -> dict[str, Any]:
    """A recipe that starts from three shots, drawn in the last two of four steps."""
    small["shots"] = 3
    small["models"]["bundled"]["generate"] |= {"steps": 4}
    small["recipes"][RECIPE] |= {"init": "image", "sampler": {"strength": 0.5}}
    return small


@pytest.fixture
def base(started: dict[str, Any]) -> BaseModel:
    return toy.base(started)


def made(params: Params, place: Workspace) -> list[SyntheticImage]:
    toy.prepare(params, place)
    adapt.run(params, place, RECIPE)
    generate.run(params, place, RECIPE)
    return read_metadata(place.synthetic(RECIPE))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def latents(count: int) -> torch.Tensor:
    return 0.7 * torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def drawn(base: BaseModel, kind: Sampler, seeds: list[int], begun: torch.Tensor) -> torch.Tensor:
    prompts, empty = base.encode(["three"] * len(seeds)), base.encode([""] * len(seeds))
    return sampler.draw_fitting(base, kind, prompts, empty, seeds, begun)


# PNDM is not among them: the stock pipeline cuts its doubled timestep in two, see below.
@pytest.mark.parametrize("name", ["dpmsolver++", "ddim", "unipc", "euler_ancestral", "lcm"])
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_a_stock_pipeline_draws_the_same_from_an_image(
    base: BaseModel, started: Any, name: str, strength: float
) -> None:
    begun = latents(1)
    ours = drawn(base, Sampler(name, 8, 3.0, strength), [5], begun)  # type: ignore[arg-type]
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(started["models"]["bundled"]["generator"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, sampler.SCHEDULERS[name]).from_config(pipeline.scheduler.config)
    theirs = pipeline(
        "three",
        image=begun,
        strength=strength,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="pt",
    ).images
    assert ((ours.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["dpmsolver++", "pndm", "unipc"])
def test_whoever_knows_the_noise_gets_back_to_where_it_started(base: BaseModel, name: str) -> None:
    begun, noise = latents(1), torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(5))

    class Oracle(BaseModel):
        def predict(self, latents: torch.Tensor, *_: Any) -> torch.Tensor:
            return noise.expand_as(latents)

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

    oracle = Oracle(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)})
    # PNDM of a Stable Diffusion ends at the noise of the first timestep, of which 0.03 is left.
    left = noise * 0.0292 if name == "pndm" else 0.0
    for strength in (0.15, 0.3, 0.5, 0.9):
        found = drawn(oracle, Sampler(name, 8, 1.0, strength), [5], begun)  # type: ignore[arg-type]
        assert (found - begun - left).abs().max() < 1e-3


def test_more_strength_leaves_less_of_the_shot(base: BaseModel) -> None:
    begun = latents(4)
    with torch.no_grad():
        whole = base.decode(begun)
    apart = [
        float((drawn(base, Sampler("dpmsolver++", 20, 1.0, strength), [1, 2, 3, 4], begun) - whole).abs().mean())
        for strength in (0.05, 0.3, 0.6, 1.0)
    ]
    assert apart == sorted(apart) and apart[0] < 0.5 * apart[-1]


def test_an_image_depends_on_no_company(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, begun, seeds = Sampler("euler_ancestral", 6, 2.0, 0.5), latents(5), [1, 2, 3, 4, 5]
    whole = sampler.to_uint8(drawn(base, kind, seeds, begun)).int()
    for i, seed in enumerate(seeds):
        one = sampler.to_uint8(drawn(base, kind, [seed], begun[i : i + 1])).int()
        assert (one - whole[i]).abs().max() <= 1
    sizes, draw = [], sampler.draw

    def hungry(*args: Any) -> torch.Tensor:
        sizes.append(len(args[4]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return draw(*args)

    monkeypatch.setattr(sampler, "draw", hungry)
    assert (sampler.to_uint8(drawn(base, kind, seeds, begun)).int() - whole).abs().max() <= 1
    assert sizes == [5, 2, 3, 1, 2]


def test_shots_take_turns(started: dict[str, Any], workspace: Workspace) -> None:
    toy.prepare(toy.parse(started), workspace)
    split = read_split(workspace.splits)
    ten = [starts.choose(split, 0, [(label, index) for index in range(10)]) for label in range(10)]
    for label, shots in enumerate(ten):
        assert {shot.label for shot in shots} == {label}
        assert sorted(Counter(shot.path for shot in shots).values()) == [3, 3, 4]
        for turn in range(3):
            assert len({shot.path for shot in shots[3 * turn : 3 * turn + 3]}) == 3
    # Of the index alone, not of what else is asked for; and another order for another seed.
    assert starts.choose(split, 0, [(4, 7), (2, 1)]) == [ten[4][7], ten[2][1]]
    assert any(starts.choose(split, 1, [(label, index) for index in range(10)]) != ten[label] for label in range(10))


def test_a_shot_is_encoded_once_and_as_the_base_sees_it(started: dict[str, Any], workspace: Workspace) -> None:
    params = toy.parse(started)
    toy.prepare(params, workspace)
    shot = read_split(workspace.splits).train[0]
    base = base_model.load(Path(params.base.generator), params.base, torch.device("cpu"))
    known = starts.Latents(workspace.cell)
    first = known.of(base, [shot, shot])
    pixels = torch.from_numpy(resize_crop(read_rgb(workspace.cell / shot.path), 16).copy()).permute(2, 0, 1)[None]
    mean = base.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean * base.vae.config.scaling_factor
    torch.testing.assert_close(first, mean.expand_as(first))
    (workspace.cell / shot.path).unlink()
    assert torch.equal(known.of(base, [shot]), first[:1])
    with pytest.raises(InputError, match=r"missing or was changed; run `dreamset prepare` again"):
        starts.Latents(workspace.cell).of(base, [shot])


def test_every_image_says_where_it_started(started: dict[str, Any], workspace: Workspace) -> None:
    params = toy.parse(started)
    rows = made(params, workspace)
    split = read_split(workspace.splits)
    chosen = starts.choose(split, params.seed, [(row.label, row.index) for row in rows])
    assert [row.shot for row in rows] == [shot.sha256 for shot in chosen]
    assert {row.sampler["strength"] for row in rows} == {0.5}
    # The noise is the common one, whatever it is added to.
    assert [row.seed for row in rows] == [image_seed(params.seed, row.class_name, row.index) for row in rows]
    with Image.open(workspace.synthetic(RECIPE) / rows[0].file_name) as image:
        texts = image.text  # type: ignore[attr-defined]
    assert texts["DigitalSourceType"] == "compositeWithTrainedAlgorithmicMedia"
    assert "digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in texts["XML:com.adobe.xmp"]
    card = (workspace.synthetic(RECIPE) / "README.md").read_text()
    assert "a shot of the class with noise of strength 0.5" in card and "drawn over a real one" in card
    assert "none of them a photograph" not in card


def test_batch_growth_and_a_lost_shard_change_no_image(started: dict[str, Any], tmp_path: Path) -> None:
    started["models"]["bundled"]["generate"] |= {"per_class": 5, "batch": 10}
    place = Workspace.at(tmp_path / "a")
    made(toy.parse(started), place)
    whole = content(place.synthetic(RECIPE))
    lost = json.loads((place.synthetic(RECIPE) / "shards.json").read_text())[3]
    for path in (place.shards / lost).rglob("*.png"):
        path.unlink()
    assert generate.run(toy.parse(started), place, RECIPE)["drawn_now"] == 10
    assert content(place.synthetic(RECIPE)) == whole
    started["models"]["bundled"]["generate"] |= {"batch": 40}
    other = Workspace.at(tmp_path / "b")
    made(toy.parse(started), other)
    for name in whole:
        one, two = (np.asarray(Image.open(at.synthetic(RECIPE) / name), np.int16) for at in (place, other))
        assert abs(one - two).max() <= 1, name


def test_a_degenerate_image_starts_again_from_its_own_shot(
    started: dict[str, Any], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, begun = sampler.draw, []

    def spoilt(*args: Any) -> torch.Tensor:
        images = draw(*args).clone()
        begun.append(args[5])
        if len(begun) == 1:
            images[3] = 0.5
        return images

    monkeypatch.setattr(sampler, "draw", spoilt)
    rows = made(toy.parse(started), workspace)
    assert [(row.label, row.index) for row in rows if row.redraws] == [(3, 0)]
    assert torch.equal(begun[1], begun[0][3:4])


def test_shards_are_keyed_by_the_shots_and_the_strength(started: dict[str, Any], workspace: Workspace) -> None:
    toy.prepare(toy.parse(started), workspace)
    split = read_split(workspace.splits)

    def keys(strength: float = 0.5, **change: Any) -> list[str]:
        started["recipes"][RECIPE]["sampler"] = {"strength": strength}
        own = dataclasses.replace(split, **change)
        return [block.key for block in plan_of(Work(toy.parse(started), workspace, own, RECIPE), [])]

    first = keys()
    assert keys() == first
    assert not set(keys(0.75)) & set(first)
    other = tuple(dataclasses.replace(shot, sha256=f"{i:064}") for i, shot in enumerate(split.train))
    assert not set(keys(train=other)) & set(first)
    # The strength is the sampler's affair alone: what the grids of an adapter are drawn with knows nothing of it.
    started["recipes"]["datadream_dset"] |= {"init": "image", "sampler": {"strength": 0.5}}
    jobs = []
    for strength in (0.5, 0.75):
        started["recipes"]["datadream_dset"]["sampler"]["strength"] = strength
        work = Work(toy.parse(started), workspace, split, "datadream_dset")
        jobs.append([job.key for job in adapt._jobs(work, trainings.scopes(work), None)[0]])
    assert jobs[0] == jobs[1]


def test_a_fold_starts_from_its_own_shots_alone(started: dict[str, Any], workspace: Workspace) -> None:
    params = toy.parse(started)
    toy.prepare(params, workspace)
    split = read_split(workspace.splits)
    held = split.train[::3]  # the first of each class
    place = folds.at(workspace, "selection", 0)
    write_split(place.splits, folds.without(split, held, workspace))
    adapt.run(params, place, RECIPE)
    generate.run(params, place, RECIPE)
    used = {row.shot for row in read_metadata(place.synthetic(RECIPE))}
    # Two shots are left of each class, and four images are drawn.
    assert used == {shot.sha256 for shot in split.train} - {shot.sha256 for shot in held}


def test_a_strength_that_draws_nothing_is_refused(started: dict[str, Any], workspace: Workspace) -> None:
    started["recipes"][RECIPE]["sampler"]["strength"] = 0.2
    with pytest.raises(InputError, match=r"recipes\.stable_diffusion\.sampler\.strength: 0\.2 of 4 steps is less"):
        made(toy.parse(started), workspace)


def test_a_dry_run_names_the_real_images(started: dict[str, Any], workspace: Workspace) -> None:
    params = toy.parse(started)
    toy.prepare(params, workspace)
    shutil.copyfile(toy.ROOT / "dvc.yaml", workspace.root / "dvc.yaml")
    assert "- data/real\n" in plan.describe(params, workspace, "generate", RECIPE).partition("outputs")[0]


def test_who_publishes_such_images_is_told(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    place = Workspace.at(tmp_path)
    made(toy.parse(started), place)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(started))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_copies", lambda *_: np.zeros(40, bool))
    cli.main(["export", "--public", "published", "--recipe", RECIPE])
    assert capsys.readouterr().err == (
        "dreamset: stable_diffusion: Each image was drawn over a real one: pass them on only where you may pass on "
        "those.\n"
    )
    assert "**Each image was drawn over a real one" in (tmp_path / "published/README.md").read_text()
    assert "shot" not in (tmp_path / "published/metadata.jsonl").read_text()


@pytest.mark.parametrize("mix", ["pixels", "slerp"])
def test_an_image_starts_between_two_shots(started: dict[str, Any], tmp_path: Path, mix: str) -> None:
    started["recipes"][RECIPE] |= {"init_mix": mix}
    whole = Workspace.at(tmp_path / "whole")
    images = made(toy.parse(started), whole)
    for image in images:
        assert image.beside != image.shot and 0 <= (image.share or 0.0) <= 1
    assert len({image.share for image in images}) > 1
    card = (whole.synthetic(RECIPE) / "README.md").read_text()
    assert "a shot is " in card and "name: beside" in card
    # Another batch and more images change none.
    started["models"]["bundled"]["generate"] |= {"batch": 5}
    started["generate"]["per_class"] = 4
    more = Workspace.at(tmp_path / "more")
    made(toy.parse(started), more)
    before, after = content(whole.synthetic(RECIPE)), content(more.synthetic(RECIPE))
    for name, data in before.items():
        one, two = (np.asarray(Image.open(io.BytesIO(d))).astype(int) for d in (data, after[name]))
        assert abs(one - two).max() <= 1
    # Without the mixture another image comes out of the same noise.
    del started["recipes"][RECIPE]["init_mix"]
    plain = Workspace.at(tmp_path / "plain")
    made(toy.parse(started), plain)
    assert content(plain.synthetic(RECIPE)) != after


def test_a_class_of_one_shot_starts_from_it_alone(started: dict[str, Any], workspace: Workspace) -> None:
    started["recipes"][RECIPE] |= {"init_mix": "pixels"}
    started["shots"] = 1
    images = made(toy.parse(started), workspace)
    assert all(image.shot and image.beside is None and image.share is None for image in images)


def test_the_arc_between_two_noises_keeps_their_length() -> None:
    one, two = torch.randn(2, 5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    mixed = sampler.slerp(one, two, share)
    assert torch.allclose(mixed[0], two[0], atol=1e-4) and torch.allclose(mixed[-1], one[-1], atol=1e-4)
    lengths = [part.flatten(1).norm(dim=1) for part in (mixed, one, two)]
    assert (lengths[0] - torch.lerp(lengths[2], lengths[1], share)).abs().max() < 0.5
    # The mean of two noises is shorter.
    assert ((one + two) / 2).flatten(1).norm(dim=1).max() < 0.8 * lengths[0].min()
    # Of equal ones nothing is left to mix.
    assert torch.allclose(sampler.slerp(one, one, share), one, atol=1e-3)


@pytest.mark.parametrize(
    ("shots", "strength"), [(1, 0.5), (2, 0.4), (3, 0.35), (4, 0.35), (8, 0.2), (16, 0.15), (100, 0.15), ("all", 0.15)]
)
def test_the_strength_follows_the_shots(started: dict[str, Any], shots: Any, strength: float) -> None:
    started["shots"] = shots
    started["recipes"][RECIPE]["sampler"]["strength"] = "by_shots"
    assert toy.parse(started).sampler(RECIPE).strength == strength


def test_a_mixture_needs_a_start(started: dict[str, Any]) -> None:
    started["recipes"][RECIPE] = {"adapter": "none", "prompt": "template", "sampler": {}, "init_mix": "slerp"}
    with pytest.raises(InputError, match=r"recipes\.stable_diffusion\.init_mix: belongs to init: image; remove it"):
        toy.parse(started)
    started["recipes"][RECIPE] = {"adapter": "none", "prompt": "template", "sampler": {"strength": "often"}}
    with pytest.raises(InputError, match=r"strength"):
        toy.parse(started)
