"""The head of a dataset's card, by which `datasets.load_dataset` opens the folder as it stands."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

import loaders
from dreamset.data import cards
from dreamset.data.synthetic import LATER, SyntheticImage, read_metadata
from dreamset.params.model import Sampler


def head(folder: Path) -> dict[str, Any]:
    """The front matter, found as the `datasets` package finds it: by all the line breaks that Python knows."""
    first, *lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert first == "---"
    found: dict[str, Any] = yaml.safe_load("\n".join(lines[: lines.index("---")]))
    return found


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("what", loaders.CLASSES)
def test_a_card_gives_names_in_order_types_and_one_split(tmp_path: Path, what: str, public: bool) -> None:
    classes = loaders.CLASSES[what]
    loaders.write(tmp_path, classes, public=public)
    [config] = head(tmp_path)["configs"]
    assert config["config_name"] == "default"
    [files] = config["data_files"]
    assert files["split"] == "train"
    named = {path for pattern in files["path"] for path in tmp_path.glob(pattern)}
    assert named == {tmp_path / "metadata.jsonl", *tmp_path.rglob("*.png")}
    image, *others = config["features"]
    assert image == {"name": "image", "dtype": "image"}
    columns = {column.pop("name"): column for column in others}
    names = columns["label"]["dtype"]["class_label"]["names"]
    assert names == {str(label): name for label, name in enumerate(classes)}
    every = [field.name for field in dataclasses.fields(SyntheticImage)]
    expected = cards.PUBLIC if public else set(every) - set(LATER)
    assert {"file_name", *columns} == set(expected)
    assert [part["name"] for part in columns["sampler"]["struct"]] == [
        field.name for field in dataclasses.fields(Sampler)
    ]


def test_every_column_has_the_type_of_its_values(tmp_path: Path) -> None:
    given = {"shot": "f", "adapter": "f", "adapter_scale": 0.5, "nearness": 0.5, "source": "a font"}
    loaders.write(tmp_path, ("b", "a"), **given)
    [config] = head(tmp_path)["configs"]
    types = {column["name"]: column.get("dtype") for column in config["features"]}
    for row in map(dataclasses.asdict, read_metadata(tmp_path)):
        for name, value in row.items():
            if value is not None and name not in ("file_name", "label", "sampler"):
                assert types[name] == {str: "string", int: "int64", float: "float64"}[type(value)]


def test_the_datasets_package_opens_them(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("needs the datasets package; `python tests/loaders.py` runs in an environment of its own")
    loaders.main([])
    assert len(capsys.readouterr().out.splitlines()) == len(loaders.CLASSES) + 1
