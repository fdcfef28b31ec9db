"""The classifier to take away: which one it is, its threshold, and a card whose code runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import delivered
import toy
from dreamset import classifiers, deliver, train
from dreamset.classifiers import clip_lora
from dreamset.classifiers.calibration import fit_temperature
from dreamset.core.errors import InputError
from dreamset.core.files import write_csv, write_json
from dreamset.core.images import Decoding, decode, read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.workspace import Workspace
from dreamset.data import cards, classifier_card
from dreamset.data.runs import REAL_STRONG, Run
from dreamset.data.splits import Sample, Split, write_split
from dreamset.metrics import claims
from dreamset.params.knob_words import NOT_ANONYMOUS
from dreamset.sweep import crossval


@pytest.mark.parametrize("outcome", ["helps", "does_not_help", "cannot_tell"])
def test_synthetic_images_are_in_it_only_where_they_help(tmp_path: Path, outcome: str) -> None:
    workspace = delivered.world(tmp_path, "resnet20", outcome)
    arm, kind, accuracy = (
        ("datadream_dset", "both_strong", 0.875) if outcome == "helps" else ("real", "real_strong", 0.75)
    )
    source = workspace.classifiers(arm) / f"{kind}_resnet20"
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (source, workspace.classifier))
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)
    result = json.loads(workspace.result("deliver").read_text())
    assert (result["arm"], result["train_on"], result["accuracy"]) == (arm, kind, accuracy)
    card = (workspace.classifier / "README.md").read_text()
    assert f"Accuracy {accuracy:.1%} (95% interval 50.0% to 90.0%) on 24 test images" in card
    assert ("learned from no image that it drew" in card) == (outcome != "helps")
    # What was trained is as it was.
    assert "threshold" not in json.loads((source / "classifier.json").read_text())


def test_the_card_says_what_its_user_must_know(tmp_path: Path) -> None:
    workspace = delivered.world(tmp_path, "resnet20", models__bundled__licence="sai-nc-community", accept_licence=True)
    card = (workspace.classifier / "README.md").read_text()
    header = card.split("---")[1]
    assert "license: other" in header and "license_name: sai-nc-community" in header
    for said in (
        "**These images cannot tell: ",
        " Trained on the real images and those of datadream_dset",
        "4 to train, 3 to select",
        '"bar", "plank", "spot"',
        "Commercial use is not allowed",
        "may reproduce the images",
        "logits / 1.7",
        "Threshold 0: it never abstains, for 9 selection images are too few to choose one by; 20 are needed.",
    ):
        assert said in card
    assert str(tmp_path) not in card


def test_the_folds_estimate_is_called_that() -> None:
    row = {"estimate": 0.9, "low": 0.8, "high": 0.95, "confidence": 0.95, "protocol": "cv", "images": 48}
    assert "the folds' estimate on 48 labelled images" in classifier_card._accuracy(row)
    assert "but for those that selection takes" in classifier_card._accuracy(row)
    assert "trained afterwards, on 36 of them" in classifier_card._accuracy(row | {"learned": 36})
    assert "trained afterwards, on all of them" in classifier_card._accuracy(row | {"learned": 48})


def test_the_card_says_what_it_learned_from(tmp_path: Path) -> None:
    workspace = delivered.world(tmp_path, "resnet20", "helps")
    record = json.loads((workspace.classifier / "classifier.json").read_text())
    assert "this classifier learned from images that it drew" in classifier_card.card(record, "")
    found = classifier_card.card(record | {"origin": "retrieval"}, "")
    assert "this classifier learned from no image that it drew, but from images found for the shots" in found
    alone = classifier_card.card(record | {"arm": "real", "train_on": "real_strong"}, "")
    assert "Trained on real images alone, strongly augmented, because" in alone


@pytest.mark.parametrize(("name", "size"), [("resnet20", 16), *delivered.PROGRAMS])
def test_the_code_in_the_card_agrees_without_dreamset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, size: int
) -> None:
    own = {f"models__bundled__train__{name}__size": size} if classifiers.ROWS[name].from_scratch else {}
    workspace = delivered.world(tmp_path, name, **own)
    folder = workspace.classifier
    photo = delivered.wide(tmp_path / "photos", 3)[0]
    photo.rename(folder / "photo.png")
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(delivered.snippet_of(folder), "card", "exec"), scope)
    predictor = classifiers.load(folder)
    expected = predictor.logits(np.stack([resize_crop(read_rgb(folder / "photo.png"), 16)]))
    answer = scope["logits"](scope["read"]("photo.png")).detach().numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    probabilities = predictor.probabilities(expected)[0]
    label, probability = capsys.readouterr().out.split()
    assert label == toy.CLASSES[probabilities.argmax()]
    assert float(probability) == pytest.approx(probabilities.max(), abs=1e-5)


def test_a_stock_open_clip_gets_the_same_features(tmp_path: Path) -> None:
    import open_clip
    import torch

    folder = delivered.world(tmp_path, "clip_lora").classifier
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of a {name}" for name in toy.CLASSES])
    with torch.no_grad():
        texts = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
        head = model.logit_scale.exp() * texts
    np.testing.assert_allclose(load_file(folder / clip_lora.HEAD)["weight"], head, atol=1e-4)


def test_a_card_counts_what_is_there() -> None:
    assert cards.span([2, 2]) == 2
    assert cards.span([1, 3]) == "1 to 3"


def test_a_card_tells_no_folder_of_the_machine() -> None:
    assert cards.public_name("/home/anna/models/sd") == "sd"
    assert cards.public_name("models/base/sd") == "models/base/sd"
    assert cards.public_name("hub:owner/name@abc") == "hub:owner/name@abc"


def made_up(confidences: list[float], right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two classes with these tops, and labels that make them right or wrong."""
    top = np.array(confidences)
    return np.stack([top, 1 - top], 1), np.where(right, 0, 1)


def test_the_threshold_is_the_lowest_that_is_right_often_enough() -> None:
    # Wrong up to 0.70, right above it: 10 of 50 are wrong.
    confidences = [0.61] * 10 + [0.9] * 40
    probabilities, labels = made_up(confidences, [False] * 10 + [True] * 40)
    chosen = deliver.choose_threshold(probabilities, labels, 0.95)
    assert chosen.threshold == 0.62
    assert "40 of the 40 kept of 50 selection images were right (95% wanted)" in chosen.reason
    # 42 of 50 right is enough for 0.8, where nothing need be left out.
    assert deliver.choose_threshold(probabilities, labels, 0.8).threshold == 0


@pytest.mark.parametrize(("images", "words"), [(0, "no labels were set apart"), (19, "20 are needed")])
def test_it_never_abstains_where_too_few_images_could_choose(images: int, words: str) -> None:
    chosen = deliver.choose_threshold(*made_up([0.9] * images, [True] * images), 0.95)
    assert chosen.threshold == 0
    assert words in chosen.reason


def test_it_never_abstains_where_no_threshold_would_do() -> None:
    # The most confident ones are wrong as often as the rest: 15 right ones at the top would not be enough either.
    chosen = deliver.choose_threshold(*made_up([0.6] * 30 + [0.9] * 15, [False] * 30 + [True] * 15), 0.95)
    assert chosen.threshold == 0
    assert "no threshold kept 20 with 95% right" in chosen.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"differences": []}, "holds no verdict; run `dreamset evaluate` again"),
        ({"differences": None}, "is not what `dreamset evaluate` writes .* run `dreamset evaluate` again"),
        ({"differences": [{"of": "both", "minus": "real", "difference": 0, "low": 0, "high": 0}]}, "'both' is no run"),
        ({"runs": []}, "says nothing of real/real_strong/resnet20"),
    ],
)
def test_an_evaluation_that_does_not_say(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    workspace = delivered.world(tmp_path, "resnet20")
    write_json(workspace.result("evaluate"), delivered.evaluation() | change)
    with pytest.raises(InputError, match=words):
        deliver.run(toy.params(), workspace, crossval.run)


def test_where_nothing_was_set_apart_folds_of_the_shots_give_temperature_and_threshold(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise InputError("an image is missing")

    split = toy.write_splits(workspace)
    only = {"train__baselines": [], "models__bundled__clip": "clip"}
    params = toy.params(deliver__calibrate=True, deliver__precision=0.6, **only)
    toy.write_clip(workspace.root / "clip")
    train.run(params, workspace, "real", [REAL_STRONG])
    write_json(workspace.result("evaluate"), delivered.evaluation())
    summary = deliver.run(params, workspace, crossval.run)
    record = json.loads((workspace.classifier / "classifier.json").read_text())
    run = Run("real", REAL_STRONG, "resnet20")
    logits, labels = train.held_out(params, workspace, [run])[run], np.array([s.label for s in split.train])
    assert np.bincount(labels).tolist() == np.bincount([sample.label for sample in split.train]).tolist()
    assert record["temperature"] == summary["temperature"] == round(fit_temperature(logits, labels), 4) != 1
    assert record["temperature_images"] == len(split.train) == 12
    # Not those of the classifier itself, which has learned from these images.
    held = classifiers.load(workspace.classifiers("real") / run.folder)
    assert held.temperature == 1
    assert "12 shots, each held out of a fold, " in record["threshold_reason"]
    assert (
        f"logits / {record['temperature']:g} (the temperature, fitted on 12 images that were held out)"
        in (workspace.classifier / "README.md").read_text()
    )
    # Any other fault on the way is told as what it is.
    with monkeypatch.context() as patched, pytest.raises(InputError, match="an image is missing"):
        patched.setattr(train, "_over_folds", missing)
        deliver.run(params, workspace, crossval.run)
    # What cannot be divided is delivered without, and the card says why.
    write_split(workspace.splits, replace(split, train=tuple(replace(s, group="one") for s in split.train)))
    record = deliver.run(params, workspace, crossval.run)
    assert record["temperature"] == 1
    assert "cannot be divided into folds: class 'bar' has shots of one group only" in record["threshold_reason"]


def test_a_classifier_without_temperature_is_trained_again(workspace: Workspace) -> None:
    split = toy.write_splits(workspace)
    folder = delivered.train(workspace, split, "real", "real_strong", "resnet20")
    record = json.loads((folder / "classifier.json").read_text())
    del record["temperature"]
    write_json(folder / "classifier.json", record)
    write_json(workspace.result("evaluate"), delivered.evaluation())
    with pytest.raises(InputError, match="holds no temperature; run `dreamset train real` again"):
        deliver.run(toy.params(), workspace, crossval.run)


@pytest.mark.parametrize(
    ("seeds", "low", "p", "fixed", "arm"),
    [
        (6, 0.01, 0.03125, False, "datadream_dset"),
        (6, 0.01, 0.0625, False, "real"),
        (6, -0.01, 0.03125, False, "real"),
        (5, 0.01, 0.0625, False, "real"),
        (6, 0.01, 0.04, True, "datadream_dset"),
        (6, 0.01, 0.0625, True, "real"),
    ],
)
def test_the_table_over_seeds_decides_as_it_does_on_the_page(
    tmp_path: Path, seeds: int, low: float, p: float, fixed: bool, arm: str
) -> None:
    workspace = delivered.world(tmp_path, "resnet20", "cannot_tell")
    row = {
        "shots": 4,
        "seeds": seeds,
        "of": "datadream_dset/both_strong/resnet20",
        "minus": "real/real_strong/resnet20",
    }
    row |= {
        "difference": 0.05,
        "low": low,
        "high": 0.09,
        # Each has to pass with the p of its family.
        "p": 0.0078,
        "p_adjusted": p,
        "family": "round-1" if fixed else "",
    }
    write_csv(workspace.results / "table/claims.csv", [row], row)
    if fixed:
        pairs = [[row["of"], row["minus"]]]
        one = {"name": "round-1", "time": "2026-01-01T00:00:00+00:00", "recipe": "datadream_dset", "pairs": pairs}
        one |= {"classifier": "resnet20", "gain": [4], "no_loss": [], "seeds": [*range(6)], "smallest_gain": 0.01}
        write_json(workspace.results / "table/fixed/round-1.json", one | {"settings": {}, "rows": {}})
    (workspace.root / "models/base").symlink_to(toy.ROOT / "models/base")
    params = toy.params()
    made = {"data": None} | claims.hashes(params, workspace.root)
    write_json(workspace.results / "table/setting.json", params.setting(["datadream_dset"]) | made)
    options = [{"run": run, "accuracy": 0.9} for run in ("real/real/clip_lora", "datadream_dset/both/clip_lora")]
    named = {"best": options[0], "options": options, "real": {"run": "real/real/resnet20"}, "answer": "leave"}
    advice = {"4": named | {"sentences": ["Leave them, at 4.", "It takes 9 s."]}}
    advice["16"] = named | {"sentences": ["Leave it."]}
    write_json(workspace.results / "table" / claims.RECOMMENDATIONS, advice)
    summary = deliver.run(params, workspace, crossval.run)
    assert summary["arm"] == arm
    # What the table recommends at the project's number of shots is said and kept, beside what cross-validation says.
    # A reader who was told to take the classifier of both reads what that means.
    recommended = f"Over {seeds} seeds: leave them, at 4."
    if arm != "real":
        recommended = (
            f"It may do as well without synthetic images: over {seeds} seeds at 4 images per class, of all "
            "classifiers, clip_lora of real images alone gets 90.0%, and nothing with synthetic images is shown to be "
            "better (clip_lora of real images and datadream_dset gets 90.0%)."
        )
    assert summary["sentences"][-1] == summary["recommended"] == recommended
    assert json.loads(workspace.result("deliver").read_text())["recommended"] == recommended
    record = json.loads((workspace.classifier / "classifier.json").read_text())
    # Fewer than six decide nothing.
    pooled = seeds >= 6
    sentence = record["verdict"]["sentence"]
    assert record["verdict"]["seeds"] == (seeds if pooled else 1)
    assert ("in the mean of 6 seeds" in sentence) == pooled
    family = (
        "after Holm over the claims that were fixed with it" if fixed else "adjusted for all differences of the table"
    )
    chance = f"the sign-flip test over seeds, {family}, does not tell it from chance"
    assert (chance in sentence) == (pooled and low > 0 and p > 0.05)
    assert record["verdict"]["basis"].startswith(f"It rests on {'6 seeds' if pooled else 'one seed'}, ")
    assert record["origin"] == (None if arm == "real" else "generator")
    assert record["accuracy"]["learned"] == 12
    card = (workspace.classifier / "README.md").read_text()
    assert record["verdict"]["sentence"] in card
    assert ("the verdict chose it on the same images" in card) == (arm != "real")
    # A table of other code is no basis, and that is said.
    write_json(workspace.results / "table/setting.json", params.setting(["datadream_dset"]) | made | {"code": "0"})
    summary = deliver.run(params, workspace, crossval.run)
    assert summary["seeds"] == 1 and "recommended" not in summary
    assert "with other code" in summary["warnings"][0]
    basis = json.loads((workspace.classifier / "classifier.json").read_text())["verdict"]["basis"]
    assert basis.startswith("It rests on one seed, 0. The table over seeds in `results/table` was made with other code")


def test_the_code_in_the_card_reads_transparent_and_deep_files_as_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = delivered.world(tmp_path, "resnet20", prepare__window=[100, 3000]).classifier
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (40, 52, 4)).astype(np.uint8), "RGBA")
    rgba.save(folder / "photo.png")
    deep = rng.integers(0, 4000, (40, 52)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    rgba.convert("RGB").quantize(8).save(folder / "palette.png", transparency=3)
    Image.fromarray(deep).save(folder / "negative.tif", tiffinfo={262: 0})
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(delivered.snippet_of(folder), "card", "exec"), scope)
    for name in ("photo.png", "deep.png", "palette.png", "negative.tif"):
        image = decode((folder / name).read_bytes(), Decoding(10**6, (100, 3000))).image
        expected = resize_crop(image, 16).astype(np.float32).transpose(2, 0, 1)[None] / 255
        np.testing.assert_allclose(scope["read"](name), expected, atol=1e-6)
    scope["record"]["preprocessing"]["window"] = None
    with pytest.raises(ValueError, match=r"deep\.png: has more than 8 bits per channel"):
        scope["read"]("deep.png")


def test_a_dataset_s_card_says_what_of_the_shots_is_in_it() -> None:
    shots = tuple(Sample(f"{label}.png", label, f"{label}", f"{label}") for label in (0, 1))
    split = Split("toy", ("a", "b"), "a {class}", (), 1, 0, shots, ())
    base = {"name": "sd", "sha256": "0" * 64, "commit": None}
    started_from = {"recipes__stable_diffusion__init": "image", "recipes__stable_diffusion__sampler": {"strength": 0.5}}
    params = toy.params(**started_from)

    def card(recipe: str, **values: Any) -> str:
        chosen = params.with_values(recipe, values)
        return cards.dataset(chosen, split, recipe, [0, 1], base, {"near-duplicates": 1}, checked="nobody")

    started = card("stable_diffusion")
    assert "- Adapter: none." in started and "the images contain parts of the shots." in started
    assert "adapters contain" not in started
    assert "Not anonymised" not in card("stable_diffusion_tuned")
    assert NOT_ANONYMOUS in card("datadream_dset")
    assert "Prompt of class 0" in started
    assert "null class from 10 % of the images" in card("class_encoder", unconditional="learned", class_dropout=0.1)
    vectors = card("class_encoder", epoch=0.4)
    assert "Prompt of" not in vectors and "prompts" not in vectors
    assert "learned vector of the class" in vectors and "its weights those after 40 % of the training" in vectors
    assert "its weights those" not in card("class_encoder")


def test_the_card_says_which_classes_were_not_tested(tmp_path: Path) -> None:
    folder = delivered.world(tmp_path, "resnet20").classifier
    assert "Not tested" not in (folder / "README.md").read_text()
    evaluation = delivered.evaluation()
    evaluation["runs"][0]["per_class"] = dict.fromkeys(toy.CLASSES, 1.0) | {"spot": None}
    record = json.loads((folder / "classifier.json").read_text())
    assert "untested" not in record["accuracy"]
    accuracy = deliver._accuracy(evaluation, tmp_path, Run("real", REAL_STRONG, "resnet20")) | {"chosen": False}
    card = classifier_card.card(record | {"accuracy": accuracy}, "")
    assert '- Not tested, for no test image is of them: "spot". No figure says anything of these classes.' in card
