"""CLIP with LoRA on q and v of both towers, merged, saved, and read as any."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset import classifiers
from dreamset.classifiers import clip, fit, lora_attention
from dreamset.core.errors import InputError
from dreamset.core.resizing import resize_crop
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.splits import Split
from dreamset.weights import pretrained

PROMPTS = ["a photo of a bar", "a photo of a rather long plank of old wood", "spot"]


def _read(folder: Path) -> clip.Clip:
    return clip.read(pretrained.in_folder(folder, "toy", None, "0" * 64), PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    toy.write_clip(path)
    return path


@pytest.fixture
def adapted(folder: Path) -> clip.Clip:
    """A CLIP whose LoRAs are far from their start."""
    classifier = _read(folder)
    lora_attention.adapt(classifier.model, 2, 4, 0.5)
    generator = torch.Generator().manual_seed(1)
    for name, value in classifier.named_parameters():
        if name.endswith(".B"):
            value.data = torch.randn(value.shape, generator=generator)
    return classifier


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _split(root: Path, **changes: Any) -> Split:
    split = toy.write_splits(Workspace.at(root))
    return Split(**(split.__dict__ | changes))


def test_lora_starts_as_the_zero_shot_classifier(folder: Path, images: torch.Tensor) -> None:
    plain = _read(folder).eval()
    adapted = _read(folder).eval()
    count = lora_attention.adapt(adapted.model, 2, 4, 0.0)
    # Two towers of two layers: A of (2 r, d) and B of (2 d, r) each.
    assert count == 4 * (4 * 16 + 32 * 2)
    for mode in (True, False):
        assert torch.allclose(plain.train(mode)(images), adapted.train(mode)(images), atol=1e-5)


def test_only_the_rows_of_q_and_v_change_and_only_lora_learns(folder: Path, adapted: clip.Clip) -> None:
    names = {name.rsplit(".", 1)[1] for name, value in adapted.named_parameters() if value.requires_grad}
    assert names == {"A", "B"}
    before = _read(folder).model.state_dict()
    lora_attention.merge(adapted.model)
    after = adapted.model.state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 4
    assert all(name.endswith("in_proj_weight") for name in changed)
    for name in changed:
        q, k, v = (after[name] - before[name]).chunk(3)
        assert q.abs().max() > 0.1
        assert v.abs().max() > 0.1
        assert not k.any()


def test_merged_and_unmerged_agree(adapted: clip.Clip, images: torch.Tensor) -> None:
    adapted.train()
    for module in adapted.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    low_rank = adapted(images)
    merged_on_the_fly = adapted.eval()(images)
    lora_attention.merge(adapted.model)
    merged = adapted.train().eval()(images)
    plain = adapted.model.visual.transformer.resblocks[0].attn
    assert isinstance(plain, torch.nn.MultiheadAttention)
    assert low_rank.std() > 0.1
    assert torch.allclose(low_rank, merged, atol=1e-4)
    assert torch.allclose(merged_on_the_fly, merged, atol=1e-4)


def test_dropout_on_the_lora_acts_in_training_only(adapted: clip.Clip, images: torch.Tensor) -> None:
    adapted.eval()
    assert torch.equal(adapted(images), adapted(images))
    adapted.train()
    assert not torch.allclose(adapted(images), adapted(images), atol=1e-3)
    text = adapted.class_features()
    assert not torch.allclose(text, adapted.class_features(), atol=1e-3)


def test_text_features_are_kept_in_evaluation_and_forgotten_by_training(adapted: clip.Clip) -> None:
    first = adapted.eval().class_features()
    assert adapted.class_features() is first
    with torch.no_grad():
        next(
            value for name, value in adapted.named_parameters() if name.startswith("model.tr") and name[-1] == "B"
        ).add_(1)
    assert not torch.allclose(adapted.train().eval().class_features(), first)


def test_saved_weights_load_in_stock_open_clip_and_agree(
    adapted: clip.Clip, images: torch.Tensor, tmp_path: Path
) -> None:
    import open_clip

    expected = adapted.eval()(images)
    record = {"classifier": "clip_lora", "classes": toy.CLASSES, "prompts": PROMPTS}
    classifiers.save(adapted, tmp_path, record)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(PROMPTS)
    model.eval()
    logits = model.get_logits((images - 0.5) / 0.5, tokens)[0]
    assert torch.allclose(logits, expected, atol=1e-4)
    written = json.loads((tmp_path / "classifier.json").read_text())
    assert written["base"] == "toy"
    assert len(written["base_sha256"]) == 64
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    predictor = classifiers.load(tmp_path)
    again = model.get_logits((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5, tokens)[0]
    assert predictor.logits(pixels, batch=2) == pytest.approx(again.detach().numpy(), abs=1e-4)


@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_truncating_prompts_changes_nothing_and_saves_work(tmp_path: Path, text: dict[str, Any]) -> None:
    toy.write_clip(tmp_path, **text)
    classifier = _read(tmp_path)
    seen = []
    classifier.model.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with torch.no_grad():
        short = clip.encode_captions(classifier.model, classifier.tokens)
        whole = classifier.model.encode_text(classifier.tokens, normalize=True)
    assert [shape[1] for shape in seen] == [12, 77]
    assert torch.allclose(short, whole, atol=1e-6)
    # The captions differ, so that agreement says something.
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_a_tower_that_looks_ahead_is_not_truncated(tmp_path: Path) -> None:
    toy.write_clip(tmp_path, no_causal_mask=True)
    classifier = _read(tmp_path)
    with torch.no_grad():
        features = clip.encode_captions(classifier.model, classifier.tokens)
        assert torch.equal(features, classifier.model.encode_text(classifier.tokens, normalize=True))


def test_vit_b_16_gets_the_published_number_of_parameters() -> None:
    import open_clip

    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(name))
            base = sum(value.numel() for value in model.parameters())
            assert lora_attention.adapt(model, 16, 32, 0.1) == 983_040
        # 86,192,640 of the images, 63,428,096 of the text, and the logits' scale.
        assert base == 149_620_737
        adapted = [module for module in model.modules() if isinstance(module, lora_attention.LoraAttention)]
        assert [module.attention.embed_dim for module in adapted] == [768] * 12 + [512] * 12


@pytest.fixture(scope="module")
def text_tower() -> Any:
    """ViT-B/16's text tower, random, beside one layer for images, with LoRA on both."""
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["vision_cfg"] |= {"layers": 1, "width": 64, "head_width": 32, "image_size": 32}
    model = open_clip.CLIP(**config)
    lora_attention.adapt(model, 16, 32, 0.1)
    for name, value in model.named_parameters():
        if name.endswith(".B"):
            value.data.normal_(0, 0.02)
    return model


def test_the_levers_hold_for_the_text_tower_of_vit_b_16(text_tower: Any) -> None:
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-B-16")(PROMPTS)
    seen = []
    hook = text_tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        text_tower.eval()
        short = clip.encode_captions(text_tower, tokens)
        assert torch.allclose(short, text_tower.encode_text(tokens, normalize=True), atol=1e-5)
    assert seen == [(3, 12, 512), (3, 77, 512)]

    def step() -> tuple[int, dict[str, torch.Tensor]]:
        """Bytes kept for the backward pass, and the gradients, dropout included."""
        kept = []
        text_tower.train().zero_grad()
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            loss = (clip.encode_captions(text_tower, tokens) @ torch.ones(512)).square().sum()
        loss.backward()
        names = text_tower.transformer.named_parameters()
        return sum(kept), {name: value.grad.clone() for name, value in names if value.grad is not None}

    plain = step()
    lora_attention.checkpoint_text(text_tower)
    saving = step()
    text_tower.transformer.grad_checkpointing = False
    hook.remove()
    assert len(saving[1]) == 24
    assert saving[0] < 0.1 * plain[0]
    for name, gradient in plain[1].items():
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, saving[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("memory", "saves"), [([], False), (["gradient_checkpointing"], True)])
def test_the_row_says_whether_activations_are_kept(
    folder: Path, tmp_path: Path, memory: list[str], saves: bool
) -> None:
    row = toy.params(models__bundled__clip=str(folder), models__bundled__memory=memory).base
    classifier = classifiers.build("clip_lora", row, _split(tmp_path), tmp_path)
    assert isinstance(classifier, clip.Clip)
    assert classifier.model.transformer.grad_checkpointing is saves
    assert classifier.model.visual.transformer.grad_checkpointing is False


def test_a_tower_that_cannot_be_adapted_is_refused() -> None:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("RN50"))
    said = "this CLIP's image tower has no attention that clip_lora can adapt; set clip_lora.towers to text, or choose"
    for towers in ("both", "image"):
        with pytest.raises(InputError, match=f"{said} a ViT"):
            lora_attention.adapt(model, 2, 4, 0.0, towers)


@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_lora_goes_on_the_towers_that_the_row_names(folder: Path, tmp_path: Path, towers: str) -> None:
    row = toy.params(models__bundled__clip=str(folder), models__bundled__train__clip_lora__towers=towers)
    classifier: Any = classifiers.build("clip_lora", row.base, _split(tmp_path), tmp_path)
    learned = {name for name, value in classifier.named_parameters() if value.requires_grad}
    of_image = {name for name in learned if name.startswith("model.visual.")}
    assert bool(of_image) is (towers != "text")
    assert bool(learned - of_image) is (towers != "image")
    before = classifier.eval().class_features().clone()
    encoded: list[int] = []
    classifier.model.transformer.register_forward_pre_hook(lambda _, args: encoded.append(1))
    rng = np.random.default_rng(0)
    data = arrays.Labelled(np.stack([toy.picture(i % 3, rng) for i in range(12)]), np.arange(12) % 3, ("",) * 12)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": ("towers",)}
    course = row.base.train.rows["clip_lora"].course(12)
    fit.fit(classifier, [fit.Source("real", data, 1.0, 1.0)], data, course, **more)
    # Captions that do not change are not read again.
    assert bool(encoded) is (towers != "image")
    assert torch.equal(classifier.eval().class_features(), before) is (towers == "image")


def test_lora_on_the_text_tower_alone_fits_a_clip_with_a_resnet(tmp_path: Path) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "image_size": 32, "patch_size": None}
    toy.write_clip(tmp_path / "clip", vision=vision)
    row = toy.params(models__bundled__clip="clip", models__bundled__train__clip_lora__towers="text")
    classifier: Any = classifiers.build("clip_lora", row.base, _split(tmp_path), tmp_path)
    before = {name: value.clone() for name, value in classifier.model.visual.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    data = arrays.Labelled(pixels, np.arange(12) % 3, ("",) * 12)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": ("resnet",)}
    course = row.base.train.rows["clip_lora"].course(12)
    history = fit.fit(classifier, [fit.Source("real", data, 1.0, 1.0)], data, course, **more)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in classifier.model.visual.state_dict().items())
    classifiers.save(
        classifier,
        tmp_path / "saved",
        {
            "classifier": "clip_lora",
            "classes": toy.CLASSES,
            "prompts": [f"a photo of a {name}" for name in toy.CLASSES],
        },
    )
    assert classifiers.load(tmp_path / "saved").logits(pixels) == pytest.approx(history.logits[6], abs=1e-4)


def test_bfloat16_trains_and_scores_and_leaves_logits_in_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does, done by the CPU's autocast."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    data = arrays.Labelled(pixels, np.arange(12) % 3, tuple(map(str, range(12))))
    row = toy.params(models__bundled__train__clip_lora__steps=4).base.train.rows["clip_lora"]
    results = []
    for enabled in (False, True):
        entered = []

        def autocast(where: torch.device, enabled: bool = enabled, entered: list[str] = entered) -> torch.autocast:
            entered.append(where.type)
            return torch.autocast("cpu", torch.bfloat16, enabled=enabled)

        monkeypatch.setattr(fit, "autocast", autocast)
        monkeypatch.setattr(classifiers, "autocast", autocast)
        torch.manual_seed(0)
        classifier = _read(folder)
        lora_attention.adapt(classifier.model, 2, 4, 0.0)
        history = fit.fit(
            classifier,
            [fit.Source("real", data, 1.0, 1.0)],
            data,
            row,
            selections=2,
            invariances=(),
            crop=1.0,
            seed=("bf16",),
        )
        logits = classifiers.Predictor(classifier, toy.CLASSES).logits(pixels)
        assert len(entered) == 4 + 2 + 1
        assert logits.dtype == np.float32
        assert all(value.dtype == torch.float32 for value in classifier.parameters())
        results.append((history.losses, logits))
    assert results[0][0] == pytest.approx(results[1][0], rel=0.02)
    assert results[0][0] != results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], abs=0.15)
    # A logit rounded to bfloat16 would have an empty lower half of its bits.
    assert (results[1][1].view(np.uint32) & 0xFFFF).any()


def test_a_folder_that_is_no_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an open_clip folder"):
        _read(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (48, 16), (30, 30)])
def test_open_clip_s_own_transform_of_a_saved_folder_is_ours(tmp_path: Path, width: int, height: int) -> None:
    import open_clip
    from PIL import Image

    toy.write_clip(tmp_path / "base")
    config = json.loads((tmp_path / "base/open_clip_config.json").read_text())
    # As the bundled base's, and as those of SigLIP: images are squashed there, and cropped here.
    config["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.4] * 3}
    (tmp_path / "base/open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "base/preprocessor_config.json").write_text('{"do_center_crop": false}')
    classifier = _read(tmp_path / "base")
    (tmp_path / "saved").mkdir()
    clip.save(classifier, tmp_path / "saved")
    assert not (tmp_path / "saved/preprocessor_config.json").exists()
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = torch.from_numpy(resize_crop(image, classifier.size).copy()).permute(2, 0, 1) / 255
    ours = (ours - classifier.shift) / classifier.scale
    assert torch.allclose(transform(image), ours, atol=1e-6)
    squashed = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'base'}")[2](image)
    assert not torch.allclose(squashed, ours, atol=0.1)


def test_a_saved_folder_is_read_as_it_was(folder: Path, tmp_path: Path, images: torch.Tensor) -> None:
    classifier = _read(folder).eval()
    clip.save(classifier, tmp_path)
    again = _read(tmp_path).eval()
    assert (again.mean, again.std, again.size) == (classifier.mean, classifier.std, classifier.size)
    assert torch.equal(again(images), classifier(images))


def test_several_captions_of_a_class_are_averaged_as_unit_features(tmp_path: Path, images: torch.Tensor) -> None:
    import open_clip

    folder = tmp_path / "clip"
    toy.write_clip(folder)
    model = toy.params(models__bundled__clip=str(folder)).base
    split = _split(tmp_path)
    alone = classifiers.build("clip_zeroshot", model, split, tmp_path).eval()
    same = dataclasses.replace(split, clip_templates=(split.template,))
    assert torch.equal(classifiers.build("clip_zeroshot", model, same, tmp_path).eval()(images), alone(images))
    templates = ("a photo of a {class}.", "{class} texture.")
    several = dataclasses.replace(split, clip_templates=templates)
    ours = classifiers.build("clip_zeroshot", model, several, tmp_path).eval()
    stock = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        rows = []
        for name in split.classes:
            features = stock.encode_text(tokenize([template.format(**{"class": name}) for template in templates]))
            mean = (features / features.norm(dim=-1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm())
        seen = stock.encode_image((images - 0.5) / 0.5)
        wanted = stock.logit_scale.exp() * (seen / seen.norm(dim=-1, keepdim=True)) @ torch.stack(rows).T
        found = ours(images)
    assert (found - wanted).abs().max() < 1e-3
    assert (found - alone(images)).abs().max() > 1e-3
    # A trained classifier starts from the generator's caption, as in DataDream.
    assert torch.equal(clip.build(tmp_path, str(folder), several).eval()(images), alone(images))
