"""A dataset as one array: its order, its size, its values, and its labels by name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import toy
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.files import atomic_write
from dreamset.core.images import read_rgb
from dreamset.core.workspace import Workspace
from dreamset.data import decisions
from dreamset.data.splits import write_split
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.use.tensors import KNOWN, tensors

RECIPE = "stable_diffusion"


@pytest.fixture
def rows(workspace: Workspace) -> list[SyntheticImage]:
    """A dataset of three classes of 16-pixel pictures, with splits beside it."""
    toy.write_splits(workspace)
    return toy.write_synthetic(workspace, RECIPE, per_class=2)


def written(target: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_file(target / "images.safetensors"), json.loads((target / "labels.json").read_text())


def test_images_come_in_order_with_labels_by_name(workspace: Workspace, rows: list[SyntheticImage]) -> None:
    target = workspace.root / "out"
    done = tensors(toy.params(), workspace, RECIPE, target)
    arrays, names = written(target)
    assert done == names and names["licence"] == "apache-2.0" and names["synthetic"] is True
    assert arrays["images"].shape == (6, 3, 16, 16) and arrays["images"].dtype == np.uint8
    assert arrays["labels"].dtype == np.int64
    assert [names["classes"][label] for label in arrays["labels"]] == names["labels"] == [r.class_name for r in rows]
    folder = workspace.synthetic(RECIPE)
    for pixels, name in zip(arrays["images"], names["files"], strict=True):
        assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(read_rgb(folder / name)))
    with safe_open(target / "images.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == list(toy.CLASSES)


@pytest.mark.usefixtures("rows")
def test_both_files_say_the_same_licence_and_what_was_not_generated(workspace: Workspace) -> None:
    student = {"models__bundled__student__licence": "mit", "models__bundled__generate__student": True}
    shutil.copytree(workspace.synthetic(RECIPE), workspace.synthetic("retrieved"))
    for number, (recipe, changes, licence, synthetic) in enumerate(
        (
            (RECIPE, student, "mit", True),
            ("retrieved", {}, "apache-2.0", False),
            ("retrieved", {"models__bundled__retrieval": "imagefolder:elsewhere"}, "other", False),
        )
    ):
        target = workspace.root / f"out{number}"
        done = tensors(toy.params(**changes), workspace, recipe, target)
        assert (done["licence"], done["synthetic"]) == (licence, synthetic)
        with safe_open(target / "images.safetensors", "np") as file:
            assert file.metadata()["licence"] == licence


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (8, 8)), ("8", (8, 8)), ("12x12", (12, 12)), ("6x10", (6, 10)), ("10x6", (10, 6))]
)
@pytest.mark.usefixtures("rows")
def test_any_size_is_covered_and_cut(workspace: Workspace, size: str | None, shape: tuple[int, int]) -> None:
    split = dataclasses.replace(toy.write_splits(workspace), native=8)
    write_split(workspace.splits, split)
    done = tensors(toy.params(), workspace, RECIPE, workspace.root / "out", size)
    assert tuple(done["shape"]) == (6, 3, *shape)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("name", [*KNOWN, "own"])
def test_normalised_values_are_those_that_were_stored(workspace: Workspace, name: str) -> None:
    plain, target = workspace.root / "plain", workspace.root / "out"
    tensors(toy.params(), workspace, RECIPE, plain)
    tensors(toy.params(), workspace, RECIPE, target, normalise=name)
    (stored, _), (arrays, names) = written(plain), written(target)
    values = arrays["images"]
    assert values.dtype == np.float32 and names["dtype"] == "float32"
    mean, std = (np.array(names[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    np.testing.assert_allclose((values * std + mean) * 255, stored["images"], atol=1e-3)
    if name == "own":
        np.testing.assert_allclose(values.mean((0, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(values.std((0, 2, 3)), 1, atol=1e-4)
    else:
        assert (tuple(names["mean"]), tuple(names["std"])) == KNOWN[name]


def test_copies_say_whose_they_are(workspace: Workspace, rows: list[SyntheticImage]) -> None:
    folder, more = workspace.synthetic(RECIPE), []
    for row in rows:
        name = f"{row.file_name.removesuffix('.png')}_1.png"
        atomic_write(folder / name, (folder / row.file_name).read_bytes())
        more += [row, dataclasses.replace(row, file_name=name, copy_of=row.file_name)]
    write_metadata(folder, more)
    done = tensors(toy.params(), workspace, RECIPE, workspace.root / "out")
    assert done["shape"][0] == 12
    assert done["copy_of"][:4] == [None, "000_bar/00000.png", None, "000_bar/00001.png"]


def test_the_verb_says_what_it_has_written(
    workspace: Workspace,
    rows: list[SyntheticImage],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workspace.root)
    given = ["--params", str(toy.ROOT / "params.yaml"), "--recipe", RECIPE]
    main(["export", "--tensors", "out", *given, "--size", "4x6", "--normalise", "cifar100"])
    said = capsys.readouterr().out
    assert said == "export: 6 x 3 x 4 x 6 float32 in out; near-duplicates of shots are among them\n"
    for more, words in (
        (["--tensors", "again", "--size", "large"], "--size: expected HEIGHTxWIDTH such as 32x32"),
        (
            ["--tensors", "again", "--normalise", "best"],
            "--normalise: expected one of imagenet, cifar10, cifar100, own",
        ),
        (["--tensors", "out"], "out: exists already; name a new folder"),
        (["--public", "again", "--size", "8"], "export --size: belongs to --tensors"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["export", *more, *given])
        assert words in capsys.readouterr().err
    assert not (workspace.root / "again").exists()


def test_what_was_changed_or_rejected_is_not_written(workspace: Workspace, rows: list[SyntheticImage]) -> None:
    chosen: dict[decisions.Picture, decisions.Decision] = {decisions.picture(rows[0]): "rejected"}
    decisions.write(workspace.review(RECIPE), RECIPE, chosen)
    with pytest.raises(InputError, match=r"rejects 1 of the pictures in .*run `dreamset generate stable_diffusion`"):
        tensors(toy.params(), workspace, RECIPE, workspace.root / "out")
    workspace.review(RECIPE).unlink()
    path = workspace.synthetic(RECIPE) / rows[3].file_name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"00001\.png: is missing or was changed; run `dreamset generate"):
        tensors(toy.params(), workspace, RECIPE, workspace.root / "out")
    assert not (workspace.root / "out").exists()
    assert len(read_metadata(workspace.synthetic(RECIPE))) == 6
