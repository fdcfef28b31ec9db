"""LoRA files as other tools read them: older peft, and the layout of kohya's trainer for ComfyUI and A1111."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import toy
from dreamset import adapt
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import sha256_file, write_json
from dreamset.core.workspace import Workspace
from dreamset.data.lora_file import read_pairs
from dreamset.generator import base_model, lora
from dreamset.generator.base_model import BaseModel
from dreamset.params.knob_words import scale_call_words
from dreamset.params.knobs import Lora
from dreamset.params.model import Model, Sampler
from dreamset.use import kohya
from test_generator import images, shaken, stock

FAMILIES = ("sd1", "sd2", "sdxl")
SPEC = Lora(rank=4, alpha=6.0, unet=True, text_encoder=True)
SAMPLER = Sampler("ddim", 3, 3.0)
# The fields of peft 0.15's LoraConfig that say what a file's matrices are; whatever is newer, an older peft refuses.
KNOWN = {
    *("r", "lora_alpha", "target_modules", "lora_dropout", "bias", "rank_pattern", "alpha_pattern"),
    *("use_dora", "use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern"),
}


def written(folder: Path, model: Model, target: Path, spec: Lora = SPEC) -> tuple[BaseModel, Path]:
    """A base, and the file of a LoRA of it."""
    base = base_model.load(folder, model, torch.device("cpu"))
    adapters = shaken(base, spec, ("one",), amount=0.05)
    adapters.save("one", target)
    lora.detach(adapters)
    return base, target / lora.WEIGHTS


def metadata(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["lora_adapter_metadata"])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_says_only_what_older_releases_know(
    folders: dict[str, Path], model: Model, tmp_path: Path, family: str
) -> None:
    base, file = written(folders[family], model, tmp_path)
    about, tensors = metadata(file), load_file(file)
    assert {key.partition(".")[2] for key in about} <= KNOWN
    for part in ("unet", *base.encoders):
        assert (about[f"{part}.r"], about[f"{part}.lora_alpha"]) == (4, 6.0)
        assert about[f"{part}.target_modules"] == (lora._UNET if part == "unet" else lora._TEXT)
        layers = [key.removeprefix(f"{part}.") for key in tensors if key.startswith(f"{part}.")]
        assert layers
        assert all(layer.startswith("text_model.encoder.layers.") for layer in layers) or part == "unet"
    # XL never uses the last layer of its first encoder, so that a loader must not wait for a pair there.
    assert about.get("text_encoder.layers_to_transform") == ([0] if family == "sdxl" else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_before_are_read_alike(folders: dict[str, Path], model: Model, tmp_path: Path, family: str) -> None:
    base, file = written(folders[family], model, tmp_path)
    with lora.fused(base, file):
        now = images(base, ["three"], SAMPLER)
    old = tmp_path / "old.safetensors"
    tensors = {
        key.replace("text_encoder.text_model.", "text_encoder."): value for key, value in load_file(file).items()
    }
    assert tensors.keys() != load_file(file).keys()
    # What was written before: the whole configuration of the present peft.
    about = {"unet.new_in_another_release": None, **metadata(file)}
    save_file(tensors, old, {"lora_adapter_metadata": json.dumps(about)})
    with lora.fused(base, old):
        assert torch.equal(images(base, ["three"], SAMPLER), now)


def test_what_cannot_be_read_is_refused_and_not_guessed(folders: dict[str, Path], model: Model, tmp_path: Path) -> None:
    base, file = written(folders["sd1"], model, tmp_path)
    tensors, about = load_file(file), metadata(file)

    def refused(words: str, tensors: dict[str, torch.Tensor] = tensors, **changes: Any) -> None:
        save_file(tensors, tmp_path / "other.safetensors", {"lora_adapter_metadata": json.dumps(about | changes)})
        with pytest.raises(InputError, match=words), lora.fused(base, tmp_path / "other.safetensors"):
            pass

    refused("peft's use_rslora", **{"unet.use_rslora": True})
    refused("peft's use_dora", **{"text_encoder.use_dora": True})
    refused("peft's alpha_pattern", **{"unet.alpha_pattern": {"to_q": 3}})
    refused("gives '6' for the alpha of unet", **{"unet.lora_alpha": "6"})
    key = next(key for key in tensors if "lora_A" in key)
    magnitude = {key.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4)}
    refused("tensors other than LoRA pairs", tensors | magnitude)
    flat = {key.replace(".text_model.", "."): value.clone() for key, value in tensors.items()}
    refused("adapts text_encoder.* twice", tensors | flat)


@pytest.mark.parametrize("family", FAMILIES)
def test_kohya_s_layout_has_every_pair_and_the_true_alpha(
    folders: dict[str, Path], model: Model, tmp_path: Path, family: str
) -> None:
    base, file = written(folders[family], model, tmp_path)
    pairs = read_pairs(file)
    found = kohya.renamed(pairs)
    layers = {key.partition(".")[0] for key in found}
    assert len(found) == 3 * len(layers) == 3 * len(pairs) == 3 * len(load_file(file)) // 2
    first = "lora_te1" if family == "sdxl" else "lora_te"
    assert layers >= {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        f"{first}_text_model_encoder_layers_0_self_attn_q_proj",
        f"{first}_text_model_encoder_layers_0_self_attn_out_proj",
        *(["lora_te2_text_model_encoder_layers_1_self_attn_v_proj"] if family == "sdxl" else []),
    }
    starts = {"lora_unet": "unet", first: "text_encoder", "lora_te2": "text_encoder_2"}
    # The names are those of the layers themselves, and the products what changes these.
    changed = {id(at.layer): at.pair.delta for at in lora.adapted(base, file)}
    for start, part in starts.items():
        for path, module in base.parts[part].named_modules() if part in base.parts else ():
            nested = "" if part == "unet" else "text_model."
            name = f"{start}_{nested}{path.removeprefix(nested)}".replace(".", "_")
            if name not in layers:
                continue
            layers.remove(name)
            down, up, alpha = (found[f"{name}.{key}"] for key in ("lora_down.weight", "lora_up.weight", "alpha"))
            assert (alpha.item(), down.shape[0], alpha.shape) == (6.0, 4, ())
            assert torch.equal(alpha / down.shape[0] * (up @ down), changed.pop(id(module)))
    assert not layers
    assert not changed


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_draws_the_same_with_kohya_s_layout(
    folders: dict[str, Path], model: Model, tmp_path: Path, family: str
) -> None:
    base, file = written(folders[family], model, tmp_path)
    save_file(kohya.renamed(read_pairs(file)), tmp_path / "kohya.safetensors")
    with lora.fused(base, file, 0.5):
        ours = (images(base, ["three"], SAMPLER).clamp(-1, 1) + 1) / 2
    theirs = stock(str(folders[family]), SAMPLER, "three", tmp_path / "kohya.safetensors", 0.5)
    assert (ours - theirs).abs().max() < 1e-5


def assembled(workspace: Workspace, recipe: str, files: dict[str, Path]) -> None:
    """The folder of a recipe's adapters as ``adapt`` leaves it."""
    folder, rows = workspace.adapter(recipe), []
    for label, (name, source) in enumerate(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source.read_bytes())
        labels = [label] if len(files) > 1 else [*range(3)]
        rows.append({"labels": labels, "file": name, "sha256": sha256_file(source), "shard": "0" * 64})
    write_json(folder / "adapters.json", {"recipe": recipe, "adapters": rows})


def test_a_recipe_s_loras_are_exported_with_a_card(
    folders: dict[str, Path], model: Model, workspace: Workspace, tmp_path: Path
) -> None:
    _, file = written(folders["sd1"], model, tmp_path / "one")
    _, other = written(folders["sd1"], model, tmp_path / "two", dataclasses.replace(SPEC, rank=2))
    toy.write_splits(workspace)
    params = toy.params(models__bundled__generator=str(folders["sd1"]))
    assembled(workspace, "datadream_light", {lora.WEIGHTS: file})
    assert kohya.kohya(params, workspace, "datadream_light", tmp_path / "light") == {
        "files": 1,
        "pairs": len(read_pairs(file)),
    }
    assert {path.name for path in (tmp_path / "light").iterdir()} == {"README.md", "datadream_light.safetensors"}
    card = (tmp_path / "light/README.md").read_text()
    assert "draws at strength 0.25 and 0.5: `<lora:NAME:0.25>`" in card
    assert "license: apache-2.0" in card
    assert "Not anonymised" in card
    once = (tmp_path / "light/datadream_light.safetensors").read_bytes()
    kohya.kohya(params, workspace, "datadream_light", tmp_path / "again")
    assert (tmp_path / "again/datadream_light.safetensors").read_bytes() == once
    names = {f"00{label}_{name}/{lora.WEIGHTS}": (file, other)[label % 2] for label, name in enumerate(toy.CLASSES)}
    assembled(workspace, "datadream_cls", names)
    assert kohya.kohya(params, workspace, "datadream_cls", tmp_path / "each")["files"] == 3
    ranks = {
        path.name: load_file(path)["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"].shape[0]
        for path in (tmp_path / "each").glob("*.safetensors")
    }
    assert ranks == {
        f"datadream_cls_00{label}_{name}.safetensors": (4, 2)[label % 2] for label, name in enumerate(toy.CLASSES)
    }


def test_what_kohya_s_layout_cannot_hold_is_refused(
    folders: dict[str, Path], model: Model, workspace: Workspace, tmp_path: Path
) -> None:
    toy.write_splits(workspace)
    params = toy.params(models__bundled__generator=str(folders["sd1"]))
    for recipe, adapter in (
        ("stable_diffusion", "none"),
        ("class_encoder_untuned", "class_encoder"),
        ("class_encoder_ft_untuned", "unet"),
    ):
        with pytest.raises(InputError, match=f"{recipe} has adapter: {adapter}, and kohya's layout holds only LoRAs"):
            kohya.kohya(params, workspace, recipe, tmp_path / "out")
    _, file = written(folders["sd1"], model, tmp_path / "one")
    tensors = load_file(file)
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps({**metadata(file), "unet.use_dora": True})})
    assembled(workspace, "datadream_dset", {lora.WEIGHTS: file})
    with pytest.raises(InputError, match="was made with peft's use_dora"):
        kohya.kohya(params, workspace, "datadream_dset", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already; name a new folder, or empty it"):
        kohya.kohya(params, workspace, "datadream_dset", tmp_path / "mine")


def test_kohya_wants_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--kohya", str(tmp_path / "x")])
    assert capsys.readouterr().err.startswith("dreamset: export --kohya: needs --recipe")


def test_a_card_says_at_which_scales_its_recipe_draws(small: dict[str, Any], workspace: Workspace) -> None:
    small["active"] = ["stable_diffusion", "datadream_dset", "datadream_light", "datadream_cls"]
    small["models"]["bundled"]["adapt"]["dataset"]["max_steps"] = 2
    params = toy.parse(small)
    toy.prepare(params, workspace)
    for recipe in ("datadream_dset", "datadream_light"):
        adapt.run(params, workspace, recipe)
    full, light = (
        (workspace.adapter(recipe) / "README.md").read_text() for recipe in ("datadream_dset", "datadream_light")
    )
    assert "Drawn at scale 1 (1 is the strength of the training" in full
    assert "Drawn at scales 0.25, 0.5, image by image in turn" in light
    assert "When this was written, `datadream_light` drew with the same weights" in full
    assert "When this was written, `datadream_dset` drew with the same weights" in light
    assert "reads no alpha" not in full + light
    # The calls of the card draw what the recipe draws.
    calls = [word for word in light.split("`") if "(" in word or "scale" in word]
    base = base_model.load(Path(params.base.generator), params.base, torch.device("cpu"))
    with lora.fused(base, workspace.adapter("datadream_light") / lora.WEIGHTS, 0.25):
        ours = (images(base, ["three"], SAMPLER).clamp(-1, 1) + 1) / 2
    for set_by_call in (True, False):
        pipeline = StableDiffusionPipeline.from_pretrained(params.base.generator)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        opened, chosen = (next(call for call in calls if verb in call) for verb in ("adapter_name", "set_adapters"))
        known = {"pipeline": pipeline, "FOLDER": workspace.adapter("datadream_light")}
        eval(f"pipeline.{opened}", known)
        each = eval(f"dict({next(call for call in calls if 'kwargs' in call)})") if set_by_call else {}
        if not set_by_call:
            eval(f"pipeline.{chosen}", known)
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        sampler = {"num_inference_steps": SAMPLER.steps, "guidance_scale": SAMPLER.guidance, "output_type": "pt"}
        theirs = pipeline("three", latents=latents, height=16, width=16, **sampler, **each).images
        assert (theirs - ours).abs().max() < 1e-5


def test_a_card_says_what_releases_without_alpha_need() -> None:
    row = toy.params().recipes["datadream_dset"]
    words = scale_call_words(dataclasses.replace(row, alpha=24.0))
    assert "A diffusers before 0.34 reads no alpha; times 1.5 its scales are the same." in words


def test_a_lora_of_one_s_own_goes_into_a_base_of_its_own(
    folders: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    """The code of docs/recipes.md, with these folders in the place of its own."""
    base, file = written(folders["sd1"], model, tmp_path)
    with lora.fused(base, file, 0.8):
        expected = images(base, ["three"], SAMPLER)
    code = (
        (toy.ROOT / "docs/recipes.md")
        .read_text()
        .split("## A LoRA of your own")[1]
        .split("```python")[1]
        .split("```")[0]
    )
    for said, meant in (
        ("models/base/sd", folders["sd1"]),
        ("mine.safetensors", file),
        ("models/mine", tmp_path / "mine"),
    ):
        assert code.count(said) == 1
        code = code.replace(said, str(meant))
    exec(code, {})
    own = base_model.load(tmp_path / "mine", model, torch.device("cpu"))
    assert (images(own, ["three"], SAMPLER) - expected).abs().max() < 1e-5
