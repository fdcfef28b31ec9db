"""The stage that opens the test images: its numbers against predictions counted by hand."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import deliver, evaluate, report, train
from dreamset.command import lines
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256, write_json
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Kind, Run, arms
from dreamset.data.splits import Sample, Split, TestSplit, read_split, read_test, write_split, write_test
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.evaluate import output, records
from dreamset.metrics import verdict
from dreamset.sweep import crossval
from dreamset.use import predict
from dreamset.weights import hub

SOURCES = Path(evaluate.__file__).parents[1]
PLANTED = 10  # test image that is copied


def named(run: dict[str, Any]) -> str:
    """The name of a run of a record in other records."""
    return f"{run['arm']}/{run['train_on']}/{run['classifier']}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any]]:
    """Everything trained and evaluated once; copies of a shot and of a test image stand among the synthetic images."""
    place = Workspace.at(tmp_path_factory.mktemp("world"))
    toy.write_clip(place.root / "models/base/clip")
    toy.write_judge(place.root / "models/base/judge")
    split = toy.write_splits(place)
    for seed, recipe in enumerate(("stable_diffusion", "datadream_dset")):
        toy.write_synthetic(place, recipe, per_class=6, seed=seed + 5)
    _plant(place, "datadream_dset", 9, split.train[1])
    _plant(place, "stable_diffusion", 4, read_test(place.test_split).test[PLANTED])
    write_json(place.result("adapt", "datadream_dset"), {"seconds": 3.5})
    write_json(place.result("generate", "datadream_dset"), {"seconds": 1.5, "images": 18})
    params = toy.params()
    for arm in arms(params):
        train.run(params, place, arm)
    return place, evaluate.run(params, place, crossval.run)


def _plant(place: Workspace, recipe: str, at: int, copied: Sample) -> None:
    """Image ``at`` of a synthetic dataset becomes a copy of a real one."""
    folder = place.synthetic(recipe)
    rows = read_metadata(folder)
    shutil.copyfile(place.cell / copied.path, folder / rows[at].file_name)
    rows[at] = replace(rows[at], sha256=copied.sha256)
    write_metadata(folder, rows)


def test_every_run_is_there_and_its_accuracy_is_that_of_its_predictions(
    world: tuple[Workspace, dict[str, Any]],
) -> None:
    place, evaluation = world
    keys = [named(run) for run in evaluation["runs"]]
    assert len(keys) == len(set(keys)) == 1 + (2 * 2 + 1) + 2 * 5
    guesses = read_json(place.plots("evaluate") / "predictions.json", "")
    labels = np.array(guesses["labels"])
    assert labels.tolist() == [sample.label for sample in read_test(place.test_split).test]
    for key, run in zip(keys, evaluation["runs"], strict=True):
        right = np.array(guesses["predicted"][key]) == labels
        assert run["accuracy"] == pytest.approx(right.mean(), abs=1e-4)
        assert run["low"] <= run["accuracy"] <= run["high"]
        assert run["top5"] is None  # of three classes
        by_class = [right[labels == label].mean() for label in range(3)]
        assert list(run["per_class"].values()) == pytest.approx(by_class, abs=1e-4)
        assert list(run["per_class"]) == list(toy.CLASSES)
    measures = {run["measure"] for run in evaluation["runs"] if run["train_on"] == "synthetic"}
    assert measures == {"CAS", "synthetic-only accuracy"}


def test_differences_are_paired_and_of_the_stated_runs(world: tuple[Workspace, dict[str, Any]]) -> None:
    _, evaluation = world
    accuracy = {named(r): r["accuracy"] for r in evaluation["runs"]}
    # The toy's images come in threes, one of each class.
    assert (evaluation["protocol"], evaluation["folds"], evaluation["groups"]) == ("test", None, 8)
    assert evaluation["reach"]["smallest_gain"] == 0.25
    for row in evaluation["differences"]:
        assert (row["gained"] - row["lost"]) / 24 == pytest.approx(row["difference"], abs=1e-4)
        assert row["mcnemar_p"] == 1 or row["gained"] + row["lost"] > 1
        assert row["difference"] == pytest.approx(accuracy[row["of"]] - accuracy[row["minus"]], abs=2e-4)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["of"].endswith(row["classifier"])
        assert row["minus"].endswith(row["classifier"])
    recipes, alone = ("datadream_dset", "stable_diffusion"), ("real/real", "real/real_strong")
    adapting = {(f"datadream_dset/{kind}", f"stable_diffusion/{kind}") for kind in ("synthetic", "both", "both_strong")}
    for classifier, kinds in (("resnet20", ("both", "both_strong")), ("clip_lora", ("both",))):
        pairs = {
            (row["of"].rsplit("/", 1)[0], row["minus"].rsplit("/", 1)[0])
            for row in evaluation["differences"]
            if row["classifier"] == classifier
        }
        over_real = {(f"{recipe}/{kind}", minus) for recipe in recipes for kind in kinds for minus in alone}
        # Strongly augmented together for the classifier of the verdict alone.
        own = {pair for pair in adapting if "both_strong" in kinds or "strong" not in pair[0]}
        assert pairs == over_real | own


def test_the_verdict_is_of_the_primary_recipe_over_the_best_real_arm(
    world: tuple[Workspace, dict[str, Any]],
) -> None:
    place, evaluation = world
    found = read_json(place.result("evaluate"), "dreamset evaluate")["verdict"]
    assert (found["recipe"], found["classifier"]) == ("datadream_dset", "resnet20")
    over_real = [
        row
        for row in evaluation["differences"]
        if row["of"] == "datadream_dset/both_strong/resnet20" and row["minus"].startswith("real/")
    ]
    least = min(over_real, key=lambda row: row["difference"])
    for name in ("of", "minus", "difference", "low", "high"):
        assert found[name] == least[name]
    significant = least["mcnemar_p"] <= 0.05
    assert found["outcome"] == verdict.decide(least["low"], least["high"], 0.01, significant=significant)
    assert found["sentence"].startswith(verdict.finding(found)) and found["sentence"].endswith(found["reason"][1:])
    assert lines.evaluate(evaluation).endswith(f" without\n  {verdict.finding(found)}")
    trained = lines.train(read_json(place.result("train", "datadream_dset"), "dreamset train datadream_dset"))
    assert trained.startswith("5 classifiers, 6 to 12 steps each, ")


def test_mistakes_are_kept_as_pictures_outside_of_the_results(world: tuple[Workspace, dict[str, Any]]) -> None:
    place, evaluation = world
    guesses = read_json(place.plots("evaluate") / "predictions.json", "")
    runs = read_json(place.mistakes / "mistakes.json", "")["runs"]
    named_runs = {named(run) for run in evaluation["runs"] if run["arm"] == "real"}
    assert set(runs) == named_runs | {evaluation["verdict"]["of"]}
    test = read_test(place.test_split).test
    for name, record in runs.items():
        labels, predicted = np.array(guesses["labels"]), np.array(guesses["predicted"][name])
        wrong = np.flatnonzero(labels != predicted)
        rows = record["mistakes"]
        assert (record["count"], record["of"], len(rows)) == (len(wrong), 24, min(24, len(wrong)))
        assert sorted((labels[row], predicted[row]) for row in wrong) == sorted(
            (row["actual"], int(np.argmax(row["logits"]))) for row in rows
        )
        tops = [np.exp(row["logits"]).max() / np.exp(row["logits"]).sum() for row in rows]
        assert all(first >= second - 1e-3 for first, second in itertools.pairwise(tops))
        if rows:
            run = Run.parse(name)
            sheet = np.asarray(Image.open(place.mistakes / f"{run.arm}_{run.folder}.png"))
            assert sheet.shape == (16, 16 * len(rows), 3)
            real = [np.asarray(Image.open(place.cell / test[row].path).convert("RGB")) for row in wrong]
            assert any((sheet[:, :16] == picture).all() for picture in real)
    assert any(record["mistakes"] for record in runs.values())


def test_sets_have_equal_counts_and_the_planted_copy_leads(world: tuple[Workspace, dict[str, Any]]) -> None:
    place, evaluation = world
    split = read_split(place.splits)
    sets = evaluation["sets"]["datadream_dset"]
    assert (sets["images"], sets["n"], sets["kid_subset"]) == (18, 18, 18)
    assert sets["fid"] > 0
    # Six images of a class cannot carry the covariance of 64 features.
    assert all(set(row) == {"n", "kid"} and row["n"] == 6 for row in sets["per_class"].values())
    copies = sets["near_duplicates"]
    assert copies["count"] >= 1
    assert copies["pairs"][0] == {
        "image": read_metadata(place.synthetic("datadream_dset"))[9].file_name,
        "shot": split.train[1].path,
        "distance": 0.0,
    }
    assert len(copies["pairs"]) == 3


def test_sets_hold_the_measures_of_the_same_images_and_their_reference(world: tuple[Workspace, dict[str, Any]]) -> None:
    _, evaluation = world
    for sets in evaluation["sets"].values():
        assert all(0 <= sets[name] <= 1 for name in ("precision", "recall", "coverage"))
        assert sets["density"] > 0
        assert 1 <= sets["vendi"] <= 6
        assert sets["vendi"] <= sets["vendi_overall"] <= 18
        assert 1 <= sets["vendi_real"] <= sets["vendi_overall_real"] <= 18
        assert sets["reference"].startswith("test images")
    assert len({sets["vendi_real"] for sets in evaluation["sets"].values()}) == 1
    real = evaluation["near_duplicates_real"]
    assert real["count"] == 0 or real["pairs"][0]["distance"] < real["threshold"]
    assert set(real["pairs"][0]) == {"test", "shot", "distance"}


def test_a_copy_of_a_test_image_is_found_and_accuracy_is_given_without_it(
    world: tuple[Workspace, dict[str, Any]],
) -> None:
    place, evaluation = world
    leaks = evaluation["sets"]["stable_diffusion"]["near_duplicates_test"]
    test = read_test(place.test_split).test
    copied = read_metadata(place.synthetic("stable_diffusion"))[4].file_name
    assert leaks["pairs"][0] == {"image": copied, "test": test[PLANTED].path, "distance": 0.0}
    # The pair can be seen, the synthetic image above, though no later stage may open the test image.
    sheet = np.asarray(Image.open(place.near_test / "stable_diffusion.png"))
    assert sheet.shape == (32, 16 * len([pair for pair in leaks["pairs"] if pair["distance"] < leaks["threshold"]]), 3)
    picture = np.asarray(Image.open(place.cell / test[PLANTED].path).convert("RGB"))
    assert (sheet[:16, :16] == picture).all() and (sheet[16:, :16] == picture).all()
    guesses = read_json(place.plots("evaluate") / "predictions.json", "")
    touched = guesses["touched"]["stable_diffusion"]
    assert PLANTED in touched
    assert leaks["touched"] == len(touched) < len(test)
    labels = np.array(guesses["labels"])
    for run in evaluation["runs"]:
        right = np.array(guesses["predicted"][named(run)]) == labels
        left_out = guesses["touched"].get(run["arm"], [])
        assert run["touched"] == len(left_out)
        assert run["accuracy_untouched"] == pytest.approx(np.delete(right, left_out).mean(), abs=1e-4)


def test_files_hold_one_row_per_run_and_costs_where_known(world: tuple[Workspace, dict[str, Any]]) -> None:
    place, evaluation = world
    assert read_json(place.result("evaluate"), "") == {**evaluation, "classes": list(toy.CLASSES)}
    with (place.results / "evaluate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == output.ROW_COLUMNS
    assert len(rows) == len(evaluation["runs"])
    by_key = {(row["recipe"], row["train_on"], row["classifier"]): row for row in rows}
    adapted = by_key["datadream_dset", "both", "resnet20"]
    assert (adapted["shots"], adapted["seed"], adapted["images"], adapted["steps"]) == ("4", "0", "18", "12")
    assert (adapted["seconds_adapt"], adapted["seconds_generate"]) == ("3.5", "1.5")
    assert float(adapted["fid"]) == evaluation["sets"]["datadream_dset"]["fid"]
    assert by_key["stable_diffusion", "both", "resnet20"]["seconds_adapt"] == ""
    assert by_key["real", "real", "clip_lora"]["fid"] == ""
    assert by_key["zero_shot", "none", "clip_zeroshot"]["labels_train_per_class"] == "0"
    assert (adapted["labels_train_per_class"], adapted["labels_selection_per_class"]) == ("4.0", "0.0")
    # Nothing was selected on, so that there is no temperature: before and after are the same.
    assert (adapted["selection"], adapted["temperature"]) == ("fixed", "1.0")
    assert float(adapted["nll"]) == float(adapted["nll_scaled"]) > 0
    assert float(adapted["ece"]) == float(adapted["ece_scaled"]) < 1
    metrics = read_json(place.result("metrics"), "")
    assert (metrics["recipe"], metrics["classifier"]) == ("datadream_dset", "resnet20")
    assert metrics["verdict"].keys() == {"outcome", "gain", "low", "high"}
    assert metrics["accuracy"].keys() == {"zero_shot", "real", "real_strong", "both", "both_strong"}
    assert metrics["accuracy"]["both"] == float(adapted["accuracy"])
    assert metrics["cas"] == float(by_key["datadream_dset", "synthetic", "resnet20"]["accuracy"])
    assert metrics["fid"] == evaluation["sets"]["datadream_dset"]["fid"]
    assert metrics["seconds"] > 5.0, "of drawing, adapting and training"
    with (place.plots("evaluate") / "confusion/real_real_resnet20.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 24
    right = np.mean([row["actual"] == row["predicted"] for row in pairs])
    assert right == pytest.approx(metrics["accuracy"]["real"], abs=1e-4)


def test_evaluating_again_gives_the_same(world: tuple[Workspace, dict[str, Any]]) -> None:
    place, evaluation = world
    assert evaluate.run(toy.params(), place, crossval.run) == evaluation


def test_the_judge_is_named_with_what_was_read_and_may_be_another(
    world: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import Dinov2Config, Dinov2Model

    place, evaluation = world
    assert evaluation["judge"] == hub.identity(place.root, "models/base/judge", "judge")
    assert evaluation["judge"]["name"] == "models/base/judge"
    record = read_json(place.classifiers("real") / "real_clip_lora/classifier.json", "")
    assert evaluation["clip"] == {"name": record["base"], "commit": None, "sha256": record["base_sha256"]}
    network = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(network).save_pretrained(place.root / "models/dinov2")
    shutil.copytree(place.cell / "data", tmp_path / "data")
    shutil.copytree(place.cell / "models/classifiers", tmp_path / "models/classifiers")
    shutil.copytree(place.cell / "results", tmp_path / "results")
    params = toy.params(models__bundled__judge="models/dinov2")
    other = evaluate.run(params, Workspace(place.root, tmp_path), crossval.run)
    judged = ("touched", "accuracy_untouched")
    assert [{key: run[key] for key in run if key not in judged} for run in other["runs"]] == [
        {key: run[key] for key in run if key not in judged} for run in evaluation["runs"]
    ]
    assert (other["judge"]["name"], other["sets"]["datadream_dset"]["features"]) == ("models/dinov2", "judge, 16 wide")
    assert other["judge"]["sha256"] != evaluation["judge"]["sha256"]
    assert other["sets"]["datadream_dset"]["warning"].startswith("FID of 18 images is biased")
    assert "near_duplicates" in other["sets"]["datadream_dset"]


def test_numbers_by_clip_in_place_of_the_judge_are_called_so_and_compared_with_none(
    world: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    place, evaluation = world
    for name in ("data", "models/classifiers", "results"):
        shutil.copytree(place.cell / name, tmp_path / name)
    missing = f"hub:someone/judge@{'0' * 40}"
    params = toy.params(models__bundled__judge=missing)
    here = Workspace(place.root, tmp_path)
    other = evaluate.run(params, here, crossval.run)
    assert other["judge"]["stands_in_for"] == missing
    (warning,) = other["warnings"]
    assert missing in warning and "dreamset fetch" in warning
    measured = other["sets"]["datadream_dset"]
    assert measured["features"] == "CLIP in place of the judge, 16 wide" and measured["fid"] is not None
    assert [run["accuracy"] for run in other["runs"]] == [run["accuracy"] for run in evaluation["runs"]]
    # What is compared with other runs has none of these numbers.
    with (here.results / "evaluate.csv").open() as file:
        assert {row[name] for row in csv.DictReader(file) for name in output.SET_MEASURES} == {""}
    assert "fid" not in read_json(here.result("metrics"), "")
    report.run(params, here)
    page = (here.results / "report.html").read_text(encoding="utf-8")
    assert "features of the CLIP in place of the judge" in page and "cored by CLIP" in page


def test_many_classes_are_trained_and_scored_without_a_square_of_them(tmp_path: Path) -> None:
    count, place = 700, Workspace.at(tmp_path)
    toy.write_clip(place.root / "models/base/clip")
    toy.write_judge(place.root / "models/base/judge")
    rng = np.random.default_rng(0)
    images = [png(toy.picture(label, rng)) for label in range(3)]
    for folder in (place.real, place.real_test, place.synthetic("stable_diffusion")):
        folder.mkdir(parents=True)
        for kind, data in enumerate(images):
            (folder / f"{kind}.png").write_bytes(data)
    kinds = [label % 3 for label in range(count)]
    classes = tuple(f"class {label}" for label in range(count))

    def samples(folder: str) -> tuple[Sample, ...]:
        return tuple(Sample(f"{folder}/{k}.png", i, "", sha256(images[k])) for i, k in enumerate(kinds))

    write_split(place.splits, Split("toy", classes, "a photo of {class}", ("colour",), 1, 0, samples("data/real"), ()))
    write_test(place.test_split, TestSplit(classes, samples("data/real_test")))
    rows = [
        SyntheticImage(f"{k}.png", i, classes[i], 0, "", 0, 0, {}, None, sha256(images[k])) for i, k in enumerate(kinds)
    ]
    write_metadata(place.synthetic("stable_diffusion"), rows)
    params = toy.params(active=["stable_diffusion"], train__baselines=[], train__classifiers=["resnet20"])
    for arm in arms(params):
        train.run(params, place, arm)
    evaluation = evaluate.run(params, place, crossval.run)
    assert len(evaluation["runs"]) == 1 + 2 + 3
    assert all(len(run["per_class"]) == count and len(run["most_confused"]) == 3 for run in evaluation["runs"])
    guesses = read_json(place.plots("evaluate") / "predictions.json", "")
    for run in evaluation["runs"]:
        key = named(run)
        with (place.plots("evaluate") / f"confusion/{key.replace('/', '_')}.csv").open() as file:
            pairs = Counter((row["actual"], row["predicted"]) for row in csv.DictReader(file))
        every = Counter(
            (classes[a], classes[p])
            for a, p in zip(guesses["labels"], guesses["predicted"][key], strict=True)
            if a != p
        )
        assert 0 < len(pairs) <= 50
        assert sorted(pairs.values()) == sorted(count for _, count in every.most_common(50))
        assert all(every[pair] == n for pair, n in pairs.items())
    # The page is made from predictions, and shows no square either.
    report.run(params, place)
    page = (place.results / "report.html").read_text(encoding="utf-8")
    assert "What is taken for what" not in page


def test_one_class_short_of_images_still_counts_the_others(
    world: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    place, _ = world
    cell = tmp_path / "cell"
    shutil.copytree(place.cell, cell)
    other = Workspace(place.root, cell)
    folder = other.synthetic("datadream_dset")
    write_metadata(folder, [row for row in read_metadata(folder) if row.label != 2 or row.index == 0])
    sets = evaluate.run(toy.params(), other, crossval.run)["sets"]["datadream_dset"]
    assert (sets["images"], sets["n"]) == (13, 13)
    assert sets["per_class"]["spot"] == {"n": 1}


def test_a_missing_classifier_names_the_command(world: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> None:
    place, _ = world
    cell = tmp_path / "cell"
    shutil.copytree(place.cell, cell)
    other = Workspace(place.root, cell)
    shutil.rmtree(other.classifiers("real"))
    with pytest.raises(InputError, match="run `dreamset train"):
        evaluate.run(toy.params(), other, crossval.run)


def test_only_evaluate_opens_the_test_manifest() -> None:
    opens = re.compile(r"\bread_test\b|\.test_split\b|\bBLOCKS\b.*test|real_test\b")
    users = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if re.search(r"\bread_test\b", path.read_text(encoding="utf-8"))
    }
    assert users == {"evaluate/__init__.py", "data/splits.py"}
    touching = {
        path.relative_to(SOURCES).as_posix()
        for path in (*SOURCES.glob("classifiers/*.py"), SOURCES / "train.py", *SOURCES.glob("metrics/*.py"))
        if opens.search(path.read_text(encoding="utf-8"))
    }
    assert touching == set()


@pytest.mark.parametrize("outcome", ["cannot_tell", "helps"])
def test_predict_gives_the_files_the_very_labels_that_were_scored(
    world: tuple[Workspace, dict[str, Any]], tmp_path: Path, outcome: str
) -> None:
    place, evaluation = world
    found = evaluation["verdict"]
    clear = {"difference": 0.2, "low": 0.1, "high": 0.3, "mcnemar_p": 0.001}
    rows = [row | clear if row["of"] == found["of"] else row for row in evaluation["differences"]]
    differences = rows if outcome == "helps" else evaluation["differences"]
    write_json(place.result("evaluate"), evaluation | {"differences": differences})
    deliver.run(toy.params(), place, crossval.run)
    test = read_test(place.test_split).test
    predict.run([str(place.cell / sample.path) for sample in test], place.classifier, tmp_path / "out.csv", 0.0)
    with (tmp_path / "out.csv").open(newline="") as file:
        labels = [toy.CLASSES.index(row["label"]) for row in csv.DictReader(file)]
    key = found["of"] if outcome == "helps" else "real/real_strong/resnet20"
    assert labels == read_json(place.plots("evaluate") / "predictions.json", "")["predicted"][key]
    write_json(place.result("evaluate"), evaluation)


def test_a_step_is_measured_against_where_it_starts() -> None:
    active = ["stable_diffusion", "stable_diffusion_tuned", "class_encoder_untuned", "class_encoder"]
    after = {"class_encoder_ft": "class_encoder", "class_encoder_ft_untuned": "class_encoder"}
    params = toy.params(active=active, after=after, train__classifiers=["resnet20"])
    arms = [(arm, kind) for arm in params.active for kind in ("synthetic", "both", "both_strong")]
    arms += [("real", "real"), ("real", "real_strong")]
    right = {Run(arm[0], Kind.parse(arm[1]), "resnet20"): np.zeros(6) for arm in arms}
    found = [
        (row["of"].split("/")[0], row["minus"].split("/")[0])
        for row in records.differences(params, right, None)
        if row["of"].split("/")[1] == "synthetic"
    ]
    encoders = [name for name in params.active if name.startswith("class")]
    assert len(found) == len(set(found))
    # A tuned sampler is no baseline of what adaptation gains.
    assert set(found) == {(name, "stable_diffusion") for name in encoders} | {
        ("stable_diffusion_tuned", "stable_diffusion"),
        ("class_encoder", "class_encoder_untuned"),
        ("class_encoder_ft", "class_encoder"),
        ("class_encoder_ft_untuned", "class_encoder"),
        ("class_encoder_ft", "class_encoder_ft_untuned"),
    }


def test_costs_hold_those_of_what_a_recipe_starts_from(tmp_path: Path) -> None:
    params = toy.params(active=["class_encoder"], after={"class_encoder_ft": "class_encoder"})
    place = Workspace.at(tmp_path)
    for recipe, seconds, labels in (("class_encoder", 10.0, 6.0), ("class_encoder_ft", 1.0, 4.0)):
        write_json(place.result("adapt", recipe), {"seconds": seconds})
        study = {"searched": ["guidance"], "trials": [{}] * 8, "seconds": 2 * seconds}
        write_json(place.result("tune", recipe), study | {"selection": {"labels_per_class": labels}})
        write_json(place.result("generate", recipe), {"seconds": 3.0, "images": 9})
    own, after = (records.costs(params, place, recipe, {"runs": []}) for recipe in params.active)
    assert (own["seconds_adapt"], own["seconds_tune"], own["tune_trials"]) == (10.0, 20.0, 8)
    assert (after["seconds_adapt"], after["seconds_tune"], after["tune_trials"]) == (11.0, 22.0, 16)
    assert after["labels_tune_per_class"] == 6.0
    assert (after["seconds_generate"], after["images"]) == (3.0, 9)
    write_json(place.result("tune", "class_encoder_ft"), {"searched": [], "best": None})
    assert records.costs(params, place, "class_encoder_ft", {"runs": []})["tune_trials"] == 8
