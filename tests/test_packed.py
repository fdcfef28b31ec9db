"""Datasets of tars: the same images and rows as class folders, to the byte, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from dreamset import adapt, generate
from dreamset.command.cli import main
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.data import arrays, packed
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata
from dreamset.params import Params
from dreamset.review.server import Review
from dreamset.study import artifacts
from dreamset.use import export
from dreamset.use.tensors import tensors
from test_export import made, params  # noqa: F401  a fixture
from test_generate import content
from test_loaders import head

RECIPE = "stable_diffusion"


def packing(given: Params, pack: int, **changes: Any) -> Params:
    return dataclasses.replace(given, generate=dataclasses.replace(given.generate, pack=pack, **changes))


def other(workspace: Workspace, name: str) -> Workspace:
    """A second workspace with the same shards, splits and record of no adapter."""
    place = Workspace(workspace.root, workspace.root / name)
    shutil.copytree(workspace.splits.parent, place.splits.parent)
    shutil.copytree(workspace.adapter(RECIPE), place.adapter(RECIPE))
    return place


@pytest.fixture
def both(prepared: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Workspace, Workspace]:
    """One recipe's 40 images as class folders, and as tars of two indices of ten classes."""
    monkeypatch.setattr(packed, "_IN_TAR", 20)
    params, workspace = prepared
    adapt.run(params, workspace, RECIPE)
    place = other(workspace, "tars")
    generate.run(packing(params, 40), workspace, RECIPE)
    assert generate.run(packing(params, 39), place, RECIPE)["drawn_now"] == 0
    return params, workspace, place


def test_tars_hold_the_files_and_rows_of_class_folders(both: tuple[Params, Workspace, Workspace]) -> None:
    params, workspace, place = both
    loose, tars = workspace.synthetic(RECIPE), place.synthetic(RECIPE)
    assert sorted(path.name for path in tars.iterdir()) == [
        *("README.md", "images-00000.tar", "images-00001.tar", "index.json", "metadata.jsonl", "shards.json")
    ]
    for name in ("metadata.jsonl", "shards.json"):
        assert (tars / name).read_bytes() == (loose / name).read_bytes()
    rows = {row.file_name: text for row, text in zip(read_metadata(loose), _lines(loose), strict=True)}
    found = []
    for path in sorted(tars.glob(packed.TARS)):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
            for image, label, row in zip(*[iter(members)] * 3, strict=True):
                read = [tar.extractfile(member).read() for member in (image, label, row)]  # type: ignore[union-attr]
                stem = image.name.removesuffix(".png")
                assert (label.name, row.name) == (f"{stem}.cls", f"{stem}.json") and "." not in stem
                assert read[0] == (loose / image.name).read_bytes()
                assert read[2].decode() == rows[image.name] and int(read[1]) == json.loads(read[2])["label"]
                found.append((json.loads(read[2])["index"], int(read[1])))
    # Index by index, all classes in each: whoever streams the tars sees all of them from the start.
    assert found == [(index, label) for index in range(4) for label in range(10)]
    check_head(loose, tars)
    generate.run(packing(params, 40), place, RECIPE)
    assert content(tars) == content(loose)


def check_head(loose: Path, folder: Path) -> None:
    """The head of the card names the tars, and the type of each member."""
    told = head(folder)
    [config], [about] = told["configs"], told["dataset_info"]
    [files] = config["data_files"]
    assert sorted(path for pattern in files["path"] for path in folder.glob(pattern)) == sorted(folder.glob("*.tar"))
    columns = {column["name"]: column for column in about["features"]}
    assert list(columns) == ["png", "cls", "json", "__key__", "__url__"]
    names = columns["cls"]["dtype"]["class_label"]["names"]
    assert [*names.values()] == list(dict.fromkeys(row.class_name for row in read_metadata(loose)))
    struct = {column["name"]: column for column in columns["json"]["struct"]}
    assert set(struct) == set(json.loads(_lines(folder)[0]))
    assert (struct["file_name"]["dtype"], struct["label"]["dtype"]) == ("string", "int64")
    assert "webdataset.WebDataset" in (folder / "README.md").read_text()
    assert "webdataset" not in (loose / "README.md").read_text()


def _lines(folder: Path) -> list[str]:
    return (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def test_all_that_reads_images_reads_both_layouts(both: tuple[Params, Workspace, Workspace]) -> None:
    params, workspace, place = both
    split, out = read_split(workspace.splits), workspace.root
    one, two = (arrays.synthetic(each.synthetic(RECIPE), split, 12) for each in (workspace, place))
    assert np.array_equal(one.images, two.images) and one.images.std() > 1
    assert one.names == two.names and one.labels.tolist() == two.labels.tolist()
    # What a classifier's key is made of.
    assert arrays.listed(workspace.synthetic(RECIPE), split) == arrays.listed(place.synthetic(RECIPE), split)
    assert Review(workspace, RECIPE).image(7) == Review(place, RECIPE).image(7)
    for each, name in ((workspace, "loose"), (place, "tars")):
        tensors(params, each, RECIPE, out / f"arrays_{name}")
    assert content(out / "arrays_loose") == content(out / "arrays_tars")
    trial: Any = type("Trial", (), {"params": {}})()
    sheets = [artifacts._sheet(trial, each.synthetic(RECIPE), split.classes) for each in (workspace, place)]
    assert sheets[0].tobytes() == sheets[1].tobytes()


def test_a_killed_run_packs_the_same_bytes_and_further_images_leave_them(
    both: tuple[Params, Workspace, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace, place = both
    again = other(workspace, "killed")
    member, count = packed._member, itertools.count()

    def killed(name: str, data: bytes) -> bytes:
        if next(count) == 70:
            raise KeyboardInterrupt
        return member(name, data)

    monkeypatch.setattr(packed, "_member", killed)
    with pytest.raises(KeyboardInterrupt):
        generate.run(packing(params, 1), again, RECIPE)
    assert not again.synthetic(RECIPE).exists()
    monkeypatch.setattr(packed, "_member", member)
    # The time of day is in no tar.
    generate.run(packing(params, 1), again, RECIPE)
    assert content(again.synthetic(RECIPE)) == content(place.synthetic(RECIPE))
    # Growth adds tars.
    before = content(place.synthetic(RECIPE))
    generate.run(packing(params, 39, per_class=7), place, RECIPE)
    after = content(place.synthetic(RECIPE))
    assert sorted(name for name in after if name.endswith(".tar")) == [f"images-{n:05d}.tar" for n in range(4)]
    assert all(after[name] == before[name] for name in ("images-00000.tar", "images-00001.tar"))
    rows = read_metadata(place.synthetic(RECIPE))
    assert [(row.label, row.index) for row in rows] == [(label, index) for label in range(10) for index in range(7)]
    # Without one image, only the tar that held it is another.
    read, less = packed.reader(place.synthetic(RECIPE)), place.root / "less"
    less.mkdir()
    kept = [row for row in rows if (row.label, row.index) != (3, 2)]
    packed.write(less, kept, lambda at: read(kept[at].file_name, kept[at].sha256), 10)
    changed = [name for name, data in content(less).items() if after.get(name) != data]
    assert sorted(changed) == ["images-00001.tar", "index.json"]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 10**6])
def test_a_member_is_what_tarfile_writes(size: int) -> None:
    about = tarfile.TarInfo("012_a_class/00003_12.json")
    about.size = size
    expected = about.tobuf(tarfile.USTAR_FORMAT) + b"x" * size + bytes(-size % 512)
    assert packed._member(about.name, b"x" * size) == expected


def test_a_published_dataset_is_packed_too(made: Workspace, tmp_path: Path) -> None:  # noqa: F811
    recipe = "datadream_dset"
    export.public(params(made), made, recipe, tmp_path / "loose")
    toy.pack(made.synthetic(recipe))
    export.public(params(made), made, recipe, tmp_path / "still")
    assert content(tmp_path / "loose") == content(tmp_path / "still")
    export.public(packing(params(made), 14), made, recipe, tmp_path / "tars")
    assert (tmp_path / "tars/metadata.jsonl").read_bytes() == (tmp_path / "loose/metadata.jsonl").read_bytes()
    rows, read = _lines(tmp_path / "loose"), packed.reader(tmp_path / "tars")
    for row in map(json.loads, rows):
        assert read(row["file_name"], row["sha256"]) == (tmp_path / "loose" / row["file_name"]).read_bytes()
    with tarfile.open(tmp_path / "tars/images-00000.tar") as tar:
        told = [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".json")]  # type: ignore[union-attr]
    # No column that a published dataset leaves out is in a tar.
    assert sorted(told) == sorted(row.encode() for row in rows)


def _removed(folder: Path) -> None:
    (folder / "images-00000.tar").unlink()


def _cut(folder: Path) -> None:
    os.truncate(folder / "images-00000.tar", 5000)


def _flipped(folder: Path) -> None:
    with tarfile.open(folder / "images-00000.tar") as tar:
        at = tar.getmember("001_plank/00004.png").offset_data
    with (folder / "images-00000.tar").open("r+b") as file:
        file.seek(at + 60)
        [byte] = file.read(1)
        file.seek(at + 60)
        file.write(bytes([byte ^ 1]))


def _unlisted(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    del index["tars"][0]["images"]["001_plank/00004.png"]
    (folder / "index.json").write_text(json.dumps(index | {"images": 17}))


def _fewer(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"images": 19}))


def _no_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def _other_index(folder: Path) -> None:
    (folder / "index.json").write_text('{"tars": [{"file": 3}]}')


AGAIN = r"run `dreamset generate stable_diffusion` again\."


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (_removed, rf"images-00000\.tar: is missing; {AGAIN}"),
        (_cut, rf"images-00000\.tar: has 5000 bytes in place of \d+; {AGAIN}"),
        (_flipped, rf"images-00000\.tar, 001_plank/00004\.png: is missing or was changed; {AGAIN}"),
        (_unlisted, rf"index\.json: has no 001_plank/00004\.png, which metadata\.jsonl lists; {AGAIN}"),
        (_fewer, rf"index\.json: lists 18 images in place of 19; {AGAIN}"),
        (_no_index, r"index\.json: is missing; run `dreamset generate stable_diffusion` first\."),
        (_other_index, rf"index\.json: is no index of tars .*; {AGAIN}"),
    ],
)
def test_a_damaged_dataset_is_one_sentence(workspace: Workspace, fault: Any, sentence: str) -> None:
    split = toy.write_splits(workspace)
    toy.write_synthetic(workspace, RECIPE)
    folder = workspace.synthetic(RECIPE)
    toy.pack(folder)
    assert len(arrays.synthetic(folder, split, 16)) == 18
    fault(folder)
    with pytest.raises(InputError, match=sentence):
        arrays.synthetic(folder, split, 16)


def test_less_than_one_image_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)
    text = (toy.ROOT / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(text.replace("pack: 50000 ", "pack: 0 "))
    with pytest.raises(SystemExit, match="2"):
        main(["generate", RECIPE])
    assert "generate.pack: expected an integer of at least 1, got 0" in capsys.readouterr().err


def test_rows_take_little_memory(tmp_path: Path) -> None:
    """Values that many rows share are there once, or 100,000 rows would take 200 MB."""
    row = toy.synthetic_image("000_bar/00000.png", 0, "bar", 0, "0" * 64)
    rows = [dataclasses.replace(row, index=index, sampler={"steps": 5}) for index in range(3)]
    write_metadata(tmp_path, rows)
    found = read_metadata(tmp_path)
    assert found == rows and not hasattr(found[0], "__dict__")
    assert found[0].prompt is found[2].prompt and found[0].sampler is found[2].sampler


def test_the_webdataset_package_reads_every_sample(workspace: Workspace) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = workspace.synthetic(RECIPE)
    rows = {row.file_name: row for row in toy.write_synthetic(workspace, RECIPE)}
    toy.pack(folder)
    samples = list(webdataset.WebDataset(sorted(map(str, folder.glob(packed.TARS))), shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(rows) == 18
    for sample in samples:
        assert set(sample) - {"__local_path__"} == {"__key__", "__url__", "png", "cls", "json"}
        row = rows[f"{sample['__key__']}.png"]
        assert (sample["json"]["sha256"], sample["cls"]) == (row.sha256, row.label)
        assert sample["png"].shape == (16, 16, 3)
