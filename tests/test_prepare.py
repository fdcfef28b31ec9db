"""Splits: nested, seeded, disjoint, and safe from whatever a folder holds."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import params as parameters
from dreamset import prepare
from dreamset.core.errors import InputError
from dreamset.core.files import class_folder, sha256_file
from dreamset.core.workspace import Workspace
from dreamset.data import folds, splits
from dreamset.data.splits import Split, read_split
from dreamset.metrics import overlap, perceptual_hash
from dreamset.sources import captions, digits, layout

CALTECH = Path(__file__).parents[2] / "shared/data/caltech101-64/images"


def image(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def settings(raw: dict[str, Any], **changes: Any) -> parameters.Params:
    mine = copy.deepcopy(raw)
    for key, value in changes.items():
        (mine["prepare"] if key in mine["prepare"] else mine)[key] = value
    return toy.parse(mine)


def folder(root: Path, classes: list[str], count: int = 12) -> Path:
    for c, name in enumerate(classes):
        for i in range(count):
            image(root / name / f"{i}.png", 100 * c + i)
    return root


def test_shots_are_nested_and_test_is_fixed(raw: dict[str, Any], tmp_path: Path) -> None:
    made = {}
    for shots, seed in ((1, 0), (4, 0), (16, 0), (4, 1)):
        workspace = Workspace.at(tmp_path / f"{shots}_{seed}")
        prepare.run(settings(raw, shots=shots, seed=seed), workspace)
        made[shots, seed] = (splits.read_split(workspace.splits), workspace.test_split.read_bytes())
    for few, many in ((1, 4), (4, 16)):
        for label in range(10):
            one = [s.sha256 for s in made[few, 0][0].train if s.label == label]
            other = [s.sha256 for s in made[many, 0][0].train if s.label == label]
            assert one == other[:few]
            assert len(other) == many
    assert made[4, 0][0].train != made[4, 1][0].train
    assert len({test for _, test in made.values()}) == 1


TAIL = dict(zip(digits.CLASS_NAMES, (16, 12, 9, 7, 5, 4, 3, 2, 2, 1), strict=True))


def test_shots_of_every_form_are_nested(raw: dict[str, Any], tmp_path: Path) -> None:
    made = {}
    for name, shots in (("few", TAIL), ("16", 16), ("all", "all")):
        workspace = Workspace.at(tmp_path / name)
        prepare.run(settings(raw, shots=shots, selection="coop"), workspace)
        made[name] = splits.read_split(workspace.splits)
    assert made["few"].train_per_class == tuple(TAIL.values())
    assert sum(made["all"].train_per_class) == 915
    for label in range(10):
        few, many, every = ([s.sha256 for s in made[n].train if s.label == label] for n in ("few", "16", "all"))
        assert few == many[: len(few)]
        assert many == every[:16]
    assert made["few"].shots == TAIL
    assert [made[name].shots_in_words for name in made] == ["1 to 16", "16", "all"]
    # No class takes more labels to choose with than to learn from.
    per_class = [sum(s.label == label for s in made["few"].selection) for label in range(10)]
    assert per_class == [min(count, 4) for count in TAIL.values()]


def test_shots_by_class_name_every_class(raw: dict[str, Any], workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"shots: 'ten' is no class of digits; its classes are zero, one"):
        prepare.run(settings(raw, shots=TAIL | {"ten": 1}), workspace)
    with pytest.raises(InputError, match="shots: gives no number for class 'nine'"):
        prepare.run(settings(raw, shots={name: TAIL[name] for name in list(TAIL)[:9]}), workspace)


def test_a_small_class_is_used_whole_with_a_warning(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "w/data/raw", ["cat", "dog", "eel"])
    for i in range(3, 12):
        (root / f"dog/{i}.png").unlink()
    raw["evaluate"]["protocol"] = "test"
    workspace = Workspace.at(tmp_path / "w")
    source = f"imagefolder:{root}"
    summary = prepare.run(settings(raw, source=source, shots=5, selection="fixed"), workspace)
    assert summary["train_per_class"] == {"cat": 5, "dog": 2, "eel": 5}
    assert summary["warnings"] == [
        "1 of 3 classes have fewer images than shots asks for, and all of theirs are used ('dog' lacks most: 2 of 5)"
    ]
    enough = prepare.run(settings(raw, source=source, shots=2, selection="fixed"), workspace)
    assert enough["warnings"] == []
    every = prepare.run(settings(raw, source=source, shots="all", selection="extra:1"), workspace)
    assert every["train_per_class"] == {"cat": 7, "dog": 1, "eel": 7}
    assert (every["selection"], every["warnings"]) == (3, [])
    with pytest.raises(InputError, match=r"class 'dog' has 2 usable .*shots: all and 2 for selection"):
        prepare.run(settings(raw, source=source, shots="all", selection="extra:2"), workspace)


def photograph(seed: int) -> Image.Image:
    """A picture with forms of several sizes, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((64, 48), Image.Resampling.BICUBIC)


def two_parts(root: Path) -> Path:
    """Six photographs of each of two classes to learn from, and as many others to test."""
    for part, first in (("train", 0), ("test", 50)):
        for c, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(6):
                photograph(100 * c + first + i).save(root / part / name / f"{i}.png")
    return root


def test_near_duplicates_across_parts_are_listed_and_fail_above_a_limit(raw: dict[str, Any], tmp_path: Path) -> None:
    root = two_parts(tmp_path / "w/data/raw")
    source = f"imagefolder:{root}"
    workspace = Workspace.at(tmp_path / "w")
    clean = prepare.run(settings(raw, source=source, shots=6, selection="fixed"), workspace)
    assert (clean["near_duplicates"], json.loads(workspace.near_duplicates.read_text())) == (0, [])
    # Saved again with losses, and smaller: other bytes, other pixels, the same picture.
    photograph(3).save(root / "test/cat/again.jpg", quality=40)
    photograph(103).resize((48, 36)).save(root / "test/dog/small.png")
    params = settings(raw, source=source, shots=6, selection="fixed", max_near_duplicates=2)
    summary = prepare.run(params, workspace)
    assert "2 test or selection images are near-duplicates" in summary["warnings"][0]
    listed = json.loads(workspace.near_duplicates.read_text())
    assert {(row["image"], row["like"]) for row in listed} == {
        ("cat/again.jpg", "cat/3.png"),
        ("dog/small.png", "dog/3.png"),
    }
    assert all(row["part"] == "test" and row["like_part"] == "train" for row in listed)
    with pytest.raises(InputError, match=r"2 test or selection images .*near_duplicates\.json.*max_near_duplicates"):
        prepare.run(settings(raw, source=source, shots=6, selection="fixed", max_near_duplicates=1), workspace)


def test_near_duplicates_are_found_by_features_where_the_hash_is_blind(raw: dict[str, Any], tmp_path: Path) -> None:
    """Turned by a few degrees: other low frequencies, other thumbnails, the same glyph to the judge."""
    root = two_parts(tmp_path / "raw")
    turned = photograph(3).rotate(2, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    turned.save(root / "test/cat/turned.png")
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(settings(raw, source=f"imagefolder:{root}", shots=6, selection="fixed"), workspace)
    assert summary["near_duplicates"] == 1
    [pair] = json.loads(workspace.near_duplicates.read_text())
    assert (pair["image"], pair["like"], pair["hamming"]) == ("cat/turned.png", "cat/3.png", None)
    assert 0 < pair["ratio"] < overlap.RATIO


def test_near_duplicates_are_held_out_together(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            photograph(100 * c + i).save(root / name / f"{i}.png")
            photograph(100 * c + i).save(root / name / f"{i}.jpg", quality=40)
    raw["evaluate"]["protocol"] = "test"
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(settings(raw, source=f"imagefolder:{root}", shots=4, selection="fixed"), workspace)
    names = [Path(s.path).stem for s in splits.read_test(workspace.test_split).test if s.label == 0]
    assert names and all(names.count(name) == 2 for name in names)


def test_no_two_real_digits_are_near_duplicates(raw: dict[str, Any], workspace: Workspace) -> None:
    # 8x8 pixels: hundreds of pairs agree in the hash alone.
    summary = prepare.run(settings(raw, shots="all", selection="extra:16"), workspace)
    assert (summary["train"], summary["near_duplicates"]) == (915, 0)


def test_a_picture_of_one_colour_is_like_no_other() -> None:
    flat = perceptual_hash.Thumbnails([bytes([value]) * 256 for value in (0, 9, 255)])
    assert not list(perceptual_hash.within(flat))


def test_writers_do_not_cross_splits(raw: dict[str, Any], workspace: Workspace) -> None:
    prepare.run(settings(raw, shots=16, selection="coop"), workspace)
    split, test = splits.read_split(workspace.splits), splits.read_test(workspace.test_split)
    parts = [{s.group for s in part} for part in (split.train, split.selection, test.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert len(test.test) == 640
    assert len(split.selection) == 40  # min(16, 4) per class


def test_the_digits_are_all_there_once() -> None:
    counts = [len(digits.load([part])[1]) for part in ("train", "selection", "test")]
    assert sum(counts) == 1797
    images, labels, _ = digits.load(["test"])
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert set(labels.tolist()) == set(range(10))


def test_class_names_of_any_kind_stay_inside(raw: dict[str, Any], tmp_path: Path) -> None:
    names = ["..", "../x", "a/b", "CON", ".hidden", "ünï cödé", "日本語", "x" * 300, "  ", "a\nb", "Three"]
    slugs = [class_folder(label, name) for label, name in enumerate(names)]
    assert len(set(slugs)) == len(names)
    for slug in slugs:
        assert (tmp_path / slug).resolve().parent == tmp_path.resolve()
        assert slug.isascii() and len(slug) < 60 and "/" not in slug
    assert sorted(slugs) == slugs
    on_disk = ["dots..", "ünï cödé", "two words", "x" * 200, "-rf", "<script>"]
    root = folder(tmp_path / "raw", on_disk)
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(settings(raw, source=f"imagefolder:{root}"), workspace)
    assert splits.read_split(workspace.splits).classes == tuple(sorted(on_disk))


def test_train_and_test_folders(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    folder(root / "train", ["cat", "dog"], 8)
    for i, name in enumerate(("cat", "dog")):
        image(root / "test" / name / "t.png", 900 + i)
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(settings(raw, source=f"imagefolder:{root}", shots=2), workspace)
    test = splits.read_test(workspace.test_split).test
    assert [Path(s.path).name for s in test] == ["t.png", "t.png"]
    image(root / "test/cow/t.png", 3)
    with pytest.raises(InputError, match=r"different classes.*cow"):
        prepare.run(settings(raw, source=f"imagefolder:{root}", shots=2), workspace)


def test_one_picture_in_two_splits_fails(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    folder(root / "train", ["cat", "dog"], 4)
    image(root / "test/dog/0.png", 78)
    image(root / "test/cat/0.png", 77)
    # The same pixels in another file format.
    Image.open(root / "train/dog/1.png").save(root / "test/dog/again.bmp")
    with pytest.raises(InputError, match="same picture"):
        prepare.run(settings(raw, source=f"imagefolder:{root}", shots=2, selection="extra:2"), Workspace.at(tmp_path))


def test_copies_of_one_picture_are_held_out_together(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"], 10)
    for i in range(10):
        Image.open(root / f"cat/{i}.png").save(root / f"cat/copy{i}.bmp")
    workspace = Workspace.at(tmp_path / "w")
    held_out = {"source": f"imagefolder:{root}", "evaluate": raw["evaluate"] | {"protocol": "test"}}
    prepare.run(settings(raw, **held_out, shots=2, selection="fixed"), workspace)
    names = [
        Path(s.path).stem.removeprefix("copy") for s in splits.read_test(workspace.test_split).test if s.label == 0
    ]
    assert all(names.count(name) == 2 for name in names)


def test_unusable_files_are_listed_with_the_reason(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    (root / "cat/empty.png").write_bytes(b"")
    (root / "cat/text.jpg").write_text("no image")
    (root / "cat/notes.odt").write_text("notes")
    whole = (root / "cat/0.png").read_bytes()
    (root / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (9000, 9000)).save(root / "dog/huge.png")
    Image.new("I;16", (16, 16)).save(root / "dog/deep.png")
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    first.save(root / "dog/moving.webp", save_all=True, append_images=[second])
    workspace = Workspace.at(tmp_path / "w")
    prepare.run(settings(raw, source=f"imagefolder:{root}"), workspace)
    rejected = {Path(row["file"]).name: row["reason"] for row in json.loads(workspace.rejected.read_text())}
    assert set(rejected) == {"empty.png", "text.jpg", "notes.odt", "cut.png", "huge.png", "deep.png", "moving.webp"}
    assert rejected["empty.png"] == "empty file"
    assert "pixels" in rejected["huge.png"]
    assert "frame" in rejected["moving.webp"]
    assert "damaged" in rejected["cut.png"]
    with pytest.raises(InputError, match=r"7 files .*rejected\.json"):
        prepare.run(settings(raw, source=f"imagefolder:{root}", max_rejected=6), workspace)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digit", "expected one of digits, imagefolder:PATH, csv:FILE"),
        ("imagefolder:", "expected"),
        ("imagefolder:/no/such", "no folder"),
    ],
)
def test_a_wrong_source_is_one_sentence(raw: dict[str, Any], workspace: Workspace, source: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare.run(settings(raw, source=source), workspace)


def test_too_few_images_names_the_class(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"])
    for i in range(3, 12):
        (root / f"dog/{i}.png").unlink()
    with pytest.raises(InputError, match=r"class 'dog' has 3 usable images.*shots: 2"):
        prepare.run(settings(raw, source=f"imagefolder:{root}", shots=2, selection="coop"), Workspace.at(tmp_path))


@pytest.mark.skipif(not CALTECH.is_dir(), reason="the Caltech-101 photographs are not beside the project")
def test_real_photographs(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("accordion", "bonsai", "crab"):
        (root / name).symlink_to(CALTECH / name)
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(settings(raw, source=f"imagefolder:{root}", shots=4), workspace)
    split = splits.read_split(workspace.splits)
    assert (summary["train"], summary["rejected"], split.prompt(2)) == (12, 0, "a photo of a crab")
    assert all((workspace.cell / sample.path).is_file() for sample in split.train)


def test_windowed_copies_in_two_classes_are_files_of_their_own(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            # The fourth is the same in both.
            deep = np.random.default_rng(10 * c * (i < 3) + i).integers(0, 4096, (16, 16), dtype=np.uint16)
            Image.fromarray(deep).save(root / name / f"{i}.png")
    assert (root / "cat/3.png").read_bytes() == (root / "dog/3.png").read_bytes()
    raw["evaluate"]["folds"] = 2
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots=4, selection="fixed", window=[0, 4095])
    prepare.run(params, workspace)
    split = splits.read_split(workspace.splits)
    assert len({sample.path for sample in split.train}) == len(split.train) == 8
    files = {sha256_file(root / name / f"{i}.png") for name in ("cat", "dog") for i in range(4)}
    # Known by the source's files and by what was made of them.
    assert set(split.unseen) == files | {sample.sha256 for sample in split.train}


def test_every_labelled_image_is_known_by_its_hash(raw: dict[str, Any], workspace: Workspace) -> None:
    prepare.run(settings(raw, selection="coop"), workspace)
    split, test = splits.read_split(workspace.splits), splits.read_test(workspace.test_split)
    drawn = {sample.sha256 for sample in (*split.train, *split.selection, *test.test)}
    assert set(split.unseen) == drawn


# What names of folders and files say


@pytest.mark.parametrize(
    ("train", "selection", "test"),
    [
        ("Training", None, "Testing"),
        ("training", "validation", None),
        ("TRAIN", "Dev", "test"),
        ("train_images", "valid", "test images"),
        ("trainset", "val-set", "testset"),
    ],
)
def test_parts_of_any_usual_name_are_no_classes(
    raw: dict[str, Any], tmp_path: Path, train: str, selection: str | None, test: str | None
) -> None:
    for first, part in enumerate((train, selection, test)):
        for i in range(4 if part else 0):
            for c, name in enumerate(("cat", "dog")):
                image(tmp_path / "raw" / str(part) / name / f"{i}.png", 1000 * first + 100 * c + i)
    source = f"imagefolder:{tmp_path / 'raw'}"
    workspace = Workspace.at(tmp_path / "w")
    wanted = "extra:1" if selection else "fixed"
    summary = prepare.run(settings(raw, source=source, shots=4, selection=wanted), workspace)
    assert summary["train_per_class"] == {"cat": 4, "dog": 4}
    assert (summary["selection"], summary["test"]) == (2 * bool(selection), 8 * bool(test))
    assert summary["class_names"] == "(cat, dog)"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train", "test1"), r"holds test1 beside train/; keep only train/, val/ and test/ in it"),
        (("Train", "eval"), r"holds eval beside Train/"),
        (("train2017", "val2017"), r"train2017, val2017 look like parts, and none of them is train/"),
        (("val", "test"), r"test, val look like parts, and none of them is train/"),
        (("train", "Train", "test"), r"holds Train beside train/"),
    ],
)
def test_folders_that_look_like_parts_are_no_classes(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        layout.parts(tmp_path, names)


@pytest.mark.parametrize(
    "names",
    [
        ("valid", "invalid"),
        ("bus", "car", "train"),
        ("test tube", "train", "tram"),
        ("Testudo", "Valley", "train"),
        ("development", "training shoe"),
    ],
)
def test_classes_named_like_parts_stay_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert layout.parts(tmp_path, names) == {}


def test_folders_of_machines_are_no_classes_and_hold_no_shots(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"], 3)
    for odd in ("@eaDir/0.png", "#recycle", "$RECYCLE.BIN", ".Trash-1000", "__MACOSX", "@Recycle", "#snapshot"):
        for at in (root, root / "cat"):
            image(at / odd / "thumb.png", 7)
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(settings(raw, source=f"imagefolder:{root}", shots="all", selection="fixed"), workspace)
    assert summary["train_per_class"] == {"cat": 3, "dog": 3}


@pytest.mark.parametrize(
    ("copy", "group"),
    [
        ("cat/IMG_7_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg", "copies of cat/IMG_7_jpg"),
        ("cat_original_7.jpg_0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9.jpg", "copies of cat_original_7.jpg"),
        ("cat/IMG_7.jpg", None),
        ("cat/IMG_7.rf.jpg", None),
        ("cat/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9.jpg", None),
        ("cat/.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg", None),
    ],
)
def test_names_tell_the_photograph_of_a_copy(copy: str, group: str | None) -> None:
    assert layout.copies_of(copy) == group


def test_augmented_copies_stay_in_one_fold(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for c, name in enumerate(("cat", "dog")):
        for i in range(6):
            for turn in range(3):
                image(
                    root / name / f"{i % 3}{name}_jpg.rf.{'0123456789abcdef' * 2}{i}{turn}.jpg", 100 * c + 10 * i + turn
                )
    workspace = Workspace.at(tmp_path / "w")
    raw["evaluate"]["folds"] = 3
    params = settings(raw, source=f"imagefolder:{root}", shots="all", selection="fixed")
    summary = prepare.run(params, workspace)
    assert any("36 images are copies of 6 photographs by their names" in warning for warning in summary["warnings"])
    split = splits.read_split(workspace.splits)
    for held in folds.held_out(split, 3, "test"):
        kept = {sample.group for sample in split.train if sample not in held}
        assert not kept & {sample.group for sample in held}
        assert len(held) == 12
    parts = tmp_path / "parts"
    for part, turn in (("train", 0), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(3):
                seed = 1000 * turn + 100 * (name == "dog") + i
                image(parts / part / name / f"{i}_jpg.rf.{'0123456789abcdef' * 2}{turn}.jpg", seed)
    with pytest.raises(InputError, match=r"are the same group \(copies of cat/\d_jpg\); keep it in one split only"):
        prepare.run(settings(raw, source=f"imagefolder:{parts}", shots=2), workspace)


def test_many_smaller_copies_are_a_warning(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "w/data/raw"
    for c, name in enumerate(("cat", "dog")):
        (root / name / "thumbs").mkdir(parents=True)
        for i in range(4):
            photograph(100 * c + i).save(root / name / f"{i}.png")
            photograph(100 * c + i).resize((32, 24)).save(root / name / "thumbs" / f"{i}.png")
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots="all", selection="fixed")
    [folds_become, warning] = sorted(prepare.run(params, workspace)["warnings"], key=lambda text: "smaller" in text)
    assert "8 of 16 training images are smaller copies of others (first cat/thumbs/0.png of cat/0.png)" in warning
    assert "5 become 4" in folds_become


# Classes that cannot be what they seem


def test_a_class_without_test_images_is_a_warning(raw: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "w/data/raw"
    folder(root / "train", ["cat", "dog", "eel"], 4)
    for c, name in enumerate(("cat", "dog")):
        image(root / "test" / name / "t.png", 900 + c)
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots=2)
    with pytest.raises(InputError, match=r"different classes \(eel\); make them equal: an empty folder stands for"):
        prepare.run(params, workspace)
    (root / "test/eel").mkdir()
    [warning] = prepare.run(params, workspace)["warnings"]
    assert warning.startswith("1 of 3 classes have no test image, so no figure says anything of them ('eel'); add test")


def test_a_picture_under_two_classes_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "w/data/raw", ["cat", "dog"], 5)
    Image.open(root / "cat/0.png").save(root / "dog/other.bmp")
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots="all", selection="fixed")
    words = r"pictures that stand under two classes: 1 \(first .*cat/0\.png as 'cat' and .*dog/other\.bmp as 'dog'\); "
    [warning] = prepare.run(params, workspace)["warnings"]
    assert re.match(words + "their labels contradict each other, so keep each picture under the class", warning)
    # No fold may learn one label of it and score the other.
    split = splits.read_split(workspace.splits)
    for held in folds.held_out(split, 5, "test"):
        names = [Path(sample.path).name for sample in held]
        assert ("other.bmp" in names) == any(s.path.endswith("cat/0.png") for s in held)
    held_out = settings(raw, source=f"imagefolder:{root}", shots=2, evaluate=raw["evaluate"] | {"protocol": "test"})
    assert any(re.match(words, warning) for warning in prepare.run(held_out, workspace)["warnings"])
    parts = tmp_path / "parts"
    folder(parts / "train", ["cat", "dog"], 4)
    image(parts / "test/cat/t.png", 900)
    image(parts / "test/dog/t.png", 901)
    Image.open(parts / "train/cat/1.png").save(parts / "test/dog/wrong.png")
    with pytest.raises(InputError, match=r"under two classes: 1 \(first .*train/cat/1\.png as 'cat' and .*as 'dog'\)"):
        prepare.run(settings(raw, source=f"imagefolder:{parts}", shots=4), workspace)


def test_what_cannot_be_used_is_told_by_class(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "w/data/raw", ["cat", "dog", "eel"], 4)
    for i in range(3):
        (root / f"dog/{i}.png").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "cat/0.png").write_bytes(b"")
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots=1, evaluate=raw["evaluate"] | {"protocol": "test"})
    with pytest.raises(InputError, match="class 'dog' has 0 usable images to learn from beside 0 for selection and 1"):
        prepare.run(params, workspace)
    image(root / "dog/more.png", 77)
    warning = prepare.run(params, workspace)["warnings"][0]
    assert warning.startswith(
        "4 of 13 files cannot be used, by class: 'dog' 3 of 5 (60 %), 'cat' 1 of 4 (25 %); first "
    )
    assert "cat/0.png: empty file" in warning and "rejected.json lists them" in warning


def test_a_class_of_one_image_gets_advice_that_can_be_followed(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "w/data/raw", ["cat", "dog"], 6)
    image(root / "eel/0.png", 77)
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{root}", shots="all", selection="fixed")
    with pytest.raises(
        InputError, match=r"^class 'eel' has one shot only, which .*; add images of it, or leave the class"
    ):
        prepare.run(params, workspace)
    choosing = settings(raw, source=f"imagefolder:{root}", shots="all", selection="cv")
    with pytest.raises(InputError, match=r"add images of it, choose selection: fixed, or leave the class out"):
        prepare.run(choosing, workspace)
    image(root / "eel/1.png", 78)
    [warning] = prepare.run(params, workspace)["warnings"]
    assert warning == (
        "evaluate.folds: 5 become 2, because class 'eel' has only 2 shots; each fold learns from 50 % of the shots and "
        "not from 80 %; add images of that class, or leave it out"
    )


def test_images_that_dvc_does_not_see_are_a_warning(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", ["cat", "dog"], 5)
    workspace = Workspace.at(tmp_path / "w")
    params = settings(raw, source=f"imagefolder:{workspace.raw}", shots="all", selection="fixed")
    workspace.raw.mkdir(parents=True)
    (workspace.raw / "cat").symlink_to(root / "cat")
    shutil.copytree(root / "dog", workspace.raw / "dog")
    [warning] = prepare.run(params, workspace)["warnings"]
    assert warning.startswith("DVC does not see changes of 5 of 10 images (first ")
    assert "after a change run `dvc repro -f prepare`, then `dvc repro`" in warning
    # The folder itself may be a link, which DVC follows.
    shutil.rmtree(workspace.raw)
    workspace.raw.symlink_to(root)
    assert prepare.run(params, workspace)["warnings"] == []


# Captions


def told(raw: dict[str, Any], classes: tuple[str, ...], template: str, **more: Any) -> list[str]:
    """What is said of captions that the bundled base and its CLIP read."""
    raw["models"]["bundled"] |= {"generator": f"{toy.ROOT}/models/base/sd", "clip": f"{toy.ROOT}/models/base/clip"}
    split = Split("toy", classes, template, (), 1, 0, (), (), **more)
    return captions.check(split, toy.parse(raw), Workspace.at(toy.ROOT))


def test_classes_that_a_text_encoder_cannot_tell_apart_are_named(raw: dict[str, Any]) -> None:
    template = "a photo of a {class}"
    with pytest.raises(InputError) as raised:
        told(raw, ("scratch", "printed circuit board missing hole", "printed circuit board mouse bite"), template)
    words = str(raised.value)
    named = "classes 'printed circuit board missing hole' and 'printed circuit board mouse bite' are one to models."
    assert words.startswith(f"{named}bundled.generator, which reads the same 24 tokens of")
    assert words.endswith("; rename one of them, or shorten prepare.template.")
    # A recipe that asks by the bare name has captions that end in time.
    label = raw["recipes"]["stable_diffusion"] | {"prompt": "label"}
    raw |= {"active": ["stable_diffusion"], "recipes": raw["recipes"] | {"stable_diffusion": label}}
    raw["train"] |= {"classifiers": ["resnet20"], "baselines": []}
    own = ("{class}",)
    assert told(raw, ("circuit board missing hole", "circuit board mouse bite"), template, clip_templates=own) == []


def test_a_caption_that_is_cut_is_said(raw: dict[str, Any]) -> None:
    assert told(raw, digits.CLASS_NAMES, "a photo of the digit {class}") == []
    found = told(raw, ("seven", "eight and everything else that is round"), "a photo of the digit {class}")
    assert [words.partition(" captions")[0] for words in found] == ["1 of 2", "1 of 2"]
    assert all("and are cut (first: 'a photo of the digit eight and everything" in words for words in found)
    assert "models.bundled.generator reads" in found[0] and "models.bundled.clip reads" in found[1]


def test_clip_as_it_is_has_captions_of_its_own(raw: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prepare.clip_templates: each must hold \{class\} exactly once"):
        toy.params(prepare__clip_templates=["a {class}", "a digit"])
    with pytest.raises(InputError, match=r"prepare.clip_templates: each must hold \{class\} exactly once"):
        toy.params(prepare__clip_templates=[])
    for given in (None, ["{class}, a digit.", "the number {class}"]):
        raw["prepare"]["clip_templates"] = given
        place = Workspace.at(tmp_path / str(given is None))
        prepare.run(toy.parse(raw), place)
        split = read_split(place.splits)
        assert ("clip_templates" in json.loads(place.splits.read_text())) == (given is not None)
        assert split.prompt(3) == "a photo of the digit three"
        captions_of_three = [each[3] for each in split.clip_prompts()]
        assert captions_of_three == (["three, a digit.", "the number three"] if given else [split.prompt(3)])


def test_a_test_part_that_is_not_used_is_told(raw: dict[str, Any], tmp_path: Path) -> None:
    for first, part in enumerate(("train", "test")):
        for i in range(3):
            for c, name in enumerate(("cat", "dog")):
                image(tmp_path / "raw" / part / name / f"{i}.png", 1000 * first + 100 * c + i)
    raw["evaluate"] |= {"protocol": "cv", "folds": 3}
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(settings(raw, source=f"imagefolder:{tmp_path / 'raw'}", shots="all"), workspace)
    assert (summary["train"], summary["test"]) == (6, 0)
    told = [warning for warning in summary["warnings"] if "6 test images of the source are not used" in warning]
    assert len(told) == 1 and told[0].endswith("evaluate.protocol: test uses them")
    raw["evaluate"]["protocol"] = "test"
    summary = prepare.run(settings(raw, source=f"imagefolder:{tmp_path / 'raw'}", shots="all"), workspace)
    assert summary["test"] == 6
    assert not any("not used" in warning for warning in summary["warnings"])


def test_a_test_part_without_images_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw/train", ["cat", "dog"], 3).parent
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0.png").write_bytes(b"")
    workspace = Workspace.at(tmp_path / "w")
    with pytest.raises(InputError, match=r"its test part has no usable image; add .* evaluate\.protocol: cv"):
        prepare.run(settings(raw, source=f"imagefolder:{root}", shots=3), workspace)
    raw["evaluate"]["protocol"] = "cv"
    assert prepare.run(settings(raw, source=f"imagefolder:{root}", shots=3), workspace)["protocol"] == "cv"


def test_a_class_of_unusable_files_says_why(raw: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"], 3)
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"'dog' has 0 .* \(3 of its files cannot be used, first .*0\.png: empty file\)"
    ):
        prepare.run(settings(raw, source=f"imagefolder:{root}", shots=3), Workspace.at(tmp_path / "w"))


@pytest.mark.parametrize("inside", [False, True])
def test_links_to_folders_are_told(raw: dict[str, Any], tmp_path: Path, inside: bool) -> None:
    root = folder(tmp_path / "raw", ["cat", "dog"], 3)
    folder(tmp_path, ["more"], 2)
    (root / "cat/linked").symlink_to(root / "dog" if inside else tmp_path / "more")
    (root / "cat/.hidden").symlink_to(tmp_path / "more")
    workspace = Workspace.at(tmp_path / "w")
    summary = prepare.run(settings(raw, source=f"imagefolder:{root}", shots=3), workspace)
    assert (summary["train"], summary["rejected"]) == (6, 1)
    (row,) = json.loads(workspace.rejected.read_text())
    assert row["reason"] == "a link to a folder, which is not followed; copy the folder to its place"
    assert row["file"].endswith("cat/linked")


def test_grey_images_are_counted(tmp_path: Path, raw: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for name, mode in (("a", "L"), ("b", "RGB")):
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3)[: 2 if mode == "L" else 3], np.uint8)
            (tmp_path / "mixed" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "mixed" / name / f"{index}.png")
    raw["prepare"]["source"], raw["shots"] = f"imagefolder:{tmp_path / 'mixed'}", "all"
    workspace = Workspace.at(tmp_path)
    prepare.run(toy.parse(raw), workspace)
    assert json.loads(workspace.result("prepare").read_text())["grey_images"] == "4 of 8"
