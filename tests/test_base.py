import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from base.captions import prompt
from safetensors.torch import load_file

from dreamset.core.errors import InputError
from dreamset.glyphs import look
from dreamset.glyphs.fonts import CHARACTERS
from dreamset.weights.judge import load_judge

ROOT = Path(__file__).parents[1]
BASE = ROOT / "models" / "base"
TEXTS = ["a photo of the digit three", "letter capital B, bold, low resolution", "", "Boeing 707-320, naïve " * 9]


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(BASE / "sd")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def clip():
    import open_clip

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{BASE / 'clip'}")
    return network.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{BASE / 'clip'}")


def test_stock_pipeline_loads_and_draws(pipeline):
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    digits = [prompt(c) for c in "0123456789"]
    images = pipeline(
        digits,
        height=16,
        width=16,
        num_inference_steps=12,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (10, 3, 16, 16)
    judge = load_judge(BASE / "judge")
    read = [judge.class_names[i] for i in judge.logits(images * 2 - 1).argmax(1)]
    assert sum(c in name for c, name in zip("0123456789", read, strict=True)) >= 7


def test_scheduler_is_stable_diffusions(pipeline):
    config = pipeline.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.prediction_type, config.clip_sample, config.steps_offset) == ("epsilon", False, 1)


def test_latents_have_unit_scale(pipeline):
    from dreamset.glyphs.render import Glyphs, split_pairs

    images = Glyphs(look.load(BASE / "params.yaml").look, 11, split_pairs(2, 7)[1]).batch(0, 256).images
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert latents.shape == (256, 4, 8, 8)
    assert 0.8 < float(latents.std()) < 1.2


def test_both_tokenizers_give_the_same_ids(pipeline, clip):
    ids = pipeline.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(clip[2](TEXTS), ids)


def test_both_text_towers_give_the_same_states(pipeline, clip):
    network, _, tokenizer = clip
    ids = tokenizer(TEXTS)
    with torch.no_grad():
        encoded = pipeline.text_encoder(ids)
        states = network.token_embedding(ids) + network.positional_embedding
        states = network.ln_final(network.transformer(states, attn_mask=network.attn_mask))
        features = network.encode_text(ids)
    assert torch.allclose(encoded.last_hidden_state, states, atol=1e-4)
    assert torch.allclose(encoded.pooler_output @ network.text_projection, features, atol=1e-3)


def test_a_copy_for_older_releases_is_the_same_model(pipeline, tmp_path):
    from base import older
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    older.write(tmp_path / "sd")
    # Under transformers 4, these names alone are those of a CLIPTextModel.
    names = load_file(tmp_path / "sd/text_encoder/model.safetensors").keys()
    assert all(name.startswith("text_model.") for name in names)
    (tmp_path / "sd/tokenizer/tokenizer.json").unlink()
    ids = CLIPTokenizer.from_pretrained(tmp_path / "sd/tokenizer")(TEXTS, truncation=True).input_ids
    assert ids == pipeline.tokenizer(TEXTS, truncation=True).input_ids
    states = StableDiffusionPipeline.from_pretrained(tmp_path / "sd").text_encoder.state_dict()
    assert states.keys() == pipeline.text_encoder.state_dict().keys()
    assert all(torch.equal(states[name], value) for name, value in pipeline.text_encoder.state_dict().items())
    with pytest.raises(InputError, match="exists already; name a new folder"):
        older.write(tmp_path / "sd")


def test_the_card_is_the_one_that_scoring_writes(tmp_path):
    from base.card import write_card

    write_card(look.load(BASE / "params.yaml"), json.loads((BASE / "metrics.json").read_text()), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (BASE / "README.md").read_text()


def test_training_reads_texts_as_open_clip_does(clip):
    from base.clip import _encode

    network, _, tokenizer = clip
    ids = tokenizer(TEXTS)
    with torch.no_grad():
        assert torch.allclose(_encode(network, ids), network.encode_text(ids, normalize=True), atol=1e-5)


def test_clip_preprocesses_to_the_range_it_was_trained_on(clip):
    import numpy as np
    from PIL import Image

    ramp = Image.fromarray(np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)).convert("RGB")
    pixels = clip[1](ramp)
    assert pixels.shape == (3, 16, 16)
    assert float(pixels.min()) == -1.0
    assert float(pixels.max()) == 1.0


def test_the_student_draws_in_one_step_what_it_is_asked_for():
    from base import measures
    from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(BASE / "sd", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet = UNet2DConditionModel.from_pretrained(BASE / "student", subfolder="unet")
    pipeline.scheduler = LCMScheduler.from_pretrained(BASE / "student", subfolder="scheduler")
    plan = dataclasses.replace(look.load(BASE / "params.yaml").score, steps=1, guidance=1.0)
    images = measures.sample(pipeline, plan, CHARACTERS, 2)
    read = measures.judge_reads(load_judge(BASE / "judge"), images)
    assert (read == measures.true_groups(CHARACTERS, 2)).mean() > 0.9


def test_the_student_learns_the_ends_of_its_teachers_ways(pipeline, tmp_path, monkeypatch):
    from base import student
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    plan = dataclasses.replace(look.load(BASE / "params.yaml").student, solver_steps=3, steps=2, batch=8)
    with torch.no_grad():
        states, empty = (
            pipeline.text_encoder(pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids)[0]
            for texts in (["the digit three"] * 2, [""])
        )
    torch.manual_seed(0)
    ways = student.solve(pipeline.unet, pipeline.scheduler.config, states, empty, plan, np.random.default_rng(0))
    assert ways.times.tolist()[:2] == [999, 999]
    assert len(set(ways.times.tolist())) == 3
    # The stock pipeline goes the same way at the same timesteps.
    stock = StableDiffusionPipeline.from_pretrained(BASE / "sd", safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    theirs = stock(
        ["the digit three"] * 2,
        latents=ways.places[:2],
        timesteps=sorted(set(ways.times.tolist()), reverse=True),
        guidance_scale=plan.guidance,
        height=16,
        width=16,
        output_type="latent",
    ).images
    assert (ways.ends[:2] - theirs).abs().max() < 1e-4
    # A network that tells the noise of a place with its end gives that end.
    signal = pipeline.scheduler.alphas_cumprod
    kept = signal[ways.times].view(-1, 1, 1, 1)
    noise = (ways.places - kept.sqrt() * ways.ends) / (1 - kept).sqrt()
    assert (student.guessed(lambda *_, **__: (noise,), signal, ways) - ways.ends).abs().max() < 1e-3
    rows = student._mixed(30, 10, 0.5, np.random.default_rng(0))
    assert len(rows) == 30
    assert (rows < 10).sum() == 15

    monkeypatch.setattr(student, "_WAYS", 8)
    monkeypatch.setattr(student, "_KNOWN", 64)
    params = dataclasses.replace(look.load(BASE / "params.yaml"), student=plan)
    student.train_student(params, BASE / "sd", tmp_path / "student")
    config = json.loads((tmp_path / "student/unet/config.json").read_text())
    assert config == json.loads((BASE / "student/unet/config.json").read_text())
    assert (tmp_path / "student/scheduler/scheduler_config.json").is_file()
    before, after = (
        load_file(folder / "diffusion_pytorch_model.safetensors")
        for folder in (BASE / "sd/unet", tmp_path / "student/unet")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_judge_gives_features_and_logits():
    judge = load_judge(BASE / "judge")
    images = torch.randn(5, 3, 16, 16).clamp(-1, 1)
    assert judge.features(images).shape == (5, 64)
    assert judge.logits(images).shape == (5, len(judge.class_names))
    assert not judge.training
    assert not any(p.requires_grad for p in judge.parameters())
    assert torch.equal(judge.logits(images[:1]).argmax(1), judge.logits(images).argmax(1)[:1])


def test_the_committed_base_fits_in_twenty_megabytes():
    listed = subprocess.run(["git", "ls-files", "-z", "models/base"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert any(path.name == "diffusion_pytorch_model.safetensors" for path in files)
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20


def test_measured_figures_clear_their_bars():
    figures = json.loads((BASE / "metrics.json").read_text())
    assert figures["held_out_accuracy"] >= 0.97
    assert figures["samples_read_as_prompted"] >= 0.90
    assert figures["handwritten_digits"] == 915 + 242
    assert f"{figures['held_out_accuracy']:.1%}" in (BASE / "README.md").read_text()


def test_no_stage_asks_for_test_digits(monkeypatch):
    from base import measures

    from dreamset.sources import digits

    asked = []
    real = digits.load
    monkeypatch.setattr(digits, "load", lambda parts: asked.append(tuple(parts)) or real(parts))
    images, labels = measures.handwritten()
    assert asked == [("train", "selection")]
    assert images.shape == (len(labels), 3, 16, 16)
    sources = sorted((ROOT / "base").glob("*.py"))
    assert len(sources) > 5
    for path in sources:
        tree = ast.parse(path.read_text())
        loads = [n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute) and "digits" in ast.unparse(n)]
        words = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        assert "test" not in words, path
        assert not any("BLOCKS" in ast.unparse(n) or "load_digits" in ast.unparse(n) for n in loads), path


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  blur: 0.8", "  blurr: 0.8", "look.blurr"),
        ("  held_out_fonts: 2 ", "  held_out_fonts: two ", "source.held_out_fonts"),
        ("  blur: 0.8", "  blur: .nan", "look.blur"),
        ("  ema: 0.998", "  ema: 1.5", "unet.ema"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(tmp_path, old, new, named):
    text = (BASE / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=named) as caught:
        look.load(tmp_path / "params.yaml")
    assert str(caught.value).count(".\n") == 0
    assert str(caught.value).endswith(".")


def test_a_wrong_parameter_exits_with_two(tmp_path, monkeypatch, capsys):
    from base.__main__ import main

    text = (BASE / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  seed: 1", "  seed: -1", 1))
    monkeypatch.setattr(sys, "argv", ["base", "clip", "--folder", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err.count("clip.seed: ") == 1


def test_the_commands_of_the_pipeline_run_where_it_stands():
    from base.__main__ import STAGES

    stages = yaml.safe_load((ROOT / "base/dvc.yaml").read_text())["stages"].values()
    locked = yaml.safe_load((ROOT / "base/dvc.lock").read_text())["stages"].values()
    commands = [command for stage in stages for command in _listed(stage["cmd"])]
    assert commands == [command for stage in locked for command in _listed(stage["cmd"])]
    names = ["clip", "polish", "judge", "vae", "unet", "student", "score"]
    assert [command.rpartition(" ")[2] for command in commands] == names
    assert set(STAGES) == {command.rpartition(" ")[2] for command in commands}
    for stage in stages:
        assert all((ROOT / "base" / path).exists() for path in stage["deps"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    helped = subprocess.run(
        f"{commands[0]} --help",
        shell=True,
        cwd=ROOT / "base",
        env=os.environ | {"PATH": path},
        capture_output=True,
        check=True,
    )
    assert b"models/base" in helped.stdout


def _listed(command):
    return [command] if isinstance(command, str) else command


def test_the_project_around_it_does_not_read_its_pipeline(tmp_path):
    from dvc.repo import Repo

    for name in ("base", "models/base", "src/dreamset"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", ".dreamset"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for folder in (tmp_path, tmp_path / "base"):
        (folder / ".dvc").mkdir(exist_ok=True)
        (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    with Repo(str(tmp_path)) as repo:
        assert {Path(stage.path) for stage in repo.index.stages} == {tmp_path / "dvc.yaml"}
        weights = [dep for stage in repo.index.stages for dep in stage.deps if dep.def_path == "models/base/sd"]
        assert weights
        assert all(dep.exists for dep in weights)
    with Repo(str(tmp_path / "base")) as repo, repo.lock:
        assert len(repo.index.stages) == 5
        # The record is of the committed weights, and no run deletes or caches them.
        for out in repo.index.outs:
            assert out.persist
            assert not out.use_cache
            assert not out.changed_checksum()
