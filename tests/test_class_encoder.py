"""Class vectors in place of text: what the encoder is, how it is trained, and that others can use what comes out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import toy
from dreamset import adapt, generate
from dreamset.command.plan import describe
from dreamset.core.errors import InputError
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.adapters import read_adapters
from dreamset.data.splits import class_vector, read_split
from dreamset.data.synthetic import read_metadata
from dreamset.data.work import Work
from dreamset.generator import base_model, class_encoder, memory, sampler, trained, training, whole_unet
from dreamset.generator.base_model import BaseModel
from dreamset.generator.class_encoder import ClassEncoder, ClassVectors, Encoder
from dreamset.generator.whole_unet import WholeUnet
from dreamset.params import Params
from dreamset.params.model import Sampler
from tiny import WIDTH, write_xl_pipeline

ENCODER, UNET = "class_encoder_untuned", "class_encoder_ft_untuned"
LENGTH = 6
THREE = ClassVectors(classes=3, length=LENGTH, unconditional="zero")
VECTORS = [class_vector(label, 3) for label in range(3)]


@pytest.fixture
def vectors(small: dict[str, Any]) -> dict[str, Any]:
    """The class-encoder recipes, short."""
    small["active"] = ["stable_diffusion", ENCODER]
    small["after"] = {UNET: ENCODER}
    small["recipes"][ENCODER]["context_length"] = LENGTH
    for row in ("class_encoder", "whole_unet"):
        small["models"]["bundled"]["adapt"][row] |= {"max_steps": 6, "batch": 4}
    return small


def ready(raw: dict[str, Any], folder: Path) -> tuple[Params, Workspace]:
    params, workspace = toy.parse(raw), Workspace.at(folder)
    toy.prepare(params, workspace)
    return params, workspace


@pytest.fixture
def base(vectors: dict[str, Any]) -> BaseModel:
    row = toy.parse(vectors).base
    return base_model.load(Path(row.generator), row, torch.device("cpu"))


def shaken(base: BaseModel, kind: ClassVectors | WholeUnet, amount: float = 0.1) -> trained.Trained:
    """Weights as after some training."""
    made = trained.attach(base, kind, {"one": 0})
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.tensors:
            parameter.add_(amount * torch.randn(parameter.shape, generator=random))
    return made


@torch.no_grad()
def images(base: BaseModel, prompts: list[str], kind: Sampler) -> torch.Tensor:
    randoms = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return sampler.draw(base, kind, base.encode(prompts), base.encode([""] * len(prompts)), randoms)


@torch.no_grad()
def test_the_encoder_is_linear_and_nothing_else() -> None:
    encoder = ClassEncoder(3, LENGTH, WIDTH)
    assert [tuple(p.shape) for p in encoder.parameters()] == [(500, 3), (500,), (LENGTH * WIDTH, 500)]
    one, other = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0.5, -2.0]])
    zero = torch.zeros(1, 3)
    bent = encoder(one + other) - encoder(one) - encoder(other) + encoder(zero)
    assert bent.abs().max() < 1e-5
    # What is unconditional is the output for zeros, which the bias alone makes, and no vector of zeros.
    rows = encoder.rows(torch.tensor([0, 3]))
    assert torch.allclose(rows[0], encoder(one)[0], atol=1e-6)
    assert torch.allclose(rows[1].flatten(), encoder.out.weight @ encoder.hidden.bias, atol=1e-6)
    assert rows[1].abs().max() > 0.01


@torch.no_grad()
def test_a_null_class_is_a_class_of_its_own(base: BaseModel) -> None:
    made = trained.attach(base, ClassVectors(3, LENGTH, "learned"), {"one": 0})
    assert isinstance(made, Encoder)
    weights = dict(made.encoder.named_parameters())
    assert weights["hidden.weight"].shape == (500, 4)
    before = base.encode(["", *VECTORS]).hidden.clone()
    weights["hidden.weight"][:, 3] += 1
    after = base.encode(["", *VECTORS]).hidden
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


@torch.no_grad()
def test_a_fresh_encoder_starts_where_text_is(base: BaseModel) -> None:
    text = base.encode(["a photo of three"]).hidden
    made = trained.attach(base, THREE, {"one": 0})
    told = base.encode(["", *VECTORS]).hidden
    assert told.shape == (4, LENGTH, WIDTH)
    assert told.std() == pytest.approx(text.std(), rel=0.5)
    assert min((told[i] - told[j]).std() for i in range(4) for j in range(i)) > 0.1 * text.std()
    made.detach()
    assert torch.equal(base.encode(["a photo of three"]).hidden, text)


def test_text_is_no_class_vector(base: BaseModel) -> None:
    trained.attach(base, THREE, {"one": 0})
    with pytest.raises(InputError, match="knows only class vectors"):
        base.encode(["a photo of three"])


def test_stable_diffusion_xl_is_refused(vectors: dict[str, Any], tmp_path: Path) -> None:
    vectors["models"]["bundled"]["generator"] = str(write_xl_pipeline(tmp_path / "xl"))
    params, workspace = ready(vectors, tmp_path)
    with pytest.raises(InputError, match="also needs pooled text; name a Stable Diffusion 1 or 2"):
        adapt.run(params, workspace, ENCODER)


def stock(folder: str, contexts: torch.Tensor, label: int, kind: Sampler, added: dict[str, torch.Tensor]) -> Any:
    """What a stock pipeline draws of contexts, with differences added to its U-Net."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, sampler.SCHEDULERS[kind.scheduler]).from_config(pipeline.scheduler.config)
    with torch.no_grad():
        for name, value in added.items():
            pipeline.unet.get_parameter(name.removeprefix("unet.")).add_(value.float())
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    return pipeline(
        prompt_embeds=contexts[[label]],
        negative_prompt_embeds=contexts[[-1]],
        latents=latents,
        num_inference_steps=kind.steps,
        guidance_scale=kind.guidance,
        height=16,
        width=16,
        output_type="pt",
    ).images


@pytest.mark.parametrize("name", ["dpmsolver++", "ddim", "pndm"])
def test_a_stock_pipeline_draws_the_same_from_both_files(
    base: BaseModel, vectors: dict[str, Any], tmp_path: Path, name: Any
) -> None:
    folder, kind = vectors["models"]["bundled"]["generator"], Sampler(name, 4, 3.0)
    text = images(base, ["three"], kind)
    made = shaken(base, THREE)
    live = images(base, VECTORS[:1], kind)
    made.save("one", tmp_path)
    made.detach()
    file = tmp_path / class_encoder.WEIGHTS
    with trained.installed(base, file):
        ours = images(base, VECTORS[:1], kind)
        unet = shaken(base, WholeUnet("any"), 0.02)
        moved = images(base, VECTORS[:1], kind)
        unet.save("one", tmp_path)
        unet.detach()
        assert torch.equal(images(base, VECTORS[:1], kind), ours)
    assert torch.equal(images(base, ["three"], kind), text)
    assert (live - ours).abs().max() < 1e-5
    assert (ours - text).abs().max() > 0.05
    contexts = load_file(file)["contexts"]
    theirs = stock(folder, contexts, 0, kind, {})
    assert ((ours.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5

    # A U-Net's file is whole by itself: it holds the contexts that it was trained with.
    with trained.installed(base, tmp_path / whole_unet.WEIGHTS):
        swapped = images(base, VECTORS[:1], kind)
    assert torch.equal(images(base, ["three"], kind), text)
    assert (swapped - ours).abs().max() > 0.05
    assert (swapped - moved).abs().max() < 5e-3  # half precision of the difference
    state = load_file(tmp_path / whole_unet.WEIGHTS)
    assert torch.equal(state.pop("contexts"), contexts)
    assert {value.dtype for value in state.values()} == {torch.float16}
    theirs = stock(folder, contexts, 0, kind, state)
    assert ((swapped.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@torch.no_grad()
def test_guidance_is_the_formula_at_every_scale(base: BaseModel, guidance: float) -> None:
    shaken(base, THREE, 0.3)
    told, empty = base.encode(VECTORS[1:2]), base.encode([""])
    steps = sampler.scheduler("ddim", base.schedule)
    steps.set_timesteps(3)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    for t in steps.timesteps:
        cond, uncond = base.predict(latents, t, told), base.predict(latents, t, empty)
        latents = steps.step(uncond + guidance * (cond - uncond), t, latents, return_dict=False)[0]
    assert (images(base, VECTORS[1:2], Sampler("ddim", 3, guidance)) - base.decode(latents)).abs().max() < 1e-4


def test_at_no_guidance_no_class_is_told_from_another(base: BaseModel) -> None:
    shaken(base, THREE, 0.3)
    randoms = [torch.Generator().manual_seed(0) for _ in range(2)]
    told = base.encode(VECTORS[:2])
    one, other = sampler.draw(base, Sampler("ddim", 3, 0.0), told, base.encode(["", ""]), randoms)
    assert (one - other).abs().max() < 1e-5


@torch.no_grad()
def test_many_classes_are_kept_as_weights(base: BaseModel, tmp_path: Path) -> None:
    made = shaken(base, ClassVectors(700, 77, "zero"))
    prompts = ["", class_vector(0, 700), class_vector(699, 700)]
    before = base.encode(prompts).hidden
    made.save("one", tmp_path)
    made.detach()
    state = load_file(tmp_path / class_encoder.WEIGHTS)
    assert state.keys() == {"hidden.weight", "hidden.bias", "out.weight"}
    with trained.installed(base, tmp_path / class_encoder.WEIGHTS):
        assert torch.equal(base.encode(prompts).hidden, before)
    # The rows as the module documents them for use without this package.
    one_hot = torch.nn.functional.one_hot(torch.tensor([699]), 700).float()
    rows = ((one_hot @ state["hidden.weight"].T + state["hidden.bias"]) @ state["out.weight"].T).view(1, -1, WIDTH)
    assert (rows[0] - before[2]).abs().max() < 1e-5


def test_damaged_files_are_refused(base: BaseModel, tmp_path: Path) -> None:
    made = shaken(base, THREE)
    made.save("one", tmp_path)
    made.detach()
    file = tmp_path / class_encoder.WEIGHTS
    contexts = load_file(file)["contexts"]

    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words), trained.installed(base, path):
            pass
        assert base.class_contexts is None

    save_file({"contexts": contexts[:, :, 1:].contiguous()}, file, {"classes": "3"})
    refused(file, "do not fit the base")
    save_file({"contexts": contexts * float("nan")}, file, {"classes": "3"})
    refused(file, "NaN")
    save_file({"contexts": contexts}, file)
    refused(file, "no complete class encoder")
    unet = shaken(base, WholeUnet(None))
    unet.save("one", tmp_path)
    unet.detach()
    file = tmp_path / whole_unet.WEIGHTS
    state = load_file(file)
    save_file(state | {"unet.conv_in.bias": state["unet.conv_in.bias"] * float("inf")}, file)
    refused(file, "NaN or infinite")
    save_file({key: value for key, value in state.items() if key != "unet.conv_in.bias"}, file)
    refused(file, "do not fit the base's U-Net")
    file.write_bytes(file.read_bytes()[:100])
    refused(file, "not a complete file")


def test_adapt_and_generate_from_class_vectors(vectors: dict[str, Any], tmp_path: Path) -> None:
    params, workspace = ready(vectors, tmp_path)
    drawn = {}
    for recipe in (ENCODER, UNET):
        told = describe(params, workspace, "adapt", recipe)
        assert "adapters: 1\n  steps: 6\n" in told
        assert "GB with 4 images a step" in told
        summary = adapt.run(params, workspace, recipe)
        assert (summary["adapters"], summary["steps"]) == (1, 6)
        assert np.isfinite(summary["loss_last"])
        generate.run(params, workspace, recipe)
        rows = read_metadata(workspace.synthetic(recipe))
        assert {row.prompt for row in rows} == {f"class vector {n} of 10" for n in range(1, 11)}
        (adapter,) = read_adapters(workspace.adapter(recipe))
        assert {row.adapter for row in rows} == {adapter.sha256}
        with Image.open(workspace.synthetic(recipe) / rows[-1].file_name) as picture:
            assert picture.text["Prompt"] == "class vector 10 of 10"  # type: ignore[attr-defined]
        drawn[recipe] = [row.sha256 for row in rows]
        record = json.loads((workspace.adapter(recipe) / "adapters.json").read_text())
        assert record["adapter"] == params.recipes[recipe].adapter
        card = (workspace.adapter(recipe) / "README.md").read_text()
        assert "negative_prompt_embeds=contexts[[-1]]" in card
    assert drawn[ENCODER] != drawn[UNET]
    frozen, told = (
        load_file(workspace.adapter(recipe) / file)["contexts"]
        for recipe, file in ((ENCODER, class_encoder.WEIGHTS), (UNET, whole_unet.WEIGHTS))
    )
    assert torch.equal(frozen, told)


def test_a_whole_unet_starts_from_text_too(vectors: dict[str, Any], tmp_path: Path) -> None:
    vectors["recipes"]["whole"] = {"adapter": "unet", "prompt": "template", "sampler": {}}
    vectors["active"] = ["whole"]
    vectors["after"] = {}
    params, workspace = ready(vectors, tmp_path)
    adapt.run(params, workspace, "whole")
    state = load_file(workspace.adapter("whole") / whole_unet.WEIGHTS)
    assert "contexts" not in state
    assert max(value.abs().max() for value in state.values()) > 0
    assert generate.run(params, workspace, "whole")["images"] == 40
    assert "a photo of the digit" in read_metadata(workspace.synthetic("whole"))[0].prompt


@pytest.mark.parametrize(("recipe", "row"), [(ENCODER, "class_encoder"), (UNET, "whole_unet")])
def test_training_learns(vectors: dict[str, Any], tmp_path: Path, recipe: str, row: str) -> None:
    vectors["models"]["bundled"]["adapt"][row] |= {"max_steps": 40, "batch": 8, "lr": 0.003}
    vectors["models"]["bundled"]["adapt"]["sample_every"] = 40
    params, workspace = ready(vectors, tmp_path)
    adapt.run(params, workspace, recipe)
    (adapter,) = read_adapters(workspace.adapter(recipe))
    losses = json.loads((workspace.shards / adapter.shard / "adapter.json").read_text())["losses"]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("recipe", [ENCODER, UNET])
def test_a_killed_run_ends_with_the_same_bytes(
    vectors: dict[str, Any], tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = ready(vectors, tmp_path / "a"), ready(vectors, tmp_path / "b")
    for params, workspace in (unbroken, broken):
        adapt.run(params, workspace, ENCODER)
    adapt.run(*unbroken, recipe)
    if recipe == ENCODER:
        for shard in broken[1].shards.iterdir():
            shutil.rmtree(shard)
    steps: Iterator[int] = iter(range(3))
    train_step = training.Together._train_step

    def dying(self: training.Together) -> None:
        if next(steps, None) is None:
            raise Killed
        train_step(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Together, "_train_step", dying)
        adapt.run(*broken, recipe)
    assert list(broken[1].unfinished.glob("*/state.safetensors"))
    adapt.run(*broken, recipe)
    one, other = (read_adapters(place[1].adapter(recipe))[0].sha256 for place in (unbroken, broken))
    assert one == other
    assert not list(broken[1].unfinished.iterdir())


def test_half_precision_trains_in_single(vectors: dict[str, Any], tmp_path: Path) -> None:
    vectors["models"]["bundled"]["dtype"] = "bfloat16"
    vectors["models"]["bundled"]["adapt"]["whole_unet"]["lr"] = 1e-5
    params, workspace = ready(vectors, tmp_path)
    for recipe in (ENCODER, UNET):
        assert np.isfinite(adapt.run(params, workspace, recipe)["loss_last"])
        assert generate.run(params, workspace, recipe)["images"] == 40
    state = load_file(workspace.adapter(UNET) / whole_unet.WEIGHTS)
    moved = max(value.abs().max().item() for key, value in state.items() if key != "contexts")
    # Six steps of 1e-5 are less than bfloat16 tells apart from a weight of 0.1, and are not lost.
    assert 0 < moved < 1e-4


def test_a_learned_null_class_needs_dropout(vectors: dict[str, Any]) -> None:
    vectors["recipes"][ENCODER]["unconditional"] = "learned"
    with pytest.raises(InputError, match="class_dropout: unconditional: learned needs it above 0"):
        toy.parse(vectors)


@pytest.mark.parametrize("kind", [THREE, WholeUnet(None)])
def test_memory_is_counted_of_what_is_trained(vectors: dict[str, Any], kind: Any) -> None:
    row = toy.parse(vectors).base
    folder = Path(row.generator)
    found = memory.of_adapting(memory.on_meta(folder, row), kind, batch=4, together=1, offload=False)
    made = trained.attach(base_model.load(folder, row, torch.device("cpu")), kind, {"one": 0})
    numbers = sum(tensor.numel() for tensor in made.tensors)
    assert found["trained"] == numbers * memory.TRAINED_BYTES
    assert found["step"] > 0


def test_small_pictures_are_raised_to_the_base_and_lowered_once(vectors: dict[str, Any], tmp_path: Path) -> None:
    """28 px pictures, a base of 32: what is drawn at 32 passes through 28 before a classifier sees it."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for index in range(8):
            (tmp_path / "raw" / name / f"{index}.png").write_bytes(png(rng.integers(0, 256, (28, 28, 3), np.uint8)))
    vectors["prepare"]["source"] = f"imagefolder:{tmp_path / 'raw'}"
    vectors["models"]["bundled"] |= {"resolution": 32}
    params, workspace = ready(vectors, tmp_path)
    split = read_split(workspace.splits)
    assert split.native == 28
    training = adapt._training(Work(params, workspace, split, ENCODER))
    jobs = [adapt.with_images(workspace, job, training.files[job.key], 32) for job in training.jobs]
    assert {image.shape for job in jobs for image in job.images} == {(32, 32, 3)}
    adapt.run(params, workspace, ENCODER)
    generate.run(params, workspace, ENCODER)
    row = read_metadata(workspace.synthetic(ENCODER))[0]
    with Image.open(workspace.synthetic(ENCODER) / row.file_name) as picture:
        assert picture.size == (32, 32)
        drawn = np.asarray(picture).astype(int)
    seen = arrays.synthetic(workspace.synthetic(ENCODER), split, 32).images[0].astype(int)
    lowered = arrays.synthetic(workspace.synthetic(ENCODER), split, 28).images[0].astype(int)
    raised = np.asarray(Image.fromarray(lowered.astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(raised.astype(int) - seen).max() <= 2
    assert np.abs(drawn - seen).max() > 2


@torch.no_grad()
def test_a_trained_unet_is_drawn_with_all_that_it_learned(vectors: dict[str, Any], tmp_path: Path) -> None:
    """A learning rate of 1e-5 moves weights by less than bfloat16 tells apart."""
    folder = Path(vectors["models"]["bundled"]["generator"])
    row = toy.parse(vectors).base
    half, single = (
        base_model.load(folder, dataclasses.replace(row, dtype=dtype), torch.device("cpu"))
        for dtype in ("bfloat16", "float32")
    )
    latents, t = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    context = half.encode(["three", "four"])
    plain = half.predict(latents, t, context)
    for mine, other in zip(single.unet.parameters(), half.unet.parameters(), strict=True):
        mine.copy_(other)
    before = single.predict(latents, t, context)
    made = shaken(half, WholeUnet(None), 1e-5)
    made.save("one", tmp_path)
    made.detach()
    for key, value in load_file(tmp_path / whole_unet.WEIGHTS).items():
        single.unet.get_parameter(key.removeprefix("unet.")).add_(value.float())
    after = single.predict(latents, t, context)
    with trained.installed(half, tmp_path / whole_unet.WEIGHTS):
        drawn = half.predict(latents, t, context)
        assert torch.isfinite(images(half, ["three"], Sampler("ddim", 2, 2.0))).all()
    assert (drawn - after).norm() < 0.01 * (after - before).norm()
    assert torch.equal(half.predict(latents, t, context), plain)
    assert half.unet.dtype == torch.bfloat16
