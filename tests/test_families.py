"""Every kind of Stable Diffusion, tiny and random, saved and loaded as a full one: adapted, drawn, fused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.published import SD21_TEXT, SD21_UNET
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import toy
from dreamset import adapt, generate
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data import synthetic
from dreamset.data.adapters import read_adapters
from dreamset.generator import base_model, lora, sampler
from dreamset.generator.base_model import BaseModel
from dreamset.params.knobs import Lora
from dreamset.params.model import Model, Sampler
from dreamset.weights import hub
from test_generator import images, shaken, stock
from tiny import FAMILIES, write_xl_pipeline


def loaded(folder: Path, model: Model) -> BaseModel:
    return base_model.load(folder, model, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_image_is_the_stock_pipelines(
    folders: dict[str, Path], model: Model, tmp_path: Path, family: str, guidance: float
) -> None:
    kind, folder = Sampler("ddim", 3, guidance), folders[family]
    base = loaded(folder, model)
    plain = images(base, ["a photo of three"], kind)
    assert ((plain.clamp(-1, 1) + 1) / 2 - stock(str(folder), kind, "a photo of three")).abs().max() < 1e-5
    adapters = shaken(base, Lora(2, 4.0, unet=True, text_encoder=True), ("one",), amount=0.05)
    adapters.save("one", tmp_path)
    lora.detach(adapters)
    with lora.fused(base, tmp_path / lora.WEIGHTS):
        fused = images(base, ["a photo of three"], kind)
    assert (fused - plain).abs().max() > 0.01
    theirs = stock(str(folder), kind, "a photo of three", tmp_path)
    assert ((fused.clamp(-1, 1) + 1) / 2 - theirs).abs().max() < 1e-5


# An adapter of all classes, or one of each: with each kind of projections.
@pytest.mark.parametrize(
    ("family", "recipe", "adapters"),
    [
        ("sd1", "datadream_dset", 1),
        ("sd2", "datadream_cls", 10),
        ("sd2_v", "datadream_dset", 1),
        ("sdxl", "datadream_cls", 10),
    ],
)
def test_adapted_and_drawn_from_end_to_end(
    folders: dict[str, Path], small: dict[str, Any], workspace: Workspace, family: str, recipe: str, adapters: int
) -> None:
    small["models"]["bundled"]["generator"] = str(folders[family])
    small["models"]["bundled"]["adapt"]["class"]["batch"] = 1
    small["generate"]["per_class"], small["active"] = 1, [recipe]
    params = toy.parse(small)
    toy.prepare(params, workspace)
    adapt.run(params, workspace, recipe)
    assert len(read_adapters(workspace.adapter(recipe))) == adapters
    generate.run(params, workspace, recipe)
    assert len(synthetic.read_metadata(workspace.synthetic(recipe))) == 10
    card = (workspace.synthetic(recipe) / "README.md").read_text(encoding="utf-8")
    assert hub.identity(workspace.root, str(folders[family]), "generator")["sha256"] in card


def test_both_text_encoders_of_xl_are_adapted(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    base = loaded(folders["sdxl"], model)
    adapters = shaken(base, Lora(2, 2.0, unet=False, text_encoder=True), ("one",))
    adapters.save("one", tmp_path)
    prefixes = {key.split(".")[0] for key in load_file(tmp_path / lora.WEIGHTS)}
    assert prefixes == {"text_encoder", "text_encoder_2"}


def test_the_empty_prompt_of_xl_is_zero(folders: dict[str, Path], model: Model) -> None:
    base = loaded(folders["sdxl"], model)
    with torch.no_grad():
        told = base.encode(["three", ""])
    assert told.pooled is not None
    assert told.hidden[0].abs().max() > 0
    assert told.hidden[1].abs().max() == told.pooled[1].abs().max() == 0


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_savings_of_memory_change_no_image_and_no_gradient(
    folders: dict[str, Path], raw: dict[str, Any], family: str
) -> None:
    def measured(memory: list[str]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        raw["models"]["bundled"]["memory"] = memory
        base = loaded(folders[family], toy.parse(raw).base)
        drawn = images(base, ["a", "b"], Sampler("ddim", 2, 2.0))
        adapters = shaken(base, Lora(2, 2.0, unet=True, text_encoder=True), ("one",))
        latents = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(0))
        base.predict(latents, torch.tensor([10, 500]), base.encode_each(["a", "b"])).square().mean().backward()
        gradients = [tensor.grad for tensor in adapters.tensors]
        return drawn, [gradient for gradient in gradients if gradient is not None]

    drawn, gradients = measured([])
    thrifty, again = measured(["gradient_checkpointing", "attention_slicing", "vae_slicing", "offload"])
    assert (drawn - thrifty).abs().max() < 1e-5
    assert len(gradients) == len(again) > 20
    assert max((a - b).abs().max() for a, b in zip(gradients, again, strict=True)) < 1e-5


def test_offloaded_parts_leave_the_device_and_come_back(folders: dict[str, Path], model: Model) -> None:
    base = loaded(folders["sd1"], model)
    base.device, base.offload = torch.device("meta"), True
    base.parts = {name: _Part() for name in base.parts}
    base.need("vae")
    assert {name: part.at for name, part in base.parts.items()} == {"unet": "cpu", "vae": "meta", "text_encoder": "cpu"}
    base.kept = {"unet"}
    base.need("text_encoder")
    assert {name: part.at for name, part in base.parts.items()} == {
        "unet": "meta",
        "vae": "cpu",
        "text_encoder": "meta",
    }


class _Part:
    at = ""

    def to(self, device: object) -> None:
        self.at = str(device)


def test_half_precision_keeps_the_overflowing_autoencoder_in_single(
    folders: dict[str, Path], raw: dict[str, Any], tmp_path: Path
) -> None:
    raw["models"]["bundled"]["dtype"] = "float16"
    folder = shutil.copytree(folders["sdxl"], tmp_path / "xl")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"force_upcast": True}))
    base = loaded(folder, toy.parse(raw).base)
    assert base.unet.dtype == torch.float16
    assert base.vae.dtype == torch.float32


def test_a_variant_is_loaded_and_told_apart(folders: dict[str, Path], raw: dict[str, Any], tmp_path: Path) -> None:
    folder = write_xl_pipeline(tmp_path / "xl", variant="fp16")
    names = {path.name for path in hub.files(folder, "generator", "fp16")}
    assert "model.fp16.safetensors" in names
    assert not any(path.suffix == ".safetensors" for path in hub.files(folder, "generator"))
    raw["models"]["bundled"]["variant"] = "fp16"
    assert loaded(folder, toy.parse(raw).base).unet.dtype == torch.float32
    raw["models"]["bundled"]["variant"] = None
    with pytest.raises(InputError, match="cannot be loaded"):
        loaded(folder, toy.parse(raw).base)


def test_flow_matching_is_refused_in_one_sentence(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd1"], tmp_path / "flow")
    (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(InputError, match="flow-matching model") as caught:
        loaded(folder, model)
    assert str(caught.value).count(". ") == 0


def test_another_pipeline_is_refused_by_its_name(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd1"], tmp_path / "other")
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(InputError, match="KandinskyPipeline"):
        loaded(folder, model)


def test_pickled_weights_are_refused_with_the_conversion(
    folders: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["sd1"], tmp_path / "pickled")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    loaded(folder, model)
    weights.unlink()
    with pytest.raises(InputError, match=r"save_pretrained\('.*pickled-safe'\)") as caught:
        loaded(folder, model)
    command = str(caught.value).split("`")[1].removeprefix('python -c "').removesuffix('"')
    exec(command, {})  # what the sentence says must work
    assert loaded(Path(f"{folder}-safe"), model).unet is not None


def test_other_weights_are_another_identity(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd1"], tmp_path / "torn")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file(dict(list(state.items())[:-1]), weights)
    digest = hub.identity(tmp_path, str(folder), "generator")["sha256"]
    assert digest != hub.identity(tmp_path, str(folders["sd1"]), "generator")["sha256"]


def test_the_counts_of_stable_diffusion_21_are_the_published_ones() -> None:
    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel(**SD21_UNET), "text_encoder": CLIPTextModel(CLIPTextConfig(**SD21_TEXT))}
    assert base_model.parameters(parts["unet"]) == 865_910_724
    assert base_model.parameters(parts["text_encoder"]) == 340_387_840
    base = BaseModel(parts, (), {}, 512, torch.device("meta"), torch.bfloat16)
    adapters = lora.attach(base, Lora(16, 16.0, unet=True, text_encoder=True), {"one": 0})
    counts = {name: parameter.numel() for name, parameter in adapters.parameters("one").items()}
    assert sum(name.startswith("unet.") for name in counts) == 2 * 128
    assert sum(name.startswith("text_encoder.") for name in counts) == 2 * 92
    assert sum(counts.values()) == 6_334_464
    assert sum(count for name, count in counts.items() if name.startswith("unet.")) == 3_319_808


SD15 = {
    "unet": SD21_UNET | {"cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False},
    "text_encoder": SD21_TEXT
    | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
SDXL = {
    "unet": SD21_UNET
    | {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "text_encoder": SD15["text_encoder"],
    "text_encoder_2": SD21_TEXT
    | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"projection_dim": 1280},
}


@pytest.mark.parametrize(
    ("published", "counts"),
    [
        (SD15, {"unet": 859_520_964, "text_encoder": 123_060_480}),
        (SDXL, {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ],
)
def test_every_adapted_layer_of_the_other_families_has_a_gradient(
    published: dict[str, Any], counts: dict[str, int]
) -> None:
    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        parts = {
            name: kinds[name](**facts) if name == "unet" else kinds[name](CLIPTextConfig(**facts))
            for name, facts in published.items()
        }
        assert {name: base_model.parameters(part) for name, part in parts.items()} == counts
        for part in parts.values():
            part.requires_grad_(False)
        base = BaseModel(parts, (), {}, 512, torch.device("meta"), torch.float32)
        adapters = lora.attach(base, Lora(16, 16.0, unet=True, text_encoder=True), {"one": 0})
        told = base.embed(torch.zeros((1, len(base.encoders), 77), dtype=torch.int64))
        base.predict(torch.empty(1, 4, 64, 64), torch.empty(1), told).sum().backward()
    assert all(tensor.grad is not None for tensor in adapters.tensors)


def test_every_full_size_row_resolves_to_pinned_repositories(raw: dict[str, Any]) -> None:
    for name, row in toy.parse(raw).models.items():
        if name == "bundled":
            continue
        for weights in (row.generator, row.clip, row.judge):
            found = hub.repository(weights)
            assert found is not None
            assert found.revision is not None
            assert len(found.revision) == 40


def test_schedulers_of_every_family_can_be_exchanged(folders: dict[str, Path], model: Model) -> None:
    base = loaded(folders["sdxl"], model)
    drawn = {name: images(base, ["a"], Sampler(name, 2, 1.0)) for name in sampler.SCHEDULERS}  # type: ignore[arg-type]
    assert all(image.isfinite().all() for image in drawn.values())
