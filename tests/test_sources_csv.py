"""Lists of images as CSV: what is read, what is told, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from dreamset import prepare, sources
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from sourced import image, read, run, settings


def write_csv(root: Path, lines: list[str], count: int = 24) -> str:
    for i in range(count):
        image(root / f"{i}.png", i)
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{root / 'list.csv'}"


def test_a_csv_lists_images_with_labels(raw: dict[str, Any], tmp_path: Path) -> None:
    lines = ["\ufefflabel,path", *(f'"{"cat, wild" if i % 2 else "dog"}",./{i}.png' for i in range(24))]
    raw["evaluate"]["protocol"] = "test"
    split, test = run(raw, tmp_path / "w", write_csv(tmp_path, lines), shots=4, selection="coop")
    assert split.classes == ("cat, wild", "dog")
    assert len(split.train) == len(split.selection) == 8
    assert len(test.test) == 2 * round(0.3 * 12)
    for sample in (*split.train, *split.selection, *test.test):
        assert sample.label == 1 - int(Path(sample.path).stem) % 2


def test_the_parts_of_a_csv_are_kept(raw: dict[str, Any], tmp_path: Path) -> None:
    parts = ["train", "train", "val", "test"]
    lines = ["path,label,split", *(f"{i}.png,{'ab'[i % 2]},{parts[i // 2 % 4]}" for i in range(24))]
    split, test = run(raw, tmp_path / "w", write_csv(tmp_path, lines), shots=2, selection="extra:2")
    for samples, part in ((split.train, "train"), (split.selection, "val"), (test.test, "test")):
        assert {parts[int(Path(s.path).stem) // 2 % 4] for s in samples} == {part}
    assert len(test.test) == 6


@pytest.mark.parametrize("seed", range(5))
def test_a_group_of_a_csv_stays_in_one_part(raw: dict[str, Any], tmp_path: Path, seed: int) -> None:
    raw["evaluate"]["protocol"] = "test"
    # Patients have images of both classes, and some images have no group.
    group = [f"p{i // 4}" if i < 20 else "" for i in range(24)]
    lines = ["path,label,group", *(f"{i}.png,{'ab'[i % 2]},{group[i]}" for i in range(24))]
    split, test = run(raw, tmp_path / "w", write_csv(tmp_path, lines), shots=3, selection="extra:2", seed=seed)
    fewer, _ = run(raw, tmp_path / "w1", write_csv(tmp_path, lines), shots=1, selection="extra:2", seed=seed)
    assert {s.sha256 for s in fewer.train} <= {s.sha256 for s in split.train}
    parts = [{s.group for s in part} for part in (split.train, split.selection, test.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    held = {s.group for s in test.test if s.group.startswith("group")}
    assert all(sum(s.group == one for s in test.test) == 4 for one in held)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,label", "../x.png,a"], r"line 2: '../x.png' does not stay inside"),
        (["path,label", "/etc/x.png,a"], "does not stay inside"),
        (["path,label", "..\\x.png,a"], "does not stay inside"),
        (["path,label", "a/../../x.png,a"], "does not stay inside"),
        (["path,label", ",a"], "does not stay inside"),
        (["path,label", "0.png,a", "./0.png,b"], r"line 3: 0.png is already in line 2"),
        (["path,label", "0.png, "], "line 2: has no label"),
        (["path,label,split", "0.png,a,tset"], r"line 2: split must be train, .*got 'tset'"),
        (["path,label,spilt", "0.png,a,test"], "first line must name the columns path,label .*spilt"),
        (["file,class", "0.png,a"], "first line must name the columns"),
        (["path,label,label", "0.png,a,b"], "first line must name the columns"),
        (["path,label,groups", "0.png,a,x"], "'groups': write group, or"),
        (["path,label", "C:\\data\\x.png,a"], "does not stay inside the folder .*; give a path relative"),
        (["path,label", "0.png"], "line 2: does not have 2 fields"),
        (["path,label", "0.png,a,b"], "line 2: does not have 2 fields"),
        (["path,label,split", "0.png,a,test"], "lists no training images"),
        (["path,label"], "lists no training images"),
        ([], "first line must name"),
        (["path,label", "0.png,Cat", "1.png,cat"], "'Cat' and 'cat' have the same caption"),
        (["path,label", "0.png,sea_lake", "1.png,sea lake"], "have the same caption"),
        (["path,label", "0.png,a"], "1 classes"),
    ],
)
def test_a_wrong_csv_is_one_sentence(raw: dict[str, Any], tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(raw, write_csv(tmp_path, lines, 2))
    assert "\n" not in str(caught.value)


def test_a_csv_that_is_no_text(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(InputError, match="cannot be read as CSV in UTF-8"):
        read(raw, f"csv:{tmp_path / 'list.csv'}")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read(raw, f"csv:{tmp_path / 'none.csv'}")


def test_listed_files_that_are_missing_are_rejected(raw: dict[str, Any], tmp_path: Path) -> None:
    lines = ["path,label", "0.png,a", "1.png,b", "none.png,a", f"{'x' * 300}.png,b"]
    rejected = read(raw, write_csv(tmp_path, lines, 2)).rejected
    assert [(file.reason, file.label) for file in rejected] == [("missing", 0), ("missing", 1)]


def rows_of(source: sources.Source) -> dict[str, tuple[str, str]]:
    """The part and the class of each image of a source by its name."""
    parts = {"train": source.train, "selection": source.selection or [], "test": source.test or []}
    return {i.name: (part, source.classes[i.label]) for part, images in parts.items() for i in images}


@pytest.mark.parametrize(
    "lines",
    [
        ["path;label;split", "0.png;a;train", "1.png;b;training", "2.png;a;valid", "3.png;b;Testing"],
        ["Path\tLABEL\tSplit", "0.png\ta\ttrain", "1.png\tb\ttrain", "2.png\ta\tvalidation", "3.png\tb\ttest"],
        ["sep=;", "path;label;split", "0.png;a;train", "1.png;b;train", "2.png;a;dev", "3.png;b;test"],
        ['"path", "label","split",,', "0.png,a,train,,", "1.png,b,train,,", "2.png,a,val,,", "3.png,b,test,,", ",,,,"],
        ["path,label,split", "", "0,a,train", "1,b,train", ",,", "2,a,val", "3,b,test", "", ",,", " , ,"],
    ],
)
def test_a_csv_of_any_spreadsheet_is_read(raw: dict[str, Any], tmp_path: Path, lines: list[str]) -> None:
    source = read(raw, write_csv(tmp_path, lines, 4))
    assert rows_of(source) == {
        "0.png": ("train", "a"),
        "1.png": ("train", "b"),
        "2.png": ("selection", "a"),
        "3.png": ("test", "b"),
    }
    assert not source.warnings


def test_columns_that_are_not_read_are_told(raw: dict[str, Any], tmp_path: Path) -> None:
    lines = ["id,path,age,label", *(f"{i},{i}.png,30,{'ab'[i % 2]}" for i in range(24))]
    summary = prepare.run(settings(raw, write_csv(tmp_path, lines), shots=2), Workspace.at(tmp_path / "w"))
    assert "of its columns, id, age are not read; name one group, if it says which images" in summary["warnings"][0]


def test_paths_of_a_csv_may_be_absolute_or_of_another_unicode_form(raw: dict[str, Any], tmp_path: Path) -> None:
    image(tmp_path / "cafe\u0301/e\u0301.JPG", 8)
    image(tmp_path / "sub.d/x.1.png", 9)
    lines = [
        "path,label",
        f"{tmp_path / '0.png'},cafe\u0301",
        "1.png,caf\u00e9",
        "caf\u00e9\\\u00e9,bar",
        ".\\sub.d\\x.1,bar",
    ]
    source = read(raw, write_csv(tmp_path, lines, 2))
    assert source.classes == ("bar", "caf\u00e9")
    assert list(rows_of(source)) == ["0.png", "1.png", "cafe\u0301/e\u0301.JPG", "sub.d/x.1.png"]
    assert not source.rejected


def test_an_id_that_two_images_have_is_told(raw: dict[str, Any], tmp_path: Path) -> None:
    image(tmp_path / "0.jpg", 1)
    with pytest.raises(InputError, match=r"line 2: 0 may be 0\.jpg or 0\.png; write the whole name"):
        read(raw, write_csv(tmp_path, ["path,label", "0,a", "1,b"], 2))


def test_a_csv_none_of_whose_images_is_there_says_where_paths_start(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    image(tmp_path / "images/0.png", 0)
    (tmp_path / "lists/list.csv").write_text("path,label\nimages/0.png,a\nimages/1.png,b\n")
    with pytest.raises(
        InputError, match=rf"none of its 2 images is there .*start from the list's folder {tmp_path}/lis"
    ):
        read(raw, f"csv:{tmp_path / 'lists/list.csv'}")
