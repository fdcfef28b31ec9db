"""The recipe that draws nothing: nearest images of the base's own source, labelled by nearness alone."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import adapt, generate, prepare
from dreamset.command import plan
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file
from dreamset.core.images import png
from dreamset.core.shards import MARKER
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, folds
from dreamset.data.splits import read_split, read_test, write_split
from dreamset.data.synthetic import SyntheticImage, read_metadata
from dreamset.data.work import Work
from dreamset.drawing import pools, retrieve
from dreamset.params import Params
from dreamset.sources import digits

ROOT = Path(__file__).parents[1]
SHAPES = ("0Oo", "1Il", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project with the bundled base's renderer."""
    place = Workspace.at(tmp_path_factory.mktemp("project"))
    (place.root / "models/base").mkdir(parents=True)
    shutil.copyfile(ROOT / "models/base/params.yaml", place.root / "models/base/params.yaml")
    return place


def parse(raw: dict[str, Any], **generate_row: int) -> Params:
    changed = copy.deepcopy(raw)
    changed["active"] = ["retrieved"]
    row = changed["models"]["bundled"]
    row["clip"] = str(ROOT / "models/base/clip")
    row["generate"] |= {"batch": 20} | generate_row
    return toy.parse(changed)


def run(params: Params, place: Workspace) -> tuple[dict[str, Any], list[SyntheticImage]]:
    prepare.run(params, place)
    adapt.run(params, place, "retrieved")
    summary = generate.run(params, place, "retrieved")
    return summary, read_metadata(place.synthetic("retrieved"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_each_class_gets_its_nearest_and_no_image_is_given_twice() -> None:
    scores = np.array([[9, 1], [8, 7], [1, 6], [2, 3], [0, 5]], np.float32)
    assert retrieve.draft(scores, 2).tolist() == [[0, 2], [1, 4]]
    random = np.random.default_rng(0).normal(0, 1, (60, 5)).astype(np.float32)
    whole = retrieve.draft(random, 12)
    assert sorted(whole.ravel().tolist()) == list(range(60))
    for count in (1, 5, 11):
        assert np.array_equal(retrieve.draft(random, count), whole[:count])
    few = retrieve.draft(random, 3)
    for label in range(5):
        own = np.flatnonzero(random.argmax(1) == label)
        assert few[:, label].tolist() == own[np.argsort(-random[own, label])][:3].tolist()


def test_a_class_that_is_nearest_to_nothing_gets_what_is_left() -> None:
    scores = np.array([[5, 1], [6, 3], [7, 2], [8, 0]], np.float32)
    # All are nearest to the first class; the second takes its best of those not taken yet.
    assert retrieve.draft(scores, 2).tolist() == [[3, 1], [2, 0]]


def test_glyphs_of_the_right_shape_are_found_among_all_characters(raw: dict[str, Any], workspace: Workspace) -> None:
    params = parse(raw, per_class=4)
    summary, rows = run(params, workspace)
    assert (summary["images"], summary["drawn_now"], summary["sampler"]) == (40, 40, None)
    assert read_json(workspace.result("adapt", "retrieved"), "")["adapters"] == 0
    assert [(row.label, row.index) for row in rows] == [(label, k) for label in range(10) for k in range(4)]
    assert all((row.origin, row.adapter, row.sampler) == ("retrieval", None, {}) for row in rows)
    sources = [row.source or "" for row in rows]
    assert len(set(sources)) == 40
    right = [source.split(": ")[1][0] in SHAPES[row.label] for row, source in zip(rows, sources, strict=True)]
    assert np.mean(right) > 0.8
    # Nearer first, within each of the blocks of two.
    assert all(
        a.nearness >= b.nearness for a, b in zip(rows[::2], rows[1::2], strict=True) if a.nearness and b.nearness
    )
    folder = workspace.synthetic("retrieved")
    card = (folder / "README.md").read_text()
    assert "none of them generated" in card
    assert "all synthetic" not in card
    with Image.open(folder / rows[0].file_name) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")
        assert image.text["Origin"] == "retrieved, not generated"
    assert "U-Net" not in plan.describe(params, workspace, "generate", "retrieved")
    read = arrays.synthetic(folder, read_split(workspace.splits), 16)
    assert np.bincount(read.labels).tolist() == [4] * 10


def test_more_images_keep_the_first_and_other_shots_share_what_was_searched(
    raw: dict[str, Any], workspace: Workspace
) -> None:
    run(parse(raw, per_class=4), workspace)
    before = content(workspace.synthetic("retrieved"))
    searched = {path.parent: path.stat().st_mtime_ns for path in workspace.shards.glob("*/features.npy")}
    assert len(searched) == 2
    assert run(parse(raw, per_class=4), workspace)[0]["drawn_now"] == 0
    summary, _ = run(parse(raw, per_class=6), workspace)
    after = content(workspace.synthetic("retrieved"))
    assert summary["drawn_now"] == 20
    assert len(after) == 60
    assert before.items() <= after.items()
    more = {path.parent: path.stat().st_mtime_ns for path in workspace.shards.glob("*/features.npy")}
    assert searched.items() < more.items()
    assert len(more) == 3
    summary, rows = run(parse(raw | {"shots": 2}, per_class=4), workspace)
    assert summary["drawn_now"] == 40
    assert {path.parent for path in workspace.shards.glob("*/features.npy")} == set(more)
    assert content(workspace.synthetic("retrieved")) != before
    _, others = run(parse(raw | {"shots": 2, "seed": 1}, per_class=4), workspace)
    assert not {row.sha256 for row in rows} & {row.sha256 for row in others}
    assert all((folder / MARKER).is_file() for folder in more)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Digits of the selection writers, one of them twice and one of no use, in folders that say nothing."""
    folder = tmp_path / "pictures"
    images, labels, _ = digits.load(["selection"])
    for index, (pixels, label) in enumerate(zip(images[:120], labels, strict=False)):
        path = folder / f"part{index % 3}" / f"{index:03d}_{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    shutil.copyfile(folder / f"part0/000_{labels[0]}.png", folder / "part1/copy.png")
    (folder / "part1/broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_folder_is_searched_without_its_folders_names_copies_and_labelled_images(
    raw: dict[str, Any], tmp_path: Path, pictures: Path
) -> None:
    raw["models"]["bundled"]["retrieval"] = f"imagefolder:{pictures}"
    raw["selection"] = "fixed"
    place = Workspace.at(tmp_path / "project")
    params = parse(raw, per_class=5)
    prepare.run(params, place)
    shot = read_split(place.splits).train[0]
    shutil.copyfile(place.cell / shot.path, pictures / "part2/shot.png")
    _, rows = run(params, place)
    sources = [row.source or "" for row in rows]
    assert len(set(sources)) == 50
    assert not {"part2/shot.png", "part1/broken.png"} & set(sources)
    named = [source for source in sources if source[0] == "p" and "_" in source]
    right = [int(row.source[-5]) == row.label for row in rows if row.source in named]
    assert np.mean(right) > 0.7
    five = content(place.synthetic("retrieved"))
    _, rows = run(parse(raw, per_class=7), place)
    assert five.items() <= content(place.synthetic("retrieved")).items()
    assert len({row.source for row in rows}) == 70


def test_too_few_images_are_told_with_the_numbers(raw: dict[str, Any], tmp_path: Path, pictures: Path) -> None:
    place = Workspace.at(tmp_path / "project")
    raw["models"]["bundled"]["retrieval"] = f"imagefolder:{pictures}"
    raw["selection"] = "fixed"
    with pytest.raises(InputError, match=r"models\.bundled\.retrieval: .* has 121 usable images .* are 130; lower"):
        run(parse(raw, per_class=13), place)
    # One of 121 is broken: 12 for each class fit still, and no more.
    assert run(parse(raw, per_class=12), place)[0]["images"] == 120
    (pictures / "part0/003_3.png").write_bytes(b"broken too")
    with pytest.raises(InputError, match="has 119 usable images"):
        run(parse(raw, per_class=12), place)
    raw["models"]["bundled"]["retrieval"] = "imagefolder:nowhere"
    with pytest.raises(InputError, match="nowhere is no folder"):
        run(parse(raw, per_class=2), place)


def test_a_fold_finds_neither_what_it_holds_out_nor_test_images(
    raw: dict[str, Any], tmp_path: Path, pictures: Path
) -> None:
    raw["models"]["bundled"]["retrieval"] = f"imagefolder:{pictures}"
    place = Workspace.at(tmp_path / "project")
    params = parse(raw, per_class=5)
    prepare.run(params, place)
    split = read_split(place.splits)
    test = read_test(place.test_split).test[0]
    held = folds.held_out(split, folds.SELECTING, "selection")[0]
    for name, sample in (("test", test), ("held", held[0])):
        shutil.copyfile(place.cell / sample.path, pictures / f"part2/{name}.png")
    assert {"part2/test.png", "part2/held.png"} <= {name for name, _ in pools.searched(params, place)}
    fold = folds.at(place, "selection", 0)
    write_split(fold.splits, folds.without(split, held, place))
    assert not {test.sha256, held[0].sha256} & {sample.sha256 for sample in read_split(fold.splits).train}
    pool = pools._folder(Work.read(params, fold, params.active[0]), 5)
    # Of 122 files that are no copies of one another (one is broken) all but those two are left.
    assert pool.size == 121


def test_what_is_searched_is_told_by_content(raw: dict[str, Any], tmp_path: Path, workspace: Workspace) -> None:
    folder = tmp_path / "pool"
    (folder / "a").mkdir(parents=True)
    (folder / "a/0.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    (folder / "notes.txt").write_text("no image")
    glyphs = pools.searched(parse(raw), workspace)
    assert glyphs[0] == ("models/base/params.yaml", sha256_file(workspace.root / "models/base/params.yaml"))
    raw["models"]["bundled"]["retrieval"] = f"imagefolder:{folder}"
    first = pools.searched(parse(raw), workspace)
    assert first == [("a/0.png", sha256_file(folder / "a/0.png"))]
    (folder / "a/0.png").write_bytes(png(np.ones((5, 5, 3), np.uint8)))
    assert pools.searched(parse(raw), workspace) == [("a/0.png", sha256_file(folder / "a/0.png"))] != first


def test_run_by_name_with_nothing_to_retrieve_from(raw: dict[str, Any], workspace: Workspace) -> None:
    raw["models"]["bundled"]["retrieval"] = None
    raw["models"]["bundled"]["clip"] = str(ROOT / "models/base/clip")
    params = toy.parse(raw)
    assert "retrieved" not in params.active
    with pytest.raises(InputError, match=r"models\.bundled\.retrieval: is null"):
        run(params, workspace)
