"""Every kind of source: what it reads, what it says of its classes, and what it refuses."""

import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import toy
from dreamset.core.errors import InputError
from dreamset.data.splits import Split
from dreamset.sources import presets
from sourced import image, names, read, run, tiny, write_coop

CALTECH = Path(__file__).parents[2] / "shared/data/caltech101-64"


@pytest.mark.parametrize(
    ("classes", "captions"),
    [
        (("10_sks dog", "5_cat"), ("sks dog", "cat")),
        (("001.Black_footed_Albatross", "002.Crow"), ("Black footed Albatross", "Crow")),
        (("ApplyEyeMakeup", "Archery", "YoYo"), ("Apply Eye Makeup", "Archery", "Yo Yo")),
        (("3_doors", "5_doors"), None),
        (("10_sks dog", "cat"), None),
        (("2012 BMW M3", "2011 Audi A4"), None),
        (("GoPro", "iPhone"), None),
        (("Crow", "Albatross"), None),
    ],
)
def test_captions_say_names_as_people_do(
    raw: dict[str, Any], tmp_path: Path, classes: tuple[str, ...], captions: tuple[str, ...] | None
) -> None:
    for index, name in enumerate(classes):
        image(tmp_path / "raw" / name / "0.png", index)
    source = read(raw, f"imagefolder:{tmp_path / 'raw'}")
    assert sorted(zip(source.classes, source.names or source.classes, strict=True)) == sorted(
        zip(classes, captions or classes, strict=True)
    )
    assert bool(source.warnings) == (captions is not None)


# Split files of CoOp


@pytest.mark.parametrize("folder", ["images", "101_ObjectCategories", "2750", "UCF-101-midframes", "."])
def test_a_coop_split_finds_its_images(raw: dict[str, Any], tmp_path: Path, folder: str) -> None:
    file = write_coop(tmp_path, folder, "split.json", ["ant_hill", "bee"])
    split, test = run(raw, tmp_path / "w", f"coop:{file}", shots=2, selection="extra:2")
    assert split.classes == ("ant_hill", "bee")
    assert split.prompt(0) == "a photo of a ant hill"
    assert all(name.startswith("train") for name in names(split.train))
    assert sorted(names(split.selection)) == ["val0.jpg", "val0.jpg", "val1.jpg", "val1.jpg"]
    assert names(test.test) == ["test0.jpg", "test1.jpg"] * 2


@pytest.mark.parametrize("key", ["source", "few_shot"])
def test_a_pickle_of_shots_is_not_opened_and_its_conversion_is_named(
    raw: dict[str, Any], tmp_path: Path, key: str
) -> None:
    (tmp_path / "shot_2-seed_1.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    source = write_coop(tmp_path, "images", "split.json", ["ant", "bee"])
    with pytest.raises(
        InputError, match=r"is a pickle, .*convert it .*python -c .*and give shot_2-seed_1\.json"
    ) as told:
        if key == "source":
            read(raw, f"coop:{tmp_path / 'shot_2-seed_1.pkl'}")
        else:
            run(raw, tmp_path / "w", f"coop:{source}", few_shot=str(tmp_path / "shot_{shots}-seed_1.pkl"), shots=2)
    # The command writes what prepare.few_shot reads.
    code = str(told.value).split('python -c "')[1].split('"`')[0]
    shots = {
        part: [
            types.SimpleNamespace(impath=f"/x/c{k}/{part}{i}.jpg", label=k, classname="")
            for k in (0, 1)
            for i in (0, 1)
        ]
        for part in ("train", "val")
    }
    (tmp_path / "shot_2-seed_1.pkl").write_bytes(pickle.dumps(shots))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    split, _ = run(raw, tmp_path / "w", f"coop:{source}", few_shot=str(tmp_path / "shot_2-seed_1.json"), shots=2)
    assert sorted(names(split.train)) == ["train0.jpg", "train0.jpg", "train1.jpg", "train1.jpg"]


@pytest.mark.parametrize(
    ("raw_listing", "words"),
    [
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected lists train, val and test"),
        ('{"train": [], "test": []}', "lists no images in train"),
        ('{"train": [["a.png", 0, "a"]]}', "lists no images in test"),
        ('{"train": [["../a.png", 0, "a"]], "test": [["b.png", 1, "b"]]}', r"train\[0\]: '../a.png' does not stay"),
        ('{"train": [["a.png", -1, "a"]], "test": [["b.png", 1, "b"]]}', r"train\[0\]: expected \[path, label"),
        ('{"train": [["a.png", true, "a"]], "test": [["b.png", 1, "b"]]}', r"train\[0\]: expected \[path, label"),
        ('{"train": [["a.png", 0, " "]], "test": [["b.png", 1, "b"]]}', r"train\[0\]: expected \[path, label"),
        ('{"train": [{"path": "a.png"}], "test": [["b.png", 1, "b"]]}', r"train\[0\]: expected \[path, label"),
        ('{"train": [["a.png", 0, "a"]], "test": [["b.png", 0, "b"]]}', r"test\[0\]: label 0 is 'a' and 'b'"),
        ('{"train": [["a.png", 0, "a"]], "test": [["b.png", 2, "b"]]}', "labels go up to 2, but 1 is unused"),
        ('{"train": [["a.png", 0, "\\ud800"]], "test": [["b.png", 1, "b"]]}', "is not UTF-8"),
        ('{"train": [["a.png", 0, "a"]], "test": [["b.png", 1, "A"]]}', "'a' and 'A' have the same caption"),
    ],
)
def test_a_wrong_coop_split_is_one_sentence(raw: dict[str, Any], tmp_path: Path, raw_listing: str, words: str) -> None:
    (tmp_path / "split.json").write_text(raw_listing)
    with pytest.raises(InputError, match=words) as caught:
        read(raw, f"coop:{tmp_path / 'split.json'}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_copies_of_test_images_are_passed_over_in_a_published_split(raw: dict[str, Any], tmp_path: Path) -> None:
    file = write_coop(tmp_path, "images", "split.json", ["ant", "bee"], (4, 2, 2))
    Image.open(tmp_path / "images/c0/test1.jpg").save(tmp_path / "images/c0/train2.jpg", "BMP")
    Image.open(tmp_path / "images/c1/val0.jpg").save(tmp_path / "images/c1/train3.jpg", "PNG")
    split, test = run(raw, tmp_path / "w", f"coop:{file}", shots=3, selection="extra:2")
    assert sorted(names(split.train)) == [
        "train0.jpg",
        "train0.jpg",
        "train1.jpg",
        "train1.jpg",
        "train2.jpg",
        "train3.jpg",
    ]
    assert len(test.test) == 4
    listed = json.loads((tmp_path / "w/data/splits/rejected.json").read_text())
    assert listed == [
        {"file": "c0/train2.jpg", "reason": "passed over: the same pixels as test image c0/test1.jpg"},
        {"file": "c1/train3.jpg", "reason": "passed over: the same pixels as selection image c1/val0.jpg"},
    ]
    summary = json.loads((tmp_path / "w/results/prepare.json").read_text())
    assert (summary["rejected"], summary["copies"]) == (0, 2)


# The presets


def test_the_table_of_presets_is_whole() -> None:
    assert len(presets.PRESETS) == 12
    for preset in presets.PRESETS.values():
        assert set(preset.invariances) <= {"hflip", "vflip", "rotation", "colour"}
        assert preset.classes > 1
        assert preset.home.startswith("https://")
    docs = (Path(__file__).parents[1] / "docs/datasets.md").read_text().replace(",", "")
    for name, preset in presets.PRESETS.items():
        row = next(line for line in docs.splitlines() if line.startswith(f"| `{name}:PATH`"))
        for fact in (preset.classes, *preset.counts):
            assert f"| {'any' if fact is None else fact or '—'} " in row, (name, fact)
        assert preset.home in docs


@pytest.mark.skipif(not CALTECH.is_dir(), reason="the Caltech-101 photographs are not beside the project")
def test_caltech101_is_the_published_split(raw: dict[str, Any], tmp_path: Path) -> None:
    source = read(raw, f"caltech101:{CALTECH}")
    assert len(source.classes) == 100
    assert [len(part or []) for part in (source.train, source.selection, source.test)] == [4128, 1649, 2465]
    assert not source.rejected
    published = json.loads((CALTECH / "split_zhou_Caltech101.json").read_text())
    assert [[i.name, i.label, source.classes[i.label]] for i in source.test or []] == published["test"]
    split, test = run(raw, tmp_path, f"caltech101:{CALTECH}", shots=16, selection="coop")
    assert (len(split.train), len(split.selection), len(test.test)) == (1600, 400, 2465)
    assert split.classes[18] == "car_side"
    assert split.prompt(18) == "a photo of a car side"


@pytest.mark.parametrize(
    ("name", "class_name", "prompt"),
    [
        ("eurosat", "Annual Crop Land", "a satellite photo of a Annual Crop Land"),
        ("sun397", "apse/indoor", "a scene photo of a indoor apse"),
        ("sun397", "outdoor apartment_building", "a scene photo of a outdoor apartment building"),
        ("food101", "apple_pie", "a food photo of a apple pie"),
        ("stanford_cars", "2012 McLaren MP4/12C", "a car photo of a 2012 McLaren MP4/12C"),
        ("caltech101", "face", "a photo of a face"),
    ],
)
def test_prompts_of_presets(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, class_name: str, prompt: str
) -> None:
    preset = presets.PRESETS[name]
    tiny(monkeypatch, name, 2, (6, 4, 4))
    write_coop(tmp_path, preset.folder, preset.split, [class_name, "other"])
    split, _ = run(raw, tmp_path / "w", f"{name}:{tmp_path}", shots=2, selection="extra:2")
    assert split.classes[0] == class_name
    assert split.prompt(0) == prompt
    assert split.invariances == preset.invariances


def test_a_preset_says_what_is_missing(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"is no folder; lay out dtd .*docs/datasets\.md"):
        read(raw, f"dtd:{tmp_path / 'none'}")
    with pytest.raises(InputError, match=r"split_zhou_DescribableTextures\.json: is missing; get it"):
        read(raw, f"dtd:{tmp_path}")
    write_coop(tmp_path, "images", "split_zhou_DescribableTextures.json", ["dotted", "lined"])
    with pytest.raises(InputError, match=r"dtd has 2 classes and 6 \+ 4 \+ 4 .*47 and 2820 \+ 1128 \+ 1692"):
        read(raw, f"dtd:{tmp_path}")
    tiny(monkeypatch, "dtd", 2, (6, 4, 4))
    (tmp_path / "images/c1/train0.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of the 14 images of dtd are missing \(first: c1/train0\.jpg\)"):
        read(raw, f"dtd:{tmp_path}")
    image(tmp_path / "images/c1/train0.jpg", 5)
    (tmp_path / "images/c0/train0.jpg").write_bytes(b"")
    assert read(raw, f"dtd:{tmp_path}").rejected[0][1] == "empty file"
    # Half a test part is another benchmark.
    (tmp_path / "images/c1/test0.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"test0\.jpg: is a test image of dtd and cannot be used"):
        read(raw, f"dtd:{tmp_path}")


@pytest.mark.parametrize("inner", ["", "data", "fgvc-aircraft-2013b/data"])
def test_aircraft_follow_the_official_lists(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    tiny(monkeypatch, "fgvc_aircraft", 2, (4, 2, 2))
    root = tmp_path / "d" / inner
    number = 0
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        lines = []
        for variant in ("F-16A/B", "Cessna 172"):
            for _ in range(count):
                image(root / f"images/{number:07d}.jpg", number)
                lines.append(f"{number:07d} {variant}")
                number += 1
        (root / f"images_variant_{part}.txt").write_text("\n".join(lines))
    (root / "variants.txt").write_text("Cessna 172\nF-16A/B\n")
    split, test = run(raw, tmp_path / "w", f"fgvc_aircraft:{tmp_path / 'd'}", shots=2, selection="extra:1")
    assert split.classes == ("Cessna 172", "F-16A/B")
    assert split.prompt(1) == "a aircraft photo of a F-16A/B"
    assert names(test.test) == ["0000007.jpg", "0000006.jpg"]
    (root / "images_variant_val.txt").write_text("0000004 Concorde")
    with pytest.raises(InputError, match=r"images_variant_val\.txt, line 1: 'Concorde' is not in variants"):
        read(raw, f"fgvc_aircraft:{tmp_path / 'd'}")
    (root / "variants.txt").unlink()
    with pytest.raises(InputError, match=r"variants\.txt: cannot be read"):
        read(raw, f"fgvc_aircraft:{tmp_path / 'd'}")


def test_imagenet_is_tested_on_its_validation_images(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}
    for c, wnid in enumerate(known):
        for i in range(4):
            image(tmp_path / f"images/train/{wnid}/{wnid}_{i}.JPEG", 10 * c + i)
        image(tmp_path / f"images/val/{wnid}/ILSVRC2012_val_0000000{c}.JPEG", 100 + c)
    (tmp_path / "classnames.txt").write_text("".join(f"{wnid} {words}\n" for wnid, words in known.items()))
    with pytest.raises(InputError, match=r"imagenet has 3 classes and 12 \+ 0 \+ 3"):
        read(raw, f"imagenet:{tmp_path}")
    tiny(monkeypatch, "imagenet", 3, (12, 0, 3))
    split, test = run(raw, tmp_path / "w", f"imagenet:{tmp_path}", shots=2, selection="extra:2")
    assert split.classes == ("tench", "missile", "projectile missile")
    assert all("/val/" in sample.path for sample in test.test)
    assert all("/train/" in sample.path for sample in (*split.train, *split.selection))
    with (tmp_path / "classnames.txt").open("a") as file:
        file.write("n99999999 nothing\n")
    with pytest.raises(InputError, match="holds no folder n99999999"):
        read(raw, f"imagenet:{tmp_path}")


def write_tiny_imagenet(root: Path) -> None:
    """The layout of tiny-imagenet-200.zip: three classes of two training and two validation images, and a test one."""
    words = {"n02124075": "Egyptian cat", "n01443537": "goldfish, Carassius auratus", "n03126707": "crane"}
    for c, wnid in enumerate(words):
        for i in range(2):
            image(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", 10 * c + i)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for number, wnid in enumerate([*words] * 2):
        image(root / f"val/images/val_{number}.JPEG", 100 + number)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    image(root / "test/images/test_0.JPEG", 200)
    # The list of ids is not sorted, and that of words has far more ids.
    (root / "wnids.txt").write_text("n02124075\nn01443537\nn03126707\n")
    every = {"n00001740": "entity", **words, "n02012849": "crane"}
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in every.items()))


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_as_its_archive_is_laid_out(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    root, source = tmp_path / "d" / inner, f"tiny_imagenet:{tmp_path / 'd'}"
    write_tiny_imagenet(root)
    with pytest.raises(InputError, match=r"has 3 classes and 6 \+ 0 \+ 6 .*but 200 and 100000 \+ 0 \+ 10000 were"):
        read(raw, source)
    tiny(monkeypatch, "tiny_imagenet", 3, (6, 0, 6))
    split, test = run(raw, tmp_path / "w", source, shots=1, selection="extra:1")
    assert split.classes == ("goldfish", "Egyptian cat", "crane")
    assert split.prompt(1) == "a photo of a Egyptian cat"
    labels = {Path(s.path).name: split.classes[s.label] for s in test.test}
    of = ("Egyptian cat", "goldfish", "crane") * 2
    assert labels == {f"val_{number}.JPEG": name for number, name in enumerate(of)}
    assert all("/train/" in s.path for s in (*split.train, *split.selection))
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn09999999\t0\t0\t1\t1\n")
    with pytest.raises(InputError, match=r"val_annotations\.txt, line 1: 'n09999999' is not in wnids\.txt"):
        read(raw, source)
    (root / "words.txt").write_text("n02124075\tEgyptian cat\n")
    with pytest.raises(InputError, match=r"words\.txt: has no name for n01443537 and 1 others"):
        read(raw, source)
    (root / "wnids.txt").unlink()
    with pytest.raises(InputError, match=r"wnids\.txt: cannot be read .*; get it with tiny_imagenet \(https://"):
        read(raw, source)


@pytest.mark.parametrize("parts", [("train", "train", "val"), ("train.X1", "train.X2", "val.X")])
def test_imagenet100_is_read_with_names_from_a_list(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str, str]
) -> None:
    root, source = tmp_path / "d", f"imagenet100:{tmp_path / 'd'}"
    # Two classes share a first name, and the list's order is not that of the folders.
    words = {"n03126707": "crane", "n02869837": "bonnet, poke bonnet", "n02012849": "crane, bird"}
    for c, wnid in enumerate(words):
        for i in range(3):
            image(root / parts[c % 2] / wnid / f"{wnid}_{i}.JPEG", 10 * c + i)
        for i in range(2):
            image(root / parts[2] / wnid / f"ILSVRC2012_val_{c}{i}.JPEG", 100 + 10 * c + i)
    with pytest.raises(InputError, match=r"classnames\.txt: cannot be read"):
        read(raw, source)
    if parts[0] == "train":
        lines = [f"{wnid} {name}" for wnid, name in words.items()]
        (root / "classnames.txt").write_text("\n".join([*lines, "n09999999 nothing"]))
    else:
        (root / "Labels.json").write_text(json.dumps(words))
    with pytest.raises(InputError, match=r"has 3 classes and 9 \+ 0 \+ 6 .*but 100 and 9 \+ 0 \+ 5000 were published"):
        read(raw, source)
    tiny(monkeypatch, "imagenet100", 3, (9, 0, 6))
    split, test = run(raw, tmp_path / "w", source, shots=2, selection="extra:1")
    assert split.classes == ("crane, bird", "bonnet", "crane")
    assert [(Path(s.path).name, s.label) for s in test.test][:2] == [
        ("ILSVRC2012_val_20.JPEG", 0),
        ("ILSVRC2012_val_21.JPEG", 0),
    ]
    for path in (root / parts[2] / "n02869837").iterdir():
        path.unlink()
    (root / parts[2] / "n02869837").rmdir()
    with pytest.raises(InputError, match=r"holds no folder n02869837, which train has"):
        read(raw, source)
    if parts[0] != "train":
        (root / "Labels.json").write_text("[]")
        with pytest.raises(InputError, match=r"Labels\.json: is no JSON of names by WordNet id"):
            read(raw, source)


# Index files of shots


def index_file(path: Path, listing: dict[str, list[list[Any]]], plain: bool = False) -> Path:
    def part(name: str) -> Any:
        rows = [{"impath": f"./data/x/images/{p}", "label": label, "classname": n} for p, label, n in listing[name]]
        return rows if plain else {"data": rows, "indices": list(range(len(rows)))}

    path.write_text(json.dumps({name: part(name) for name in listing}))
    return path


@pytest.mark.parametrize("plain", [False, True])
def test_the_shots_of_an_index_file_are_used(raw: dict[str, Any], tmp_path: Path, plain: bool) -> None:
    source = f"coop:{write_coop(tmp_path, 'images', 'split.json', ['ant', 'bee'], (6, 4, 2))}"
    # The file numbers the classes in its own way.
    rows = {
        "train": [["c1/train5.jpg", 0, "bee"], ["c0/train3.jpg", 1, "ant"], ["c1/train0.jpg", 0, "bee"]],
        "val": [["c0/val3.jpg", 1, "ant"], ["c1/val2.jpg", 0, "bee"]],
    }
    rows["train"].append(["c0/train1.jpg", 1, "ant"])
    index_file(tmp_path / "shot_2-seed_0.json", rows, plain)
    pattern = str(tmp_path / "shot_{shots}-seed_{seed}.json")
    split, _ = run(raw, tmp_path / "w", source, shots=2, few_shot=pattern, selection="extra:1")
    assert names(split.train) == ["train3.jpg", "train1.jpg", "train5.jpg", "train0.jpg"]
    assert names(split.selection) == ["val3.jpg", "val2.jpg"]
    for changes, words in (
        (
            {"shots": 4, "few_shot": str(tmp_path / "shot_2-seed_0.json")},
            r"holds 2 images of class 'ant', but shots: 4",
        ),
        ({"shots": 4, "few_shot": pattern}, r"shot_4-seed_0\.json: cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            run(raw, tmp_path / "w", source, **changes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["c0/test0.jpg", 0, "ant"], "is a test image of the source"),
        (["c0/none.jpg", 0, "ant"], "is no usable train image of the source"),
        (["c0/val0.jpg", 0, "ant"], "is no usable train image of the source"),
        (["c1/train1.jpg", 0, "ant"], "has label 0, unlike its class 'bee'"),
        (["c0/train0.jpg", 0, "ant"], "is listed twice"),
        (["c0/train1.jpg", "zero", "ant"], r"train\[2\]: expected a row with impath and label"),
    ],
)
def test_a_wrong_index_file_is_one_sentence(raw: dict[str, Any], tmp_path: Path, row: list[Any], words: str) -> None:
    source = f"coop:{write_coop(tmp_path, 'images', 'split.json', ['ant', 'bee'])}"
    rows = {"train": [["c0/train0.jpg", 0, "ant"], ["c1/train0.jpg", 1, "bee"], row]}
    with pytest.raises(InputError, match=words):
        run(raw, tmp_path / "w", source, shots=1, few_shot=str(index_file(tmp_path / "shots.json", rows)))


def test_a_listed_shot_that_copies_a_test_image_is_replaced(raw: dict[str, Any], tmp_path: Path) -> None:
    source = f"coop:{write_coop(tmp_path, 'images', 'split.json', ['ant', 'bee'])}"
    (tmp_path / "images/c0/train1.jpg").write_bytes((tmp_path / "images/c1/test0.jpg").read_bytes())
    rows = {"train": [["c0/train1.jpg", 0, "ant"], ["c0/train2.jpg", 0, "ant"]]}
    rows["train"] += [["c1/train0.jpg", 1, "bee"], ["c1/train1.jpg", 1, "bee"]]
    file = index_file(tmp_path / "shots.json", rows)
    split, _ = run(raw, tmp_path / "w", source, shots=2, few_shot=str(file), selection="extra:2")
    assert names(split.train) == ["train2.jpg", "train0.jpg", "train0.jpg", "train1.jpg"]
    assert "c0/train1.jpg" in (tmp_path / "w/data/splits/rejected.json").read_text()


@pytest.mark.skipif(not CALTECH.is_dir(), reason="the Caltech-101 photographs are not beside the project")
def test_an_index_file_of_caltech101(raw: dict[str, Any], tmp_path: Path) -> None:
    published = json.loads((CALTECH / "split_zhou_Caltech101.json").read_text())
    rows = {"train": [next(row for row in published["train"] if row[1] == label) for label in range(100)]}
    file = index_file(tmp_path / "shot_1-seed_1.json", rows)
    split, _ = run(raw, tmp_path / "w", f"caltech101:{CALTECH}", shots=1, few_shot=str(file))
    assert [Path(s.path).relative_to(CALTECH.resolve() / "images").as_posix() for s in split.train] == [
        path for path, _, _ in rows["train"]
    ]


AN = "apple 8 11 eighty MRI F x hour heirloom urn umbrella uninvited onion egg_plant Abyssinian oven"
A = "dog 1 unit unicorn one-way user European ewe USB utensil UFO zebra b house"


def test_the_default_caption_has_the_article_of_the_name() -> None:
    """Of one's own folder; a template with {class} is taken as it is written, as published ones are."""
    for article, listed in (("an", AN), ("a", A)):
        for name in listed.split():
            split = Split("toy", (name, "b"), "a photo of {a class}", (), 1, 0, (), ())
            assert split.prompt(0) == f"a photo of {article} {name.replace('_', ' ')}"
    literal = Split("toy", ("apple", "b"), "a photo of a {class}", (), 1, 0, (), (), clip_templates=("{a class}.",))
    assert literal.prompt(0) == "a photo of a apple"
    assert literal.clip_prompts() == [["an apple.", "a b."]]


def test_a_template_names_the_class_once() -> None:
    assert toy.params(prepare__template="{a class} on a table").prepare.template == "{a class} on a table"
    with pytest.raises(InputError, match=r"prepare.template: must hold \{class\} exactly once, or \{a class\}"):
        toy.params(prepare__template="{a class} and {class}")
