"""A check that the ``datasets`` package opens synthetic datasets.

Run it with ``PYTHONPATH=src python tests/loaders.py [FOLDER ...]``. It needs ``datasets`` (5.2.0 was tried), NumPy,
Pillow and PyYAML, best in an environment of its own, and no network. It checks the folders that it is given, and
datasets of awkward class names that it writes itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dreamset.core.files import atomic_write, class_folder, sha256
from dreamset.core.images import png
from dreamset.data import cards, packed
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata

# By the data set that has such classes, or by what is hard about them. None is in alphabetical order.
CLASSES: dict[str, tuple[str, ...]] = {
    "digits": ("zero", "one", "two"),
    "CIFAR-100": ("train", "apple", "sea"),
    "SUN397": ("train_station/platform", "subway_station/platform", "abbey"),
    "splits": ("test", "val", "train", "dev", "eval", "validation", "a test-pattern", "training_2"),
    "one in a split": ("car", "crash test dummy"),
    "YAML": (
        'say "no"',
        "back\\slash",
        "- a: b # c",
        "on",
        "0",
        "null",
        "---",
        " padded ",
        "{x}",
        "Öl \U0001f41e",
        "*a",
    ),
    "lines": ("two\nlines", "next\x85line", "a\u2028b", "bell\x07", "tab\t", "no\u00a0break", "delete\x7f"),
    "dates": ("2020-01-02", "2020-01-01"),
}
SHOT = "f" * 64
SAMPLER = {"scheduler": "ddim", "steps": 5, "guidance": 2.0, "strength": None}


def write(folder: Path, classes: tuple[str, ...], per_class: int = 3, *, public: bool = False, **fields: Any) -> None:
    """Write a dataset as ``generate`` or ``export --public`` lays it out; every second image has ``fields``."""
    rows = []
    for label, name in enumerate(classes):
        for index in range(per_class):
            file = f"{class_folder(label, name, len(classes))}/{index:05d}.png"
            data = png(np.full((8, 8, 3), (7 * label + index) % 256, np.uint8))
            atomic_write(folder / file, data)
            facts = {"prompt": "a photo", "seed": 2**63 - 1 - index, "redraws": 0, "sampler": SAMPLER, "adapter": None}
            facts |= {"sha256": sha256(data)} | (fields if index % 2 else {})
            rows.append(SyntheticImage(file, label, name, index, **facts))
    if public:
        lines = (json.dumps({key: asdict(row)[key] for key in cards.PUBLIC}, ensure_ascii=False) for row in rows)
        atomic_write(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))
    else:
        write_metadata(folder, rows)
        # Stages leave it beside the images.
        atomic_write(folder / "shards.json", "[]\n")
    head = "\n".join(["---", *cards.loading(classes, cards.PUBLIC if public else None), "---"])
    atomic_write(folder / "README.md", f"{head}\n# A dataset\n")


def pack(folder: Path, classes: tuple[str, ...]) -> None:
    """Make tars of a dataset, as ``generate`` does above ``generate.pack`` images; several, with another card."""
    rows, read = read_metadata(folder), packed.files(folder, "")
    packed._IN_TAR = 2 * len(classes)
    packed.write(folder, rows, lambda at: read(rows[at].file_name), len(classes))
    for path in folder.glob("*/*.png"):
        path.unlink()
    head = "\n".join(["---", *cards.loading(classes, tars=True), "---"])
    atomic_write(folder / "README.md", f"{head}\n# A dataset\n")


def check_tars(folder: Path, cache: Path) -> tuple[str, ...]:
    """Open a dataset of tars as it stands, and compare it with its metadata; return the names of its classes."""
    import datasets

    rows = {row["file_name"]: row for row in map(json.loads, (folder / "metadata.jsonl").read_bytes().splitlines())}
    opened = datasets.load_dataset(str(folder), cache_dir=str(cache))
    assert list(opened) == ["train"], f"splits: {list(opened)}"
    images, seen = opened["train"], set()
    names: list[str] = images.features["cls"].names
    for image in images:
        row = rows[f"{image['__key__']}.png"]
        assert image["json"] == row and names[image["cls"]] == row["class_name"]
        assert image["png"].size == (8, 8) and set(np.asarray(image["png"]).ravel()) == {
            (7 * row["label"] + row["index"]) % 256
        }
        seen.add(row["file_name"])
    assert seen == set(rows) and len(images) == len(rows), "images are missing, or there twice"
    parts = images.train_test_split(test_size=len(names), stratify_by_column="cls", seed=0)
    assert set(Counter(parts["test"]["cls"]).values()) == {1}, "not stratified"
    return tuple(names)


def check(folder: Path, cache: Path) -> tuple[str, ...]:
    """Open a dataset as it stands, and compare it with its metadata; return the names of its classes."""
    import datasets

    lines = (folder / "metadata.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    opened = datasets.load_dataset(str(folder), cache_dir=str(cache))
    assert list(opened) == ["train"], f"splits: {list(opened)}"
    images = opened["train"]
    assert images["label"][:] == [row["label"] for row in rows], "other images, or in another order"
    names: list[str] = images.features["label"].names
    assert all(names[row["label"]] == row["class_name"] for row in rows), f"names: {names}"
    for image, row in zip(images, rows, strict=True):
        assert Path(image["image"].filename).samefile(folder / row["file_name"])
        for key in row.keys() - {"file_name", "class_name", "sampler"}:
            assert image[key] == row[key], f"{row['file_name']}: {key} is {image[key]}"
        for key, value in row["sampler"].items():
            assert image["sampler"][key] == value
    parts = images.train_test_split(test_size=len(names), stratify_by_column="label", seed=0)
    assert set(Counter(parts["test"]["label"]).values()) == {1}, "not stratified"
    return tuple(names)


def main(folders: list[str]) -> None:
    """Check some folders, and datasets of awkward class names."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for number, folder in enumerate(folders):
            print(f"{folder}: {len(check(Path(folder), place / f'given{number}'))} classes")
        for number, (what, classes) in enumerate(CLASSES.items()):
            for public in (False, True):
                folder = place / f"set{number}_{public}"
                write(folder, classes, public=public)
                assert check(folder, place / f"cache{number}_{public}") == classes
            pack(place / f"set{number}_False", classes)
            assert check_tars(place / f"set{number}_False", place / f"cache{number}_tars") == classes
            print(f"{what}: {len(classes)} classes, {3 * len(classes)} images, in order, and in tars")
        # Columns that are null in the first rows, in a file that is read in several blocks.
        write(place / "drawn", ("b", "a"), 1200, shot=SHOT, adapter=SHOT, adapter_scale=0.5, nearness=0.25, source="x")
        rows = (place / "drawn/metadata.jsonl").read_text().splitlines(keepends=True)
        atomic_write(place / "drawn/metadata.jsonl", "".join(sorted(rows, key=lambda row: SHOT in row)))
        check(place / "drawn", place / "cache")
        print("columns that are null at first: in order")


if __name__ == "__main__":
    main(sys.argv[1:])
