"""The simple classifiers: as scikit-learn answers, back from disk, by folds, and delivered where they are best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import delivered
import reported
import toy
from dreamset import classifiers, deliver, report, train
from dreamset.classifiers import simple, simple_fit, simple_network
from dreamset.classifiers.parts import Part
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.images import read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, folds
from dreamset.data.runs import REAL, REAL_ONLY, REAL_STRONG, Run, runs
from dreamset.data.splits import Split, write_split
from dreamset.metrics import best
from dreamset.sweep import crossval
from dreamset.use import export

SMALL = {
    "train__classifiers": ["resnet20"],
    "train__baselines": [],
    "train__simple": ["pixels", "clip", "judge"],
    "models__bundled__clip": "clip",
}


def learnt(workspace: Workspace, split: Split | None = None, **changes: Any) -> tuple[Any, Split, dict[str, Any]]:
    """Parameters, split and the record of training every classifier of the real images once."""
    made = toy.write_splits(workspace)
    split = split or replace(made, native=16)
    write_split(workspace.splits, split)
    toy.write_clip(workspace.root / "clip")
    toy.write_judge(workspace.root / "models/base/judge")
    params = toy.params(**{**SMALL, **changes})
    return params, split, train.run(params, workspace, REAL, (REAL_ONLY, REAL_STRONG))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_heads_answer_as_scikit_learn_does(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % classes
    # More features than shots, so that logistic regression works in their span; uneven classes.
    x = (rng.normal(size=(40, 60)) + labels[:, None] * 0.3).astype(np.float32)[3:]
    new, labels = rng.normal(size=(30, 60)).astype(np.float32), labels[3:]
    theirs = {
        "nearest": KNeighborsClassifier(1).fit(x, labels),
        "logistic": LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(x, labels),
        "forest": RandomForestClassifier(simple_network.TREES, random_state=7).fit(x, labels),
    }
    for method, model in theirs.items():
        with torch.inference_mode():
            logits = simple_fit.fit(method, x, labels, 1.0, 7)(torch.from_numpy(new))
        if method == "nearest":
            assert logits.argmax(1).tolist() == model.predict(new).tolist()
        elif method == "logistic":
            np.testing.assert_allclose(logits.softmax(-1), model.predict_proba(new), atol=3e-3)
        else:
            np.testing.assert_allclose(logits.exp(), np.maximum(model.predict_proba(new), 1 / 200), atol=1e-6)


def test_the_nearest_shot_of_each_class_is_found_however_uneven_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.sort(np.concatenate([np.zeros(30), rng.integers(1, 6, 20)])).astype(np.int64)
    x, new = (torch.from_numpy(rng.normal(size=(n, 7)).astype(np.float32)) for n in (50, 9))
    head = simple_fit.fit("nearest", x.numpy(), labels, 1.0, 0)
    squares = ((new[:, None] - x) ** 2).sum(-1)
    expected = torch.stack([squares[:, torch.from_numpy(labels == label)].amin(1) for label in range(6)], 1)
    np.testing.assert_allclose(head(new) * -head.scale, expected, rtol=1e-4)
    monkeypatch.setattr(simple_fit, "_BLOCK", 8)
    blocks = simple_fit.fit("nearest", x.numpy(), labels, 1.0, 0)
    assert float(blocks.scale) == pytest.approx(float(head.scale), rel=1e-5)
    # The file holds what it always held.
    assert set(head.state_dict()) == {"shots", "of_class", "scale"}


def test_every_run_has_them_and_they_come_back_from_disk(workspace: Workspace) -> None:
    params, split, record = learnt(workspace)
    assert [run.classifier for run in runs(params, REAL)][-9:] == list(simple.BY_NAME)
    images = arrays.real(split.train, workspace.cell, 16).images
    by_name = {row["classifier"]: row for row in record["runs"]}
    for name in simple.BY_NAME:
        predictor = classifiers.load(workspace.classifiers(REAL) / f"real_{name}")
        # The shots were learned from, and a nearest neighbour is itself. The features of a random tower say little.
        right = (predictor.logits(images).argmax(1) == [sample.label for sample in split.train]).mean()
        assert right == 1 if name.startswith("nearest") else right > (0.5 if name.endswith("pixels") else 0.2), name
        row = by_name[name]
        assert predictor.temperature == row["temperature"] != 1
        assert row["temperature_images"] == row["real_images"] == 12 and 0 <= row["accuracy_folds"] <= 1
    # A run that was killed finds them again.
    assert train.run(params, workspace, REAL, (REAL_ONLY, REAL_STRONG)) == record


def test_flips_are_learned_from_where_they_are_declared_alone(workspace: Workspace) -> None:
    split = replace(toy.write_splits(workspace), native=8, invariances=("hflip", "vflip", "colour"))
    _, _, record = learnt(workspace, split, train__simple=["pixels"])
    folder = workspace.classifiers(REAL) / "real_nearest_pixels"
    stored = classifiers.load(folder).classifier.get_submodule("answer").state_dict()["shots"]
    assert stored.shape == (4 * 12, 3 * 8 * 8)
    one = stored[::12].reshape(4, 3, 8, 8)
    assert torch.equal(one[0].flip(-1), one[1]) and torch.equal(one[0].flip(-1, -2), one[3])
    assert next(row for row in record["runs"] if row["classifier"] == "nearest_pixels")["temperature_images"] == 12


@pytest.mark.parametrize(("native", "size"), [(8, 8), (40, 40), (600, 64), (None, 64)])
def test_pixels_are_seen_at_the_size_of_the_files_up_to_a_limit(
    workspace: Workspace, native: int | None, size: int
) -> None:
    split = replace(toy.write_splits(workspace), native=native)
    assert simple.size_of(split) == size
    network = simple.network("pixels", toy.params().base, split, workspace.root)
    # The base's resolution of 16 pixels is no limit.
    assert classifiers.seen(network.size, classifiers.finest(native, 16)) == (size if native else 16)


def test_a_fold_holds_out_whole_groups(workspace: Workspace) -> None:
    split = toy.write_splits(workspace, shots=6)
    # Two writers to a fold could not be told from their own images.
    split = replace(split, train=tuple(replace(s, group=f"writer{i % 3}") for i, s in enumerate(split.train)))
    write_split(workspace.splits, split)
    shots = simple_fit.Shots(Part(toy.params(), workspace, split, REAL, workspace.shards))
    held = shots.held_out
    assert held is not None and sorted(np.concatenate(held).tolist()) == list(range(18))
    for rows in held:
        inside = {split.train[row].group for row in rows}
        assert not inside & {sample.group for i, sample in enumerate(split.train) if i not in rows}
    one = replace(split, train=tuple(replace(sample, group="one") for sample in split.train))
    assert simple_fit.Shots(Part(toy.params(), workspace, one, REAL, workspace.shards)).held_out is None


def test_folds_of_trained_and_of_simple_ones_are_of_the_same_shots_in_one_order(workspace: Workspace) -> None:
    params, split, _ = learnt(workspace, train__simple=["pixels"])
    wanted = [Run(REAL, REAL_STRONG, "resnet20"), Run(REAL, REAL_ONLY, "logistic_pixels")]
    logits = train.held_out(params, workspace, wanted)
    assert list(logits) == wanted and {values.shape for values in logits.values()} == {(12, 3)}
    # By hand: the first fold's shots, by a network that has not seen them.
    rows = {sample.path: row for row, sample in enumerate(split.train)}
    left_out = [rows[sample.path] for sample in folds.held_out(split, folds.SELECTING, "selection")[0]]
    shots = simple_fit.Shots(Part(params, workspace, split, REAL, workspace.shards))
    _, features = shots.features("pixels")
    rest = [row for row in range(12) if row not in left_out]
    # Each class counts in the fold as among all the shots.
    weight = (np.bincount(shots.labels) / np.bincount(shots.labels[rest]))[shots.labels[rest]]
    head = simple_fit.fit("logistic", features[0, rest], shots.labels[rest], simple_fit.C, 0, weight)
    expected = head(torch.from_numpy(features[0, left_out])).numpy()
    np.testing.assert_allclose(logits[wanted[1]][left_out], expected, atol=1e-4)


def evaluation(params: Any) -> dict[str, Any]:
    """An evaluation of the toy world with a row for every run on the real images."""
    made = delivered.evaluation()
    known = {(row["arm"], row["train_on"], row["classifier"]) for row in made["runs"]}
    for run in runs(params, REAL):
        if (run.arm, str(run.kind), run.classifier) not in known:
            row = {"arm": run.arm, "train_on": str(run.kind), "classifier": run.classifier}
            made["runs"].append(row | {"accuracy": 0.6, "low": 0.5, "high": 0.9, "seconds": 0.3})
    return made


def test_the_best_by_folds_is_delivered_and_the_card_says_why(workspace: Workspace) -> None:
    # A network of one step has learned nothing.
    changes = {"models__bundled__train__resnet20__steps": 1, "deliver__precision": 0.6}
    changes |= {"models__bundled__train__clip_lora__steps": 1, "train__classifiers": ["resnet20", "clip_lora"]}
    params, split, _ = learnt(workspace, deliver__calibrate=True, **changes)
    write_json(workspace.result("evaluate"), evaluation(params))
    summary = deliver.run(params, workspace, crossval.run)
    candidates = {row["run"]: row for row in summary["candidates"]}
    assert len(candidates) == 11 and summary["classifier"] in simple.BY_NAME
    # What starts from pretrained weights is asked, too, as it learned from the real images alone.
    assert not candidates["real/real_strong/clip_lora"]["verdict"]
    chosen = candidates[f"real/real/{summary['classifier']}"]
    assert chosen["delivered"] and not chosen["verdict"] and candidates["real/real_strong/resnet20"]["verdict"]
    assert chosen == min(candidates.values(), key=lambda row: row["nll_folds"])
    assert summary["shots"] == 12 and summary["accuracy"] == chosen["accuracy"] == 0.6
    (sentence,) = summary["sentences"]
    assert (
        sentence.startswith("Leave synthetic data out: ") and "60.0% on 24 held-out images) and takes 1 s." in sentence
    )
    record = json.loads((workspace.classifier / "classifier.json").read_text())
    assert record["chosen"]["candidates"] == summary["candidates"]
    card = (workspace.classifier / "README.md").read_text()
    assert "because it is the best by cross-validation on the shots" in card and best.RULE in card
    assert "12 shots, each held out of a fold, " in record["threshold_reason"] and record["temperature_images"] == 12
    # Without folds the verdict decides alone, as before.
    write_split(workspace.splits, replace(split, train=tuple(replace(s, group="one") for s in split.train)))
    alone = deliver.run(params, workspace, crossval.run)
    assert (alone["train_on"], alone["classifier"], alone["candidates"]) == ("real_strong", "resnet20", [])
    assert "cannot be divided into folds" in alone["chosen_by"] and alone["sentences"] == []


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Workspace]:
    """A workspace in which every candidate is trained and measured."""
    workspace = Workspace.at(tmp_path_factory.mktemp("every"))
    params, _, _ = learnt(workspace, deliver__calibrate=True, train__baselines=["linear_probe"])
    write_json(workspace.result("evaluate"), evaluation(params))
    return params, workspace


# A trained one, and each method and each kind of features once: a head knows nothing of where its features are from.
@pytest.mark.parametrize("name", ["linear_probe", "nearest_clip", "logistic_pixels", "forest_judge"])
def test_whatever_is_delivered_answers_alike_on_its_card_and_as_onnx(
    every: tuple[Any, Workspace], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    params, workspace = every
    choose, wanted = deliver.choose, Run(REAL, REAL_ONLY, name)
    monkeypatch.setattr(deliver, "choose", lambda logits, labels: (wanted, choose(logits, labels)[1]))
    deliver.run(params, workspace, crossval.run)
    folder = workspace.classifier
    photo = delivered.wide(workspace.root / f"photos_{name}", 3)[0]
    photo.rename(folder / "photo.png")
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(delivered.snippet_of(folder), "card", "exec"), scope)
    predictor = classifiers.load(folder)
    images = np.stack([resize_crop(read_rgb(folder / "photo.png"), 16)] * 2)
    expected = predictor.logits(images)
    answer = scope["logits"](scope["read"]("photo.png")).detach().numpy()
    np.testing.assert_allclose(answer, expected[:1], atol=1e-4, rtol=1e-4)
    probabilities = predictor.probabilities(expected)
    label, probability = capsys.readouterr().out.split()
    assert label == toy.CLASSES[probabilities[0].argmax()]
    assert float(probability) == pytest.approx(probabilities[0].max(), abs=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    export.onnx(folder, workspace.root / f"{name}.onnx")
    session = onnxruntime.InferenceSession(str(workspace.root / f"{name}.onnx"))
    outputs = session.run(["logits", "probabilities"], {"images": images})
    np.testing.assert_allclose(outputs[0], expected, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(outputs[1], probabilities, atol=1e-3)


def test_the_surest_of_the_true_classes_is_the_best_and_of_equals_the_first() -> None:
    labels = np.array([0, 1, 0, 1])
    sure = np.array([[4, 0], [0, 4], [4, 0], [1, 0]], np.float32)
    unsure = np.array([[1, 0], [0, 1], [1, 0], [4, 0]], np.float32)
    wrong = np.zeros((4, 2), np.float32)
    first, second, third = (Run(REAL, REAL_ONLY, name) for name in ("a", "b", "c"))
    assert deliver.choose({first: wrong, second: unsure, third: sure}, labels)[0] == third
    assert deliver.choose({first: sure, second: sure}, labels)[0] == first


def test_a_classifier_that_is_missing_is_named(workspace: Workspace) -> None:
    params, _, _ = learnt(workspace, train__simple=[], deliver__calibrate=True)
    write_json(workspace.result("evaluate"), evaluation(params))
    with pytest.raises(
        InputError, match=r"nearest_pixels/folds\.safetensors: is missing; run `dreamset train real` again"
    ):
        deliver.run(toy.params(**SMALL, deliver__calibrate=True), workspace, crossval.run)


def test_a_damaged_file_is_named(workspace: Workspace) -> None:
    learnt(workspace, train__simple=["pixels"])
    folder = workspace.classifiers(REAL) / "real_logistic_pixels"
    record = json.loads((folder / "classifier.json").read_text())
    target = Path(workspace.root / "copy")
    target.mkdir()
    (target / "classifier.json").write_text(json.dumps(record | {"classes": ["one", "two"], "prompts": ["1", "2"]}))
    (target / "head.safetensors").write_bytes((folder / "head.safetensors").read_bytes())
    with pytest.raises(InputError, match="is of 3 classes, unlike its record"):
        classifiers.load(target)


@pytest.mark.parametrize(
    ("verdict", "chosen", "protocol", "words"),
    [
        (
            "datadream_light/both_strong/resnet20",
            "real/real/logistic_clip",
            "test",
            "Leave synthetic data out: logistic regression on CLIP's features is better than resnet20 of the real "
            "images and datadream_light's, strongly augmented (92.3% against 89.6% by cross-validation on the shots, "
            "92.5% on 640 held-out images) and takes 2 s.",
        ),
        (
            "real/real_strong/resnet20",
            "real/real_strong/resnet20",
            "cv",
            "By cross-validation on the shots, the other candidate is not better than resnet20 of the real images, "
            "strongly augmented (92.3%).",
        ),
        (
            "real/real_strong/resnet20",
            "real/real_strong/clip_lora",
            "cv",
            "Leave synthetic data out: the clip_lora of the real images, strongly augmented, is better than resnet20 "
            "of the real images, strongly augmented (92.3% against 89.6% by cross-validation on the shots).",
        ),
    ],
)
def test_the_page_says_in_plain_words_which_is_best(verdict: str, chosen: str, protocol: str, words: str) -> None:
    rows = [
        {"run": run, "accuracy_folds": share, "accuracy": 0.925, "seconds": 1.8, "delivered": run == chosen}
        for run, share in ((chosen, 0.923), (verdict if verdict != chosen else "real/real/forest_pixels", 0.896))
    ]
    rows = [row | {"verdict": row["run"] == verdict} for row in rows]
    assert best.sentence({"candidates": rows, "images": 640, "protocol": protocol}) == words
    if verdict == chosen:
        more = {"candidates": [*rows, rows[1]], "images": 640, "protocol": protocol}
        assert "none of the 2 other candidates is better than resnet20" in str(best.sentence(more))
        assert best.sentence(more | {"candidates": rows[:1]}) is None
    assert best.sentence({"candidates": []}) is None
    probe = best.words(Run(REAL, REAL_ONLY, "linear_probe"))
    assert probe == "the linear_probe of the real images"


def test_the_page_has_every_candidate_the_best_first(tmp_path: Path) -> None:
    params = reported.parameters()
    workspace = reported.write(tmp_path, params)
    report.run(params, workspace)
    assert "Which classifier to take" not in reported.read(workspace)[0]
    rows = [
        {
            "run": run,
            "accuracy_folds": share,
            "nll_folds": 1 - share,
            "accuracy": 0.9,
            "low": 0.8,
            "high": 0.95,
            "seconds": 1.8,
        }
        for run, share in (("real/real_strong/resnet20", 0.85), ("real/real/forest_pixels", 0.875))
    ]
    rows = [row | {"verdict": not index, "delivered": bool(index)} for index, row in enumerate(rows)]
    record = {"chosen_by": best.RULE, "shots": 12, "images": 877, "candidates": rows, "protocol": "test"}
    record |= {"arm": "real", "train_on": "real", "classifier": "forest_pixels"}
    write_json(workspace.result("deliver"), record)
    evaluation = json.loads(workspace.result("evaluate").read_text())
    over = {"of": "datadream_dset/both_strong/resnet20", "minus": "real/real/forest_pixels", "mcnemar_p": 0.2}
    over |= {"difference": -0.02, "low": -0.05, "high": 0.01}
    write_json(workspace.result("evaluate"), evaluation | {"over_simple": over})
    report.run(params, workspace)
    source, _ = reported.read(workspace)
    assert "Leave synthetic data out: a random forest on the pixels is better than resnet20" in source
    section = source.partition('<section id="candidates">')[2].partition("</section>")[0]
    assert section.index('<th scope="row">a random forest') < section.index(
        '<th scope="row">resnet20 of the real images'
    )
    assert '<tr class="chosen"><th scope="row">a random forest' in section
    assert "The one with the highest probabilities of the true classes of the" in section
    assert "over a random forest on the pixels: <b>\N{MINUS SIGN}2.0</b> points" in section
