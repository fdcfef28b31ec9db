"""Few-step students: an adapter of the base draws on them, as stock diffusers draws."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data import licences
from dreamset.data.synthetic import read_metadata
from dreamset.generator import lora, sampler, student
from dreamset.generator.base_model import BaseModel
from dreamset.params import Params
from dreamset.params.knobs import Lora
from dreamset.params.model import Sampler
from dreamset.weights import hub

TWO = Sampler("lcm", 2, 1.0, student=True)


@pytest.fixture
def whole(tiny_generator: Path, tmp_path: Path) -> Path:
    """A student that is a U-Net with a noise schedule of its own."""
    unet: Any = UNet2DConditionModel.from_pretrained(tiny_generator, subfolder="unet")
    random = torch.Generator().manual_seed(3)
    for value in unet.parameters():
        value.data.add_(0.1 * torch.randn(value.shape, generator=random))
    unet.save_pretrained(tmp_path / "whole/unet")
    LCMScheduler(beta_start=0.001, beta_schedule="scaled_linear", clip_sample=False).save_pretrained(
        tmp_path / "whole/scheduler"
    )
    return tmp_path / "whole"


@pytest.fixture
def light(tiny_generator: Path, tmp_path: Path) -> Path:
    """A student that is a LoRA on attention and convolutions of the base's U-Net, as LCM-LoRA."""
    unet: Any = UNet2DConditionModel.from_pretrained(tiny_generator, subfolder="unet")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "conv1", "proj_in"])
    unet.add_adapter(config)
    random = torch.Generator().manual_seed(4)
    for name, value in unet.named_parameters():
        if "lora_" in name:
            value.data.add_(0.2 * torch.randn(value.shape, generator=random))
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path / "light",
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata={"r": 2, "lora_alpha": 6, "target_modules": sorted(config.target_modules or ())},
    )
    return tmp_path / "light"


@pytest.fixture
def base(small: dict[str, Any]) -> BaseModel:
    return toy.base(small)


@torch.no_grad()
def image(base: BaseModel, kind: Sampler = TWO) -> torch.Tensor:
    random = [torch.Generator().manual_seed(0)]
    return (sampler.draw(base, kind, base.encode(["three"]), base.encode([""]), random).clamp(-1, 1) + 1) / 2


def stock(generator: Path, folder: Path, adapter: Path | None) -> torch.Tensor:
    """The image of the stock pipeline, put together as the cards of such students say."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(generator)
    pipeline.set_progress_bar_config(disable=True)
    names = []
    if (folder / "unet").is_dir():
        pipeline.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        pipeline.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    else:
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        pipeline.load_lora_weights(folder, adapter_name="student")
        names.append("student")
    if adapter is not None:
        pipeline.load_lora_weights(adapter, adapter_name="ours")
        names.append("ours")
    if names:
        pipeline.set_adapters(names)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 4, 8, 8), generator=random)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 1.0}
    found: torch.Tensor = pipeline("three", latents=latents, generator=random, output_type="pt", **size).images
    return found


@pytest.mark.parametrize("kind", ["whole", "light"])
def test_stock_diffusers_draws_the_same_with_an_adapter_of_the_base(
    request: pytest.FixtureRequest, base: BaseModel, tiny_generator: Path, tmp_path: Path, kind: str
) -> None:
    folder: Path = request.getfixturevalue(kind)
    adapters = lora.attach(base, Lora(4, 8.0, unet=True, text_encoder=True), {"one": 0})
    for value in adapters.parameters("one").values():
        value.data.add_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    adapters.save("one", tmp_path / "adapter")
    lora.detach(adapters)
    plain = image(base, Sampler("lcm", 2, 1.0))
    few = student.of(base, folder)
    bare = image(few)
    with lora.fused(few, tmp_path / "adapter" / lora.WEIGHTS):
        adapted = image(few)
    assert (bare - plain).abs().max() > 0.01 < (adapted - bare).abs().max()
    assert (bare - stock(tiny_generator, folder, None)).abs().max() < 1e-5
    assert (adapted - stock(tiny_generator, folder, tmp_path / "adapter")).abs().max() < 1e-5


@pytest.fixture
def asked(small: dict[str, Any], whole: Path) -> dict[str, Any]:
    row = small["models"]["bundled"]
    row["student"]["weights"] = str(whole)
    row["adapt"]["dataset"]["max_steps"] = 4
    small["recipes"]["few"] = dict(small["recipes"]["datadream_dset"], sampler={"student": True})
    small["active"] = ["datadream_dset", "few"]
    small["after"] = {}
    return small


def drawn(params: Params, workspace: Workspace, recipe: str) -> list[Any]:
    adapt.run(params, workspace, recipe)
    generate.run(params, workspace, recipe)
    return read_metadata(workspace.synthetic(recipe))


def test_a_recipe_draws_with_the_student_and_says_so(asked: dict[str, Any], workspace: Workspace, whole: Path) -> None:
    params = toy.parse(asked)
    toy.prepare(params, workspace)
    plain, few = drawn(params, workspace, "datadream_dset"), drawn(params, workspace, "few")
    assert few[0].sampler == {"scheduler": "lcm", "steps": 2, "guidance": 1.0, "strength": None, "student": True}
    assert plain[0].sampler["student"] is False
    # The same adapter, trained once, on another network.
    assert {row.adapter for row in few} == {row.adapter for row in plain}
    assert not {row.sha256 for row in few} & {row.sha256 for row in plain}
    sha = hub.identity(workspace.root, str(whole), "student")["sha256"]
    card = (workspace.synthetic("few") / "README.md").read_text(encoding="utf-8")
    assert f"Student of the base, which drew the images: `whole`, sha256 {sha}" in card
    assert "Sampler: lcm, 2 steps, guidance 1" in card
    assert sha.encode() in (workspace.synthetic("few") / few[0].file_name).read_bytes()
    assert "Student" not in (workspace.synthetic("datadream_dset") / "README.md").read_text(encoding="utf-8")
    # Another student draws other images; what the first drew is not taken for its.
    unet = UNet2DConditionModel.from_pretrained(whole, subfolder="unet")
    unet.conv_out.weight.data.mul_(1.5)
    unet.save_pretrained(whole / "unet")
    hub.identity.cache_clear()
    assert not {row.sha256 for row in drawn(params, workspace, "few")} & {row.sha256 for row in few}


def test_the_model_s_row_makes_it_the_default_and_a_recipe_leaves_it(asked: dict[str, Any]) -> None:
    asked["models"]["bundled"]["generate"]["student"] = True
    asked["recipes"]["datadream_light"]["sampler"] = {"student": False, "steps": 7}
    asked["recipes"]["disef"]["sampler"] = {"strength": 0.75, "steps": 4, "guidance": 8.0}
    params = toy.parse(asked)
    assert params.sampler("datadream_dset") == TWO
    assert params.sampler("datadream_light") == Sampler("dpmsolver++", 7, 2.0)
    assert params.sampler("disef") == Sampler("lcm", 4, 8.0, 0.75, student=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None}, r"recipes.few.sampler.student: models.bundled.student names no network that draws in a few"),
        ({"row": {"adapter": "unet"}}, r"recipes.few.sampler.student: adapter: unet trains the base's own U-Net"),
        ({"guide": "base"}, r"recipes.few.sampler.guidance: 1 is the prompt alone, so that guide has no part"),
    ],
)
def test_what_no_student_can_is_refused(asked: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    if "model" in change:
        asked["models"]["bundled"]["student"] = None
    if "guide" in change:
        asked["recipes"]["few"]["guide"] = "base"
    if "row" in change:
        asked["recipes"]["few"] = dict(asked["recipes"]["class_encoder_ft_untuned"], sampler={"student": True})
        asked["after"] = {"class_encoder": "class_encoder", "few": "class_encoder_untuned"}
        del asked["after"]["class_encoder"]
        asked["active"] = ["class_encoder_untuned"]
    with pytest.raises(InputError, match=sentence):
        toy.parse(asked)


def test_a_folder_that_is_no_student_of_the_base_is_refused(base: BaseModel, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds neither unet/config.json nor pytorch_lora_weights"):
        student.of(base, tmp_path / "empty")
    config = json.loads((whole / "unet/config.json").read_text(encoding="utf-8"))
    other: Any = UNet2DConditionModel.from_config(config | {"cross_attention_dim": 2 * config["cross_attention_dim"]})
    other.save_pretrained(tmp_path / "other/unet")
    with pytest.raises(InputError, match=r"its cross_attention_dim is \d+ and the base's is \d+, so it is no student"):
        student.of(base, tmp_path / "other")
    broken = shutil.copytree(whole, tmp_path / "broken")
    unet: Any = UNet2DConditionModel.from_pretrained(broken, subfolder="unet")
    unet.conv_out.weight.data[0] = float("nan")
    unet.save_pretrained(broken / "unet")
    with pytest.raises(InputError, match="broken"):
        student.of(base, broken)


def test_the_licence_of_a_student_counts_where_it_draws(asked: dict[str, Any]) -> None:
    asked["models"]["bundled"]["student"]["licence"] = "sai-nc-community"
    params = toy.parse(asked)
    with pytest.raises(InputError, match=r"models.bundled.student: its licence sai-nc-community allows no commercial"):
        licences.check(params)
    assert params.drawn_licence("few") == "sai-nc-community"
    assert params.drawn_licence("datadream_dset") == "apache-2.0"
    asked["active"] = ["datadream_dset"]
    licences.check(toy.parse(asked))
    # A verb may name a recipe that is not active.
    with pytest.raises(InputError, match=r"models.bundled.student: its licence sai-nc-community allows no commercial"):
        licences.check(toy.parse(asked), "few")


def test_the_schedulers_of_the_rows_are_diffusers(raw: dict[str, Any]) -> None:
    for row in toy.parse(raw).models.values():
        if row.few_steps is not None:
            assert hasattr(diffusers, sampler.SCHEDULERS[row.few_steps.scheduler])
