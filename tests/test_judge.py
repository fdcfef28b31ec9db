"""The judge by what its folder holds, and which distance few images allow."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset.classifiers import simple, simple_judge, simple_network
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data.arrays import Labelled
from dreamset.metrics.compare import Reference
from dreamset.metrics.features import Judge
from dreamset.weights import judging
from dreamset.weights.judge import Clip, Dinov2, load_network


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2 of 24 features, trained as it were at 28 pixels."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_gives_its_class_token_of_imagenet_normalised_images_of_224_pixels(dinov2: Path) -> None:
    from torchvision import transforms
    from transformers import AutoModel

    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(dinov2).eval()(images).last_hidden_state
    judge = Judge(dinov2)
    assert isinstance(judge.network, Dinov2)
    features = judge.features(pixels, batch=2)
    assert (features.shape, features.dtype, judge.size) == ((3, 24), np.float32, 224)
    assert features == pytest.approx(hidden[:, 0].numpy(), abs=1e-4)
    assert not any(value.requires_grad for value in judge.network.parameters())
    # What is smaller is enlarged.
    assert judge.features(pixels[:, :16, :16]).shape == (3, 24)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Inception v3 as timm saves it for the hub."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("inception_v3", pretrained=False)
    folder = tmp_path_factory.mktemp("inception")
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {"architecture": "inception_v3", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_inception_gives_the_features_that_timm_pools(inception: Path) -> None:
    import timm
    from safetensors.torch import load_file

    pixels = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    theirs = timm.create_model("inception_v3", pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(load_file(inception / "model.safetensors"), strict=False)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.5, 0.6, 0.7]))
    with torch.inference_mode():
        pooled = theirs((images - mean) / deviation).numpy()
    judge = Judge(inception)
    features = judge.features(pixels)
    assert (features.shape, features.dtype, judge.size) == ((2, 2048), np.float32, 299)
    # Random weights make millions of it, whose last bits are lost on the way to -1..1 and back.
    assert features == pytest.approx(pooled, rel=0.02, abs=1e-5 * float(pooled.max()))
    assert not any(value.requires_grad for value in judge.network.parameters())


def test_an_inception_without_all_of_its_weights_is_refused(inception: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((inception / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load_network(tmp_path)
    weights = load_file(inception / "model.safetensors")
    gone = weights.pop("Mixed_7c.branch1x1.conv.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks the weights Mixed_7c\.branch1x1\.conv\.weight"):
        load_network(tmp_path)
    save_file(
        weights | {"Mixed_7c.branch1x1.conv.weight": gone, "Mixed_8a.weight": gone.clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(InputError, match=r"Mixed_8a\.weight, unknown"):
        load_network(tmp_path)


@pytest.mark.parametrize("kind", ["glyphs", "dinov2", "inception_v3"])
def test_a_classifier_of_its_features_comes_back_and_its_card_answers_alike(
    kind: str, dinov2: Path, inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    source = {"dinov2": dinov2, "inception_v3": inception}.get(kind, tmp_path / "judge")
    if kind == "glyphs":
        toy.write_judge(source)
    network = load_network(source)
    assert not isinstance(network, Clip)
    identity = {"name": "judge", "commit": None, "sha256": "0" * 64}
    width = network.features(torch.zeros(1, 3, network.size, network.size)).shape[1]
    head = simple_network.Logistic(torch.randn(2, width), torch.zeros(2))
    made = simple_judge.JudgeFeatures(network, identity, head).eval()
    folder = tmp_path / "classifier"
    folder.mkdir()
    which = simple.BY_NAME["logistic_judge"]
    record = which.save(made, folder) | {"classes": ["a", "b"]}
    images = torch.rand(2, 3, network.size, network.size)
    with torch.inference_mode():
        expected = made(images)
        again = which.load(folder, record).eval()(images)
    assert torch.equal(again, expected) and record["base"] == "judge" and record["judge"]["kind"] == kind
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "load_file": load_file, "record": record}
    exec(compile(which.program(record), "card", "exec"), scope)
    with torch.inference_mode():
        np.testing.assert_allclose(scope["logits"](images).numpy(), expected.numpy(), atol=2e-3)
    save_file({"weight": torch.zeros(3, width), "bias": torch.zeros(3)}, folder / record["head"])
    with pytest.raises(InputError, match="is of 3 classes, unlike its record"):
        which.load(folder, record)


def test_where_clip_stands_in_for_the_judge_its_features_are_taken(workspace: Workspace) -> None:
    split = toy.write_splits(workspace)
    toy.write_clip(workspace.root / "clip")
    row = toy.params(models__bundled__clip="clip", models__bundled__judge="hub:no/judge@0").base
    assert isinstance(simple.network("judge", row, split, workspace.root), simple_network.ClipFeatures)


def test_the_bundled_judge_is_known_by_its_file(tmp_path: Path) -> None:
    toy.write_judge(tmp_path)
    judge = Judge(tmp_path)
    assert judge.size == 16
    assert judge.features(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, 64)


@pytest.mark.parametrize("kind", ["bundled", "dinov2", "inception"])
@pytest.mark.parametrize("how", ["pointer", "cut", "nan", "other"])
def test_a_judge_of_broken_weights_is_one_sentence(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, how: str
) -> None:
    from safetensors.torch import load_file, save_file

    if kind == "bundled":
        toy.write_judge(tmp_path)
    else:
        shutil.copytree(request.getfixturevalue(kind), tmp_path, dirs_exist_ok=True)
    file = next(tmp_path.glob("*.safetensors"))
    weights = load_file(file)
    name = next(key for key, value in weights.items() if value.is_floating_point() and value.ndim > 1)
    if how == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        weights[name] = weights[name] * float("nan") if how == "nan" else weights[name].new_zeros(3, 3)
        save_file(weights, file, {"format": "pt"})
    words = {"pointer": "pointer of Git LFS", "cut": "no whole file of weights", "nan": "NaN", "other": "fit"}[how]
    with pytest.raises(InputError, match=f"{words}.*; .*correct judge in its row") as told:
        load_network(tmp_path)
    assert "\n" not in str(told.value)


def test_other_networks_pickles_and_missing_weights_are_refused(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(InputError, match=r"holds neither judge\.safetensors nor a DINOv2"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="holds neither"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    weights = load_file(dinov2 / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled") as caught:
        load_network(tmp_path)
    command = re.search(r'`python -c "(.*)"`', str(caught.value))
    assert command
    exec(command[1], {})
    images = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        safe = load_network(tmp_path.with_name(f"{tmp_path.name}-safe"))
        assert torch.allclose(safe.features(images), load_network(dinov2).features(images))
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights layernorm\.weight"):
        load_network(tmp_path)


class Wide:
    """A judge of any width: the first pixels."""

    name = "judge"

    def __init__(self, width: int) -> None:
        self.width = width

    def features(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)[:, : self.width].astype(np.float32)


@pytest.mark.parametrize(("width", "distance"), [(29, "fid"), (30, "kid"), (31, "kid")])
def test_a_class_has_an_fid_where_it_has_more_images_than_the_judge_has_features(
    tmp_path: Path, width: int, distance: str
) -> None:
    split = toy.write_splits(Workspace.at(tmp_path))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    sets = [
        Labelled(rng.integers(0, 256, (90, 16, 16, 3), np.uint8), labels, tuple(map(str, range(90)))) for _ in range(3)
    ]
    judge: Any = Wide(width)
    found = Reference(toy.params(), judge, split, sets[0], sets[1], sets[1].names).compare(sets[2]).record
    assert all(set(row) == {"n", distance} for row in found["per_class"].values())
    assert found["warning"].startswith("FID of 90 images is biased upwards:")


@pytest.mark.parametrize(
    ("n", "width", "words"),
    [
        (2048, 768, None),
        (2047, 768, "FID of 2047 images is biased upwards: compare"),
        (500, 768, "at most 768 images leave the covariance of 768 features singular"),
        (2048, 2048, "singular"),
        (2049, 2048, None),
    ],
)
def test_few_images_are_warned_of(n: int, width: int, words: str | None) -> None:
    from dreamset.metrics.compare import _warning

    told = _warning(n, width)
    assert told is None if words is None else words in (told or "")


MISSING = "hub:someone/judge@0123456789abcdef0123456789abcdef01234567"


def test_clip_stands_in_for_a_judge_that_was_not_fetched(tmp_path: Path) -> None:
    import open_clip

    toy.write_clip(tmp_path / "clip")
    row = toy.params(models__bundled__judge=MISSING, models__bundled__clip="clip").base
    words = judging.stand_in(tmp_path, row)
    assert words is not None and MISSING in words and "dreamset fetch" in words
    identity = judging.identity(tmp_path, row)
    assert (identity["name"], identity["stands_in_for"]) == ("clip", MISSING)

    judge = Judge(judging.find(tmp_path, row))
    assert judge.name == "CLIP in place of the judge"
    pixels = np.random.default_rng(0).integers(0, 256, (3, judge.size, judge.size, 3), np.uint8)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    with torch.inference_mode():
        expected = model.encode_image((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    assert judge.features(pixels) == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_judge_scores_where_it_is_here_and_its_absence_is_told_where_clip_is_away_too(tmp_path: Path) -> None:
    toy.write_judge(tmp_path / "judge")
    row = toy.params(models__bundled__judge="judge", models__bundled__clip="clip").base
    assert judging.find(tmp_path, row) == tmp_path / "judge"
    assert judging.stand_in(tmp_path, row) is None
    assert "stands_in_for" not in judging.identity(tmp_path, row)
    away = toy.params(models__bundled__judge=MISSING, models__bundled__clip=MISSING).base
    with pytest.raises(InputError, match=r"someone/judge at revision .* is missing"):
        judging.find(tmp_path, away)
    # A folder is the user's own, and a name that is none is a mistake: neither is a matter of fetching.
    wrong = toy.params(models__bundled__judge="hub:judge", models__bundled__clip="clip").base
    with pytest.raises(InputError, match="hub:OWNER/NAME"):
        judging.find(tmp_path, wrong)
    with pytest.raises(InputError, match="correct judge in its row"):
        load_network(judging.find(tmp_path, toy.params(models__bundled__judge="nowhere").base))
