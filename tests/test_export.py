"""What leaves the project: an ONNX file that answers alike, and a dataset without the shots."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import delivered
import toy
from dreamset import classifiers
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write, sha256, write_json
from dreamset.core.images import png, read_rgb
from dreamset.core.resizing import resize_crop
from dreamset.core.workspace import Workspace
from dreamset.data import decisions
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.use import export
from test_pipeline import closure


@pytest.mark.parametrize(("name", "size"), delivered.PROGRAMS)
def test_onnx_agrees_with_the_classifier(tmp_path: Path, name: str, size: int) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    own = {f"models__bundled__train__{name}__size": size} if classifiers.ROWS[name].from_scratch else {}
    folder = delivered.world(tmp_path, name, **own).classifier
    export.onnx(folder, tmp_path / "classifier.onnx")
    session = runtime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    side = json.loads((folder / "classifier.json").read_text())["preprocessing"]["side"]
    images = np.stack([resize_crop(read_rgb(path), side) for path in delivered.wide(tmp_path / "photos", 7)])
    predictor = classifiers.load(folder)
    for count in (1, 2, 7):
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images[:count]})
        expected = predictor.logits(images[:count])
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        np.testing.assert_allclose(probabilities, predictor.probabilities(expected), atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(toy.CLASSES)
    assert json.loads(facts["temperature"]) == delivered.TEMPERATURE
    assert json.loads(facts["licence"]) == "apache-2.0"
    picture = next((tmp_path / "photos").rglob("*.png"))
    before = picture.read_bytes()
    with pytest.raises(InputError, match=r"--onnx .*: is there, and is none that --onnx wrote"):
        export.onnx(folder, picture)
    assert picture.read_bytes() == before


def test_without_the_packages_of_onnx_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--onnx", str(tmp_path / "x.onnx"), "--classifier", str(tmp_path)])
    assert capsys.readouterr().err == "dreamset: export --onnx: needs onnxscript; run `pip install -e '.[export]'`.\n"


@pytest.mark.parametrize("module", ["use.predict", "use.export"])
def test_what_uses_a_classifier_imports_nothing_that_draws(module: str) -> None:
    assert not [path for path in closure(f"dreamset.{module}") if "generat" in path]


@pytest.fixture
def made(workspace: Workspace) -> Workspace:
    """Shots, an evaluation, and a dataset of which two images are copies of a shot and one tells a caption.

    The other images show nothing that a shot shows; the toy's bars would be shifted copies of each other.
    """
    toy.write_splits(workspace)
    toy.write_judge(workspace.root / "judge")
    (workspace.root / "sd").mkdir()
    rows = toy.write_synthetic(workspace, "datadream_dset")
    folder, split = workspace.synthetic("datadream_dset"), read_split(workspace.splits)
    changed, rng = [], np.random.default_rng(7)
    for row in rows:
        data = png(np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((4, 4, 1))).astype(np.uint8))
        atomic_write(folder / row.file_name, data)
        fields: dict[str, Any] = {"sha256": sha256(data)}
        if (row.label, row.index) in {(0, 2), (1, 4)}:
            shot = next(sample for sample in split.train if sample.label == row.label)
            pixels = np.asarray(read_rgb(workspace.cell / shot.path)).copy()
            pixels[0, 0] ^= 1  # no two files are equal
            data = png(pixels, {"Seed": "7"})
            atomic_write(folder / row.file_name, data)
            fields["sha256"] = sha256(data)
        if (row.label, row.index) == (2, 0):
            fields["prompt"] = "a photo of a spot on Anna's left arm"
        changed.append(dataclasses.replace(row, adapter="f" * 64, **fields))
    write_metadata(folder, changed)
    duplicates = {"threshold": 0.02, "count": 2, "pairs": []}
    write_json(workspace.result("evaluate"), {"sets": {"datadream_dset": {"near_duplicates": duplicates}}})
    write_json(workspace.result("generate", "datadream_dset"), {"rejected": 2})
    return workspace


def params(workspace: Workspace, **changes: Any) -> Any:
    rows = {"models__bundled__judge": "judge", "models__bundled__generator": str(workspace.root / "sd")}
    return toy.params(**rows, **changes)


def test_a_published_dataset_holds_no_copy_of_a_shot(made: Workspace, tmp_path: Path) -> None:
    target = tmp_path / "public"
    done = export.public(params(made), made, "datadream_dset", target)
    reasons = {"near-duplicates of shots": 2, "with other prompts than the class's": 1}
    assert done == {"images": 15, "removed": reasons}
    files = {path.relative_to(target).as_posix() for path in target.rglob("*.png")}
    rows = [json.loads(line) for line in (target / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == sorted(files)
    assert len(files) == 15
    assert not files & {"000_bar/00002.png", "001_plank/00004.png", "002_spot/00000.png"}
    source = made.synthetic("datadream_dset")
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in files)
    assert len(read_metadata(source)) == 18


def test_nothing_published_tells_where_the_shots_are(made: Workspace, tmp_path: Path) -> None:
    split = json.loads(made.splits.read_text())
    write_json(made.splits, split | {"source": f"imagefolder:{tmp_path}/patients"})
    target = tmp_path / "public"
    export.public(params(made), made, "datadream_dset", target)
    everything = b"".join(path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file())
    secrets = [str(tmp_path), "patients", "Anna", "f" * 64, *(s["path"] for s in split["train"])]
    secrets += [sample["sha256"] for sample in split["train"]]
    assert not [secret for secret in secrets if secret.encode() in everything]
    assert {path.name for path in target.iterdir()} == {
        "README.md",
        "metadata.jsonl",
        "000_bar",
        "001_plank",
        "002_spot",
    }
    card = (target / "README.md").read_text()
    assert "Not anonymised; adapters contain the shots." in card
    assert "2 near-duplicates of shots" in card and "license: apache-2.0" in card
    assert "15 images of 3 classes (5 per class), **all synthetic**" in card


def test_all_images_are_held_against_all_shots(made: Workspace, tmp_path: Path) -> None:
    # The evaluation keeps only a few of the nearest pairs, here none; a threshold above all distances takes every one.
    found = json.loads(made.result("evaluate").read_text())
    found["sets"]["datadream_dset"]["near_duplicates"]["threshold"] = 1e9
    write_json(made.result("evaluate"), found)
    with pytest.raises(InputError, match=r"no image of class 'bar' may be published \(18 near-duplicates of shots"):
        export.public(params(made), made, "datadream_dset", tmp_path / "public")
    assert not (tmp_path / "public").exists()


def test_what_a_person_rejected_is_counted_and_not_published(made: Workspace, tmp_path: Path) -> None:
    rows = read_metadata(made.synthetic("datadream_dset"))
    path, target = made.review("datadream_dset"), tmp_path / "public"
    chosen: dict[decisions.Picture, decisions.Decision] = {decisions.picture(row): "kept" for row in rows}
    decisions.write(path, "datadream_dset", chosen | {decisions.picture(rows[4]): "rejected"})
    with pytest.raises(InputError, match=r"rejects 1 of the pictures in .*; run `dreamset generate datadream_dset`"):
        export.public(params(made), made, "datadream_dset", target)
    assert not target.exists()
    # Two were rejected and replaced before; all of those published were looked at.
    decisions.write(path, "datadream_dset", chosen | {("bar", 9, "a" * 64): "rejected"})
    export.public(params(made), made, "datadream_dset", target)
    card = (target / "README.md").read_text()
    assert "2 of 17 looked at rejected by a person and replaced; all 15 have been looked at" in card


def test_a_folder_in_use_is_left_alone(made: Workspace, tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already; name a new folder, or empty it"):
        export.public(params(made), made, "datadream_dset", tmp_path / "public")
    assert (tmp_path / "public/mine.txt").read_text() == "mine"


def test_targets_below_a_file_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: object())
    (tmp_path / "file").touch()
    for option, more in (("--onnx", ()), ("--public", ("--recipe", "datadream_dset"))):
        with pytest.raises(SystemExit, match="2"):
            main(["export", option, str(tmp_path / "file/x"), *more, "--params", str(toy.ROOT / "params.yaml")])
        assert f"{option} {tmp_path}/file/x: lies below a file" in capsys.readouterr().err


def test_a_dataset_that_was_not_evaluated_is_not_published(made: Workspace, tmp_path: Path) -> None:
    toy.write_synthetic(made, "stable_diffusion")
    write_json(made.result("generate", "stable_diffusion"), {"rejected": 0})
    with pytest.raises(InputError, match="has no near-duplicates of stable_diffusion; run `dreamset evaluate`"):
        export.public(params(made), made, "stable_diffusion", tmp_path / "public")


def test_public_wants_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--public", str(tmp_path / "x")])
    assert capsys.readouterr().err.startswith("dreamset: export --public: needs --recipe")
