"""ResNet-20 and the linear probe: their layers, and back from disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from dreamset import classifiers
from dreamset.classifiers import clip, convnet_d3, fit
from dreamset.classifiers.augment import Augment
from dreamset.classifiers.siamese import Siamese
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data import arrays
from dreamset.data.splits import Split

PROMPTS = ["a photo of a bar", "a photo of a rather long plank of old wood", "spot"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    toy.write_clip(path)
    return path


def _split(root: Path, **changes: Any) -> Split:
    split = toy.write_splits(Workspace.at(root))
    return Split(**(split.__dict__ | changes))


def _build(name: str, folder: Path, root: Path, **row: Any) -> Any:
    """A classifier on the CLIP of a folder, with some keys of its row."""
    changed = {f"models__bundled__train__{name}__{key}": value for key, value in row.items()}
    params = toy.params(models__bundled__clip=str(folder), **changed)
    return classifiers.build(name, params.base, _split(root), root)


def test_a_linear_probe_learns_its_head_alone_and_comes_back_from_disk(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    params = toy.params(models__bundled__clip=str(folder))
    split = _split(root)
    probe = classifiers.build("linear_probe", params.base, split, root)
    assert [name for name, value in probe.named_parameters() if value.requires_grad] == ["probe.weight", "probe.bias"]
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    assert not classifiers.Predictor(probe, split.classes).logits(pixels).any()  # it starts from nothing
    tower = {name: value.clone() for name, value in probe.model.state_dict().items()}
    data = arrays.Labelled(pixels, np.arange(12) % 3, tuple(map(str, range(12))))
    row = toy.params(models__bundled__train__linear_probe__steps=30).base.train.rows["linear_probe"]
    sources = [fit.Source("real", data, 1.0, 1.0)]
    history = fit.fit(probe, sources, data, row, selections=1, invariances=(), crop=1.0, seed=("probe",))
    assert history.losses[-1] < history.losses[0]
    assert all(torch.equal(value, tower[name]) for name, value in probe.model.state_dict().items())
    prompts = [split.prompt(label) for label in range(3)]
    record = {"classifier": "linear_probe", "classes": split.classes, "prompts": prompts, "temperature": 2.0}
    classifiers.save(probe, tmp_path / "saved", record)
    loaded = classifiers.load(tmp_path / "saved")
    logits = loaded.logits(pixels)
    assert np.array_equal(logits, history.logits[30])
    probabilities = loaded.probabilities(logits)
    assert probabilities.sum(1) == pytest.approx(1)
    assert probabilities.dtype == np.float32
    ratio = np.log(probabilities[:, 0] / probabilities[:, 1])
    assert ratio == pytest.approx((logits[:, 0] - logits[:, 1]) / 2, abs=1e-4)


def test_resnet20_has_twenty_layers_and_comes_back_from_disk(tmp_path: Path) -> None:
    params = toy.params()
    network = classifiers.build("resnet20", params.base, _split(tmp_path), tmp_path)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 20
    network.train()(torch.rand(8, 3, 16, 16))  # moves the running statistics, which must be saved
    record = {"classifier": "resnet20", "classes": toy.CLASSES, "prompts": PROMPTS}
    classifiers.save(network, tmp_path / "net", record)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    expected = classifiers.Predictor(network, toy.CLASSES).logits(pixels)
    assert classifiers.load(tmp_path / "net").logits(pixels) == pytest.approx(expected, abs=1e-5)


def test_resnet20_of_width_16_has_the_published_size(tmp_path: Path) -> None:
    params = toy.params(models__bundled__train__resnet20__width=16)
    network = classifiers.build("resnet20", params.base, _split(tmp_path, classes=tuple("abcdefghij")), tmp_path)
    assert 0.26e6 < sum(value.numel() for value in network.parameters()) < 0.28e6


@pytest.mark.parametrize(("classes", "size", "parameters"), [(100, 32, 504_420), (200, 64, 1_938_120)])
def test_convnet_d3_has_the_published_size(classes: int, size: int, parameters: int) -> None:
    network = convnet_d3.network(classes, 128, size, 0.0)
    assert sum(value.numel() for value in network.parameters()) == parameters


@pytest.mark.parametrize("size", [8, 16, 30])
def test_convnet_d3_norms_each_image_and_channel_and_comes_back_from_disk(tmp_path: Path, size: int) -> None:
    network: Any = convnet_d3.network(3, 8, size, 0.0)
    seen: list[torch.Tensor] = []
    network.norms[0].register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    network(torch.rand(4, 3, size, size))
    assert torch.allclose(seen[0].mean((2, 3)), torch.zeros(4, 8), atol=1e-5)
    assert torch.allclose(seen[0].var((2, 3), correction=0), torch.ones(4, 8), atol=1e-2)
    classifiers.save(network, tmp_path / "net", {"classifier": "convnet_d3", "classes": toy.CLASSES})
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    expected = classifiers.Predictor(network, toy.CLASSES).logits(pixels)
    assert classifiers.load(tmp_path / "net").logits(pixels) == pytest.approx(expected, abs=1e-5)


def test_a_row_says_how_its_network_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvNetD3 by SGD with momentum, in siamese augmentation, at a rate that falls to a tenth in the middle."""
    rates: list[tuple[float, float, float]] = []
    kinds: list[str] = []
    plain = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *rest: Any) -> Any:
        rates.append(tuple(self.param_groups[0][key] for key in ("lr", "momentum", "weight_decay")))
        return plain(self, *rest)

    def augmented(self: Siamese, images: torch.Tensor, size: int) -> torch.Tensor:
        kinds.append("siamese")
        return images

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    monkeypatch.setattr(Siamese, "__call__", augmented)
    params = toy.params(models__bundled__train__convnet_d3__steps=10)
    network = classifiers.build("convnet_d3", params.base, _split(tmp_path), tmp_path)
    rng = np.random.default_rng(0)
    data = arrays.Labelled(np.stack([toy.picture(i % 3, rng) for i in range(24)]), np.arange(24) % 3, ("",) * 24)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": ("convnet",)}
    course = params.base.train.rows["convnet_d3"].course(24)
    history = fit.fit(network, [fit.Source("real", data, 1.0, 1.0)], data, course, **more)
    assert rates == [(pytest.approx(rate), 0.9, 5e-4) for rate in [0.01] * 5 + [0.001] * 5]
    assert len(kinds) == 10
    assert history.losses[-1] < history.losses[0]


def test_predictor_resizes_what_it_is_given(tmp_path: Path) -> None:
    network = classifiers.build("resnet20", toy.params().base, _split(tmp_path), tmp_path)
    predictor = classifiers.Predictor(network, toy.CLASSES)
    large = np.full((2, 40, 40, 3), 90, np.uint8)
    assert predictor.logits(large) == pytest.approx(predictor.logits(large[:, :16, :16]), abs=1e-5)
    assert predictor.logits(large[:0]).shape == (0, 3)


def test_classifier_tuning_starts_as_the_zero_shot_clip_and_learns_from_it(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    tuned, as_it_is = (_build(name, folder, tmp_path) for name in ("classifier_tuning", "clip_zeroshot"))
    started, wanted = (classifiers.Predictor(each, toy.CLASSES).logits(pixels) for each in (tuned, as_it_is))
    assert started == pytest.approx(wanted, abs=1e-4)
    student, teacher = tuned.train().with_teacher(torch.rand(5, 3, 16, 16))
    assert torch.allclose(student, teacher, atol=1e-4)
    assert student.requires_grad and not teacher.requires_grad
    # Whoever answers as its teacher does has nothing to learn from soft labels; from the labels it has.
    sources = [fit.Source("real", arrays.Labelled(pixels, np.arange(12) % 3, ("",) * 12), 1.0, 1.0)]
    largest = {}
    for share in (1.0, 0.5):
        tuned = _build("classifier_tuning", folder, tmp_path, soft=share)
        fit._Loader(tuned, sources, 12, Augment((), 1.0, 0), ("soft",)).loss().backward()
        largest[share] = float(tuned.probe.weight.grad.abs().max())
    assert largest[1.0] < 1e-4 < 1e-2 < largest[0.5]


@pytest.mark.parametrize("name", ["linear_probe", "classifier_tuning", "clip_lora", "prompt_tuning", "vpt"])
def test_labels_of_a_clip_are_smoothed_where_its_row_says_so(folder: Path, tmp_path: Path, name: str) -> None:
    assert _build(name, folder, tmp_path).label_smoothing == 0
    assert _build(name, folder, tmp_path, label_smoothing=0.1).label_smoothing == 0.1


def test_context_vectors_stand_where_the_words_of_a_caption_would(folder: Path, tmp_path: Path) -> None:
    tuned = _build("prompt_tuning", folder, tmp_path, tokens=4, scope="unified")
    assert [name for name, value in tuned.named_parameters() if value.requires_grad] == ["context"]
    assert tuned.context.shape == (4, 16)
    assert float(tuned.context.detach().std()) == pytest.approx(0.02, rel=0.4)
    captions = clip.read(tuned.base, [f"a photo of a {name}" for name in toy.CLASSES])
    words = captions.tokens[0, 1:5]  # the first token begins the text
    tuned.context.data.copy_(tuned.model.token_embedding(words))
    with torch.no_grad():
        assert torch.allclose(tuned.eval().class_features(), captions.eval().class_features(), atol=1e-5)
    own = _build("prompt_tuning", folder, tmp_path, tokens=4, scope="class_specific")
    assert own.context.shape == (3, 4, 16)
    own.context.data.copy_(tuned.context)
    with torch.no_grad():
        assert torch.allclose(own.eval().class_features(), tuned.class_features(), atol=1e-5)


@pytest.mark.parametrize(("depth", "blocks"), [("shallow", 1), ("deep", 2)])
def test_visual_prompts_stand_behind_the_class_token_of_a_frozen_tower(
    folder: Path, tmp_path: Path, depth: str, blocks: int
) -> None:
    tuned = _build("vpt", folder, tmp_path, depth=depth, tokens=3)
    assert [name for name, value in tuned.named_parameters() if value.requires_grad] == ["prompts"]
    assert tuned.prompts.shape == (blocks, 3, 16)
    bound = (6 / (3 * 4 * 4 + 16)) ** 0.5
    assert 0.8 * bound < float(tuned.prompts.detach().abs().max()) <= bound
    seen = []
    for module in (tuned.model.visual.ln_pre, *tuned.model.visual.transformer.resblocks):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = torch.rand(2, 3, 16, 16)
    tuned.eval()(images).sum().backward()
    # The class token, three tokens, 4 x 4 patches; a norm comes first, then the blocks.
    assert [tuple(x.shape) for x in seen] == [(2, 20, 16)] * 3
    assert torch.equal(seen[0][1, 1:4], tuned.prompts[0])
    assert torch.equal(seen[2][0, 1:4], tuned.prompts[-1]) is (depth == "deep")
    assert all(float(block.abs().max()) > 0 for block in tuned.prompts.grad)
    plain = clip.read(tuned.base, [f"a photo of a {name}" for name in toy.CLASSES]).eval()
    with torch.no_grad():
        assert torch.allclose(tuned.class_features(), plain.class_features(), atol=1e-6)
        assert not torch.allclose(tuned(images), plain(images), atol=1e-2)


def test_visual_prompts_need_a_vision_transformer(resnet: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its image tower is no vision transformer .* choose such a clip") as caught:
        _build("vpt", resnet, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("classifier_tuning", {"soft": 0.1, "lr": 0.01}),
        ("prompt_tuning", {"scope": "class_specific", "lr": 0.1}),
        ("prompt_tuning", {"scope": "unified", "lr": 0.1}),
        ("vpt", {"depth": "shallow", "lr": 0.1}),
        ("vpt", {"depth": "deep", "lr": 0.1}),
    ],
)
def test_what_is_learned_on_a_frozen_clip_comes_back_from_disk(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    """On the bundled CLIP, for a random one can tell nothing apart; its digits 1, 7 and 0 are bars and discs."""
    torch.manual_seed(0)
    schedule = toy.params(
        models__bundled__clip=str(toy.ROOT / "models/base/clip"),
        **{f"models__bundled__train__{name}__{key}": value for key, value in row.items()},
    )
    split = _split(tmp_path, classes=("1", "7", "0"), template="a photo of the digit {class}")
    learner: Any = classifiers.build(name, schedule.base, split, tmp_path)
    tower = {key: value.clone() for key, value in learner.model.state_dict().items()}
    rng = np.random.default_rng(0)
    pixels = np.stack([toy.picture(index % 3, rng) for index in range(24)])
    data = arrays.Labelled(pixels, np.arange(24) % 3, ("",) * 24)
    course = dataclasses.replace(schedule.base.train.rows[name].course(24), steps=40)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": (name,)}
    history = fit.fit(learner, [fit.Source("real", data, 1.0, 1.0)], data, course, **more)
    assert np.mean(history.losses[-8:]) < 0.8 * np.mean(history.losses[:8])
    assert all(torch.equal(value, tower[key]) for key, value in learner.model.state_dict().items())
    prompts = [split.prompt(label) for label in range(3)]
    record = {"classifier": name, "classes": split.classes, "prompts": prompts}
    classifiers.save(learner, tmp_path / "saved", record)
    assert classifiers.load(tmp_path / "saved").logits(pixels) == pytest.approx(history.logits[40], abs=1e-4)


def test_a_context_that_does_not_fit_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompt_tuning.tokens: 80 vectors and the class '.*; give 74 at most\.$"):
        _build("prompt_tuning", folder, tmp_path, tokens=80)
    toy.write_clip(tmp_path / "clip", no_causal_mask=True)
    with pytest.raises(InputError, match="takes no learned vectors; choose another clip"):
        _build("prompt_tuning", tmp_path / "clip", tmp_path)


def test_distillation_is_the_cross_entropy_at_the_temperature() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    log = torch.log_softmax(student / 2, -1)
    share = torch.softmax(teacher / 2, -1)
    assert fit.distillation(student, teacher, 2.0) == pytest.approx(float(-4 * (share * log).sum()), rel=1e-6)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with a ResNet tower, as CLIP-RN50 has."""
    path = tmp_path_factory.mktemp("resnet")
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "image_size": 32, "patch_size": None}
    toy.write_clip(path, vision=vision)
    return path


@pytest.mark.parametrize("name", ["linear_probe", "classifier_tuning", "prompt_tuning"])
def test_a_resnet_clip_keeps_its_tower_and_its_running_statistics(resnet: Path, tmp_path: Path, name: str) -> None:
    """Training mode would change running statistics without any gradient."""
    classifier = _build(name, resnet, tmp_path)
    assert classifier.size == 32
    before = {key: value.clone() for key, value in classifier.model.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    sources = [fit.Source("real", arrays.Labelled(pixels, np.arange(12) % 3, ("",) * 12), 1.0, 1.0)]
    course = toy.params().base.train.rows[name].course(12)
    more: dict[str, Any] = {"selections": 1, "invariances": (), "crop": 1.0, "seed": (name,)}
    learned = {key: value.clone() for key, value in classifier.named_parameters() if value.requires_grad}
    fit.fit(classifier, sources, dataclasses.replace(sources[0].data), course, **more)
    assert any(not torch.equal(value, learned[key]) for key, value in classifier.named_parameters() if key in learned)
    after = classifier.model.state_dict()
    assert any("running_mean" in key for key in after)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    images = torch.rand(6, 3, 32, 32)
    assert torch.equal(classifier.train()(images), classifier.eval()(images))
