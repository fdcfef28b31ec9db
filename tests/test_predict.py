"""Labels for new files: as `evaluate` would give them, with nothing there but the delivered classifier."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import delivered
import toy
from dreamset import classifiers
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import write_json
from dreamset.core.images import Decoding
from dreamset.data.splits import read_split, read_test
from dreamset.evaluate import scoring
from dreamset.use import predict
from dreamset.use.score import _share


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delivered ResNet-20 and nothing else."""
    root = tmp_path_factory.mktemp("delivered")
    return shutil.move(delivered.world(root / "made", "resnet20").classifier, root / "classifier")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["resnet20", "clip_lora"])
def test_predictions_are_those_of_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    workspace = delivered.world(tmp_path, name)
    params = toy.params()
    split, test = read_split(workspace.splits), read_test(workspace.test_split)
    images = scoring.Images(params, workspace, split, test)
    trained = classifiers.load(workspace.classifiers("real") / f"real_strong_{name}")
    expected = trained.logits(images.test(trained.size).images)

    seen: list[np.ndarray] = []
    whole = classifiers.Predictor.logits

    def watched(self: classifiers.Predictor, *args: Any) -> np.ndarray:
        seen.append(whole(self, *args))
        return seen[-1]

    monkeypatch.setattr(classifiers.Predictor, "logits", watched)
    out = tmp_path / "predictions.csv"
    files = [str(tmp_path / sample.path) for sample in test.test]
    counts = predict.run(files, workspace.classifier, out, None)
    assert counts == (24, 24, 0, 0)
    assert np.array_equal(np.concatenate(seen), expected)
    found = rows(out)
    assert [row["file"] for row in found] == files
    assert [row["label"] for row in found] == [toy.CLASSES[label] for label in expected.argmax(1)]
    powers = np.exp(expected / delivered.TEMPERATURE)
    np.testing.assert_allclose(
        [float(row["probability"]) for row in found], (powers / powers.sum(1, keepdims=True)).max(1), atol=1e-5
    )


def test_a_row_has_the_best_classes_in_order(folder: Path, tmp_path: Path) -> None:
    delivered.wide(tmp_path / "photos", 6)
    out = tmp_path / "predictions.csv"
    predict.run([str(tmp_path / "photos")], folder, out, None)
    for row in rows(out):
        ranked = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert sorted(ranked, reverse=True) == ranked and sum(ranked) == pytest.approx(1, abs=1e-5)
        assert {row[f"label_{rank}"] for rank in (1, 2, 3)} == set(toy.CLASSES)
        assert (row["label"], row["probability"]) == (row["label_1"], row["probability_1"])
        assert "label_4" not in row


def test_below_the_threshold_there_is_no_label(folder: Path, tmp_path: Path) -> None:
    delivered.wide(tmp_path / "photos", 8)
    out = tmp_path / "predictions.csv"
    predict.run([str(tmp_path / "photos")], folder, out, 0.0)
    tops = sorted(float(row["probability"]) for row in rows(out))
    middle = (tops[3] + tops[4]) / 2
    assert predict.run([str(tmp_path / "photos")], folder, out, middle) == (8, 4, 4, 0)
    for row in rows(out):
        abstains = float(row["probability"]) < middle
        assert (row["abstained"], row["label"]) == (("yes", "") if abstains else ("no", row["label_1"]))


def test_the_delivered_threshold_is_the_default(folder: Path, tmp_path: Path) -> None:
    strict = shutil.copytree(folder, tmp_path / "strict")
    record = json.loads((strict / "classifier.json").read_text())
    write_json(strict / "classifier.json", record | {"threshold": 1.0})
    files = [str(path) for path in delivered.wide(tmp_path / "photos", 2)]
    assert predict.run(files, strict, tmp_path / "out.csv", None).abstained == 2
    assert predict.run(files, folder, tmp_path / "out.csv", None).abstained == 0


def test_files_that_cannot_be_used_get_their_reason(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    good = delivered.wide(photos, 2)
    (photos / "empty.png").touch()
    (photos / "cut.jpg").write_bytes(good[1].read_bytes()[:300])
    (photos / "notes.txt").write_text("nothing")
    (photos / ".hidden.png").write_bytes(good[0].read_bytes())
    outside = tmp_path / "outside.png"
    shutil.copyfile(good[0], outside)
    (photos / "link.png").symlink_to(outside)
    bomb = Image.new("1", (10_000, 6_000))
    bomb.save(photos / "bomb.png")
    out = tmp_path / "predictions.csv"
    assert predict.run([str(photos)], folder, out, None) == (7, 2, 0, 5)
    found = {Path(row["file"]).name: row for row in rows(out)}
    reasons = {name: row["error"] for name, row in found.items() if row["error"]}
    assert reasons.keys() == {"empty.png", "cut.jpg", "notes.txt", "link.png", "bomb.png"}
    assert reasons["empty.png"] == "empty file"
    assert reasons["bomb.png"] == "10000x6000 is more than 50000000 pixels"
    assert "leads out of the folder" in reasons["link.png"]
    assert all(found[name]["label"] == "" for name in reasons)
    # A bad file moves no good one to another row: each alone gives the same.
    for path in good:
        predict.run([str(path)], folder, tmp_path / "one.csv", None)
        assert rows(tmp_path / "one.csv")[0]["label"] == found[path.name]["label"]


def test_an_image_beyond_the_memory_costs_no_other_its_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, large = delivered.wide(tmp_path / "photos", 2)
    crop = predict.resize_crop

    def full(image: Image.Image, side: int) -> np.ndarray:
        if image.size == Image.open(large).size:
            raise MemoryError
        return crop(image, side)

    Image.new("RGB", (40, 90)).save(large)
    monkeypatch.setattr(predict, "resize_crop", full)
    out = tmp_path / "out.csv"
    assert predict.run([str(good), str(large)], folder, out, None).unusable == 1
    assert {Path(row["file"]).name: row["error"] for row in rows(out)} == {
        good.name: "",
        large.name: "needs more memory than there is",
    }


def test_pictures_are_turned_upright_and_put_on_white(folder: Path, tmp_path: Path) -> None:
    upright = Image.open(delivered.wide(tmp_path, 1)[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    clear = upright.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    Image.new("RGB", upright.size, "white").save(tmp_path / "white.png")
    files = [str(tmp_path / name) for name in ("0.png", "turned.png", "clear.png", "white.png")]
    predict.run(files, folder, tmp_path / "out.csv", None)
    first, turned, clear_row, white = ({**row, "file": ""} for row in rows(tmp_path / "out.csv"))
    assert first == turned
    assert clear_row == white != first


def test_files_stand_in_natural_order_and_once(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "b/deep/1.png", "a.png", "weird[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = predict.find([str(tmp_path / "b"), f"{tmp_path}/**/*.png", str(tmp_path / "weird[1].png")])
    names = [file.path.relative_to(tmp_path).as_posix() for file in found]
    assert names[:3] == ["b/9.png", "b/10.png", "b/deep/1.png"]
    assert sorted(names[3:]) == ["a.png", "weird[1].png"]


@pytest.mark.parametrize(
    ("paths", "words"), [(["nowhere"], "nowhere: is no file or folder"), (["empty"], "holds no files")]
)
def test_nothing_to_label_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        predict.run(paths, folder, None, None)


def test_only_a_delivered_classifier_predicts(tmp_path: Path) -> None:
    workspace = delivered.world(tmp_path, "resnet20")
    with pytest.raises(InputError, match="is no delivered classifier"):
        predict.run(["x"], workspace.classifiers("real") / "real_strong_resnet20", None, None)
    with pytest.raises(InputError, match="run `dreamset deliver` first"):
        predict.run(["x"], tmp_path / "none", None, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "--out .*folder: is a folder; name a file in it"),
        ("file.txt/below.csv", "lies below a file; name another place"),
        ("file.txt/far/below.csv", "lies below a file"),
        ("x" * 250, r"cannot be written \(File name too long\); name another place"),
        ("pipe", "is no ordinary file"),
        ("", "is a folder"),
    ],
)
def test_a_target_is_looked_at_before_the_work(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    # There is no classifier, which would be told next.
    with pytest.raises(InputError, match=words):
        predict.run(["x"], tmp_path / "none", tmp_path / name, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder", "pipe"]


def broken(folder: Path, target: Path, how: str) -> None:
    """A copy of a delivered classifier with other weights."""
    shutil.copytree(folder, target)
    weights = target / "model.safetensors"
    tensors = load_file(weights)
    if how == "missing":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif how == "nan":
        tensors["stem.weight"][0, 0, 0, 0] = float("nan")
        save_file(tensors, weights)
    else:
        record = json.loads((target / "classifier.json").read_text())
        changes = {"classes": {"classes": ["a", "b"], "prompts": ["a", "b"]}, "captions": {"prompts": ["a"]}}
        record |= changes.get(how, {})
        if how == "record":
            del record["width"]
        write_json(target / "classifier.json", record)


def test_nothing_is_written_over_what_is_not_its_own(folder: Path, tmp_path: Path) -> None:
    picture, labels, table = tmp_path / "0.png", tmp_path / "labels.csv", tmp_path / "out.csv"
    Image.new("RGB", (16, 16)).save(picture)
    labels.write_text("path,label\n0.png,3\n")
    for kept in (picture, labels):
        before = kept.read_bytes()
        with pytest.raises(
            InputError, match=f"--out .*{kept.name}: is there, and is none that --out wrote; name a new"
        ):
            predict.run([str(picture)], folder, kept, None)
        assert kept.read_bytes() == before
    for _ in range(2):
        assert predict.run([str(picture)], folder, table, None).files == 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"model\.safetensors: is missing; copy its whole folder again"),
        ("truncated", r"is no whole file of weights \(.*\); copy its whole folder"),
        ("pointer", "is a pointer of Git LFS instead of the weights; run `git lfs pull`"),
        ("nan", r"stem\.weight holds NaN or infinite weights"),
        ("classes", "does not fit what stands beside it .*size mismatch for head"),
        ("captions", "classes and captions of 1;"),
        ("record", "is not whole .'width' is missing"),
    ],
)
def test_weights_that_are_none_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    broken(folder, tmp_path / "broken", how)
    photos = delivered.wide(tmp_path / "photos", 1)
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(photos[0]), "--classifier", str(tmp_path / "broken"), "--out", str(tmp_path / "x.csv")])
    told = capsys.readouterr().err
    assert re.search(words, told)
    assert told.count("\n") == 1
    assert not (tmp_path / "x.csv").exists()


def test_logits_that_are_no_numbers_name_no_class(folder: Path) -> None:
    predictor = classifiers.load(folder)
    with torch.no_grad():
        predictor.classifier.get_parameter("head.bias")[0] = float("inf")
    with pytest.raises(InputError, match="gives NaN or infinite logits"):
        predictor.logits(np.zeros((1, 16, 16, 3), np.uint8))


def test_without_out_the_csv_goes_to_standard_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = delivered.wide(tmp_path, 2)
    main(["predict", str(tmp_path), "--classifier", str(folder)])
    shown = capsys.readouterr()
    assert [row["file"] for row in csv.DictReader(shown.out.splitlines())] == [path.as_posix() for path in files]
    assert shown.err == "predict: 2 files: 2 labelled, 0 abstained, 0 unusable\n"
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tmp_path), "--classifier", str(folder), "--threshold", "7"])
    assert capsys.readouterr().err == "dreamset: --threshold: expected a probability of 0 to 1, got 7.\n"


def test_score_says_how_often_the_classifier_is_right(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the folder below the named one, or by the folder of a named file; a file that is none counts nowhere."""
    for index, path in enumerate(delivered.wide(tmp_path / "new", 9)):
        inside = tmp_path / "labelled" / toy.CLASSES[index % 3] / ("deeper" if index == 3 else ".")
        inside.mkdir(parents=True, exist_ok=True)
        path.rename(inside / path.name)
    (tmp_path / "labelled" / toy.CLASSES[0] / "none.png").touch()
    out = tmp_path / "out.csv"
    common = ["--score", "--classifier", str(folder), "--out", str(out)]
    main(["predict", str(tmp_path / "labelled"), *common])
    said = capsys.readouterr().err.splitlines()
    found = [row for row in rows(out) if not row["error"]]
    assert len(found) == 9 and len(rows(out)) == 10
    assert {row["given"] == row["file"].split("/labelled/")[1].split("/")[0] for row in rows(out)} == {True}
    right = sum(row["given"] == row["label_1"] for row in found)
    assert said[1].startswith(f"predict: {100 * right / 9:.1f} % right of 9 images (95 % interval ")
    # Nine of nine, by Wilson: 9 / (9 + 1.96^2).
    assert "(95 % interval 70.1 to 100.0)" in _share(9, 9, "images")
    by_class = {name: [row["label_1"] for row in found if row["given"] == name] for name in toy.CLASSES}
    for name, labels in by_class.items():
        assert any(line.startswith(f"predict:   {name}: {100 * labels.count(name) / 3:.1f} %") for line in said)
        for other in {*labels} - {name}:
            assert f"predict:   {name} taken for {other}: {labels.count(other)}" in said

    main(["predict", *map(str, sorted((tmp_path / "labelled" / toy.CLASSES[1]).glob("*.*"))), *common])
    assert {row["given"] for row in rows(out)} == {toy.CLASSES[1]}


def test_folders_that_name_no_class_are_not_scored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delivered.wide(tmp_path / "labelled" / f"{toy.CLASSES[0]}s", 1)
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tmp_path / "labelled"), "--score", "--classifier", str(folder)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the folder '{toy.CLASSES[0]}s' is no class of this classifier (did you mean '{toy.CLASSES[0]}'?" in said


def test_a_reader_that_stops_reading_is_no_fault(folder: Path, tmp_path: Path) -> None:
    """As `| head` does: no traceback, and the status that the shell gives such programs."""
    delivered.wide(tmp_path, 2)
    command = [sys.executable, "-m", "dreamset", "predict", str(tmp_path), "--classifier", str(folder)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    files = [predict.File(path, None, "") for path in delivered.wide(tmp_path, 5) * 20]
    blocks = predict.decoded(files, 16, Decoding(10**6), batch=8)
    sizes = [len(images) for _, images in blocks]
    assert sizes == [8] * 12 + [4]


def test_an_interrupted_prediction_leaves_the_old_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(path) for path in delivered.wide(tmp_path / "photos", 3)]
    out = tmp_path / "out.csv"
    out.write_text("file,old\n")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(classifiers.Predictor, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict.run(files, folder, out, None)
    assert out.read_text() == "file,old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "photos"]


def test_neither_a_diffusion_model_nor_its_library_is_needed(tmp_path: Path) -> None:
    made = delivered.world(tmp_path / "made", "clip_lora").classifier
    alone = shutil.move(made, tmp_path / "alone")
    shutil.rmtree(tmp_path / "made")
    photo = delivered.wide(tmp_path / "photos", 1)[0]
    code = (
        "import sys; sys.modules |= {'diffusers': None, 'peft': None, 'accelerate': None, 'dreamset.generator': None};"
        "from dreamset.command.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(photo), "--classifier", str(alone), "--out", "out.csv"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out.csv")[0]["label"] in toy.CLASSES
