"""CLIP by name: folders, repositories of the hub, open_clip's tags, files; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file

import toy
from dreamset import classifiers
from dreamset.classifiers import clip
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file
from dreamset.weights import hub, pretrained

PROMPTS = ["a photo of a bar", "a photo of a plank", "spot"]
OPENAI = "timm/vit_base_patch16_clip_224.openai"
COMMIT = "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder, and open_clip taught its architecture by name, with and without QuickGELU."""
    folder = tmp_path_factory.mktemp("clip")
    toy.write_clip(folder)
    config = json.loads((folder / pretrained.CONFIG).read_text())["model_cfg"]
    for name, more in (("toy-ViT", {}), ("toy-ViT-quickgelu", {"quick_gelu": True})):
        path = tmp_path_factory.mktemp("configs") / f"{name}.json"
        path.write_text(json.dumps(config | more))
        open_clip.add_model_config(path)
    return folder


@pytest.fixture
def project(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose hub's cache holds the folder as two repositories, neither of which speaks of QuickGELU."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for name in (OPENAI, "someone/else"):
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(weights, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(COMMIT)
    shutil.copytree(weights, tmp_path / "project/models/clip")
    shutil.copyfile(weights / pretrained.WEIGHTS, tmp_path / "project/models/toy.safetensors")
    return tmp_path / "project"


def _quick(classifier: clip.Clip) -> bool:
    return any(isinstance(module, QuickGELU) for module in classifier.modules())


@pytest.mark.parametrize(
    ("name", "commit", "quick"),
    [
        ("models/clip", None, False),
        (f"hub:{OPENAI}@{COMMIT}", COMMIT, True),
        (f"hub:{OPENAI}", COMMIT, True),
        ("hub:someone/else", COMMIT, False),
        ("open_clip:ViT-B-16/openai", COMMIT, True),
        ("open_clip:ViT-B-16-quickgelu/openai", COMMIT, True),
        ("open_clip:toy-ViT/models/toy.safetensors", None, False),
        ("open_clip:toy-ViT-quickgelu/models/toy.safetensors", None, True),
    ],
)
def test_every_kind_of_name_is_read_and_what_was_saved_comes_back(
    project: Path, tmp_path: Path, name: str, commit: str | None, quick: bool
) -> None:
    split = toy.write_splits(toy.Workspace.at(tmp_path))
    row = toy.params(models__bundled__clip=name).base
    classifier = classifiers.build("clip_lora", row, split, project)
    assert isinstance(classifier, clip.Clip)
    assert _quick(classifier) is quick
    for key, value in classifier.named_parameters():
        if key.endswith(".B"):
            value.data.fill_(0.1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    expected = classifiers.Predictor(classifier, split.classes).logits(pixels)
    saved = tmp_path / "saved"
    prompts = [split.prompt(label) for label in range(3)]
    classifiers.save(classifier, saved, {"classifier": "clip_lora", "classes": split.classes, "prompts": prompts})
    record = read_json(saved / "classifier.json", "")
    assert (record["base"], record["base_commit"]) == (name, commit)
    assert re.fullmatch("[0-9a-f]{64}", record["base_sha256"])
    again = classifiers.load(saved)
    assert again.logits(pixels) == pytest.approx(expected, abs=1e-4)
    assert again.classifier.base == pretrained.in_folder(saved, name, commit, record["base_sha256"])
    # A stock open_clip reads it too, with the right activation.
    stock = open_clip.create_model(f"local-dir:{saved}")
    assert any(isinstance(module, QuickGELU) for module in stock.modules()) is quick


def test_the_activation_matters(project: Path) -> None:
    quick, plain = (
        clip.read(pretrained.find(project, name), PROMPTS).eval() for name in (f"hub:{OPENAI}", "hub:someone/else")
    )
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (quick(images) - plain(images)).abs().max() > 1e-4


def test_what_was_read_is_told(project: Path) -> None:
    path = project / "models/toy.safetensors"
    found = pretrained.find(project, "open_clip:toy-ViT/models/toy.safetensors")
    assert (found.sha256, found.commit, found.weights) == (sha256_file(path), None, path)
    shutil.copytree(project / "models/clip", project / "models/same")
    shutil.copytree(project / "models/clip", project / "models/other")
    config = project / "models/other" / pretrained.CONFIG
    config.write_text(config.read_text() + "\n")
    clips = [pretrained.find(project, f"models/{name}").sha256 for name in ("clip", "same", "other")]
    assert clips[0] == clips[1] != clips[2]
    # An absolute path is no part of the project, but may be named.
    assert pretrained.find(project, f"open_clip:toy-ViT/{path}").weights == path


def test_a_file_is_normalised_as_all_published_weights_of_its_architecture(project: Path) -> None:
    def facts(model: str) -> dict[str, Any]:
        found = pretrained.find(project, f"open_clip:{model}/models/toy.safetensors")
        return dict(found.config["preprocess_cfg"])

    assert facts("ViT-B-16")["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert facts("MobileCLIP-S1") == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert facts("toy-ViT") == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-16", "write open_clip:MODEL/TAG"),
        ("open_clip:ViT-B16/openai", "no model ViT-B16; the nearest are ViT-B-16"),
        ("open_clip:ViT-B-16/openia", "no such weights of ViT-B-16; name open_clip:ViT-B-16/openai or"),
        ("open_clip:ViTamin-S/datacomp1b", "only as a pickled file.*name open_clip:ViTamin-S/FILE.safetensors"),
        ("open_clip:toy-ViT/models/gone.safetensors", "gone.safetensors: is missing"),
        ("open_clip:ViT-B-16-SigLIP/models/toy.safetensors", "needs a tokenizer beside its weights"),
        ("hub:timm/not-there", "dreamset fetch"),
        ("models", "not an open_clip folder"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(project: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        pretrained.find(project, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["pointer", "cut", "nan"])
def test_a_clip_of_broken_weights_is_one_sentence(project: Path, how: str) -> None:
    file = project / "models/clip" / pretrained.WEIGHTS
    weights = load_file(file)
    if how == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        save_file(weights | {"logit_scale": weights["logit_scale"] * float("nan")}, file)
    words = {"pointer": "pointer of Git LFS", "cut": "no whole file of weights", "nan": "logit_scale holds NaN"}[how]
    with pytest.raises(InputError, match=f"{words}.*; .*correct clip in its row") as told:
        clip.read(pretrained.find(project, "models/clip"), PROMPTS)
    assert "\n" not in str(told.value)
    if how != "nan":
        with pytest.raises(InputError, match=words):
            hub.check(project, "models/clip", "clip")


def test_weights_of_another_architecture_are_named(project: Path) -> None:
    folder = project / "models/clip"
    config = json.loads((folder / pretrained.CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 24
    (folder / pretrained.CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not hold the weights of") as caught:
        clip.read(pretrained.find(project, "models/clip"), PROMPTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["models/clip", "open_clip:toy-ViT/models/toy.pt"])
def test_pickled_weights_are_refused_with_a_command_that_converts_them(project: Path, name: str) -> None:
    from safetensors.torch import load_file

    for safe, pickled in (("clip/open_clip_model.safetensors", "clip/model.pt"), ("toy.safetensors", "toy.pt")):
        torch.save(load_file(project / "models" / safe), project / "models" / pickled)
        (project / "models" / safe).unlink()
    words = "keep it beside" if name == "models/clip" else "name open_clip:toy-ViT/models/toy.safetensors"
    with pytest.raises(InputError, match=f"pickled file.*{words}") as caught:
        pretrained.find(project, name)
    command = re.search(r'`python -c "(.*)"`', str(caught.value))
    assert command
    exec(command[1], {})
    found = pretrained.find(project, name.replace(".pt", ".safetensors"))
    assert clip.read(found, PROMPTS).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_every_row_says_what_must_be_fetched_for_its_classifiers() -> None:
    rows = toy.load(ROOT / "params.yaml").models
    assert pretrained.hub_name(rows["bundled"].clip) is None
    assert pretrained.hub_name(rows["sd21_base"].clip) == f"hub:{OPENAI}@{COMMIT}"
    assert pretrained.hub_name("open_clip:ViT-L-14/openai") == "hub:timm/vit_large_patch14_clip_224.openai"
    assert pretrained.hub_name("open_clip:ViT-L-14/x.safetensors") is None


def test_the_table_says_quick_gelu_of_openai_and_not_of_laion() -> None:
    assert pretrained._quick_gelu(OPENAI)
    assert not pretrained._quick_gelu("laion/CLIP-ViT-B-16-laion2B-s34B-b88K")
    assert pretrained.hub_name("open_clip:ViT-B-16/laion2b_s34b_b88k") == "hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
