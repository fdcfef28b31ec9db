"""Sources of small made images, read and divided, for the tests of every kind of source."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy
from dreamset import params as parameters
from dreamset import prepare, sources
from dreamset.core.workspace import Workspace
from dreamset.data import splits
from dreamset.sources import presets


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, "PNG")


def settings(raw: dict[str, Any], source: str, **changes: Any) -> parameters.Params:
    mine = copy.deepcopy(raw)
    mine["prepare"]["source"] = source
    for key, value in changes.items():
        (mine["prepare"] if key in mine["prepare"] else mine)[key] = value
    return toy.parse(mine)


def read(raw: dict[str, Any], source: str) -> sources.Source:
    return sources.read(settings(raw, source).prepare)


def run(raw: dict[str, Any], cell: Path, source: str, **changes: Any) -> tuple[splits.Split, splits.TestSplit]:
    workspace = Workspace.at(cell)
    prepare.run(settings(raw, source, **changes), workspace)
    return splits.read_split(workspace.splits), splits.read_test(workspace.test_split)


def names(samples: tuple[splits.Sample, ...]) -> list[str]:
    return [Path(sample.path).name for sample in samples]


def tiny(monkeypatch: pytest.MonkeyPatch, name: str, classes: int, counts: tuple[int, int, int]) -> None:
    """A preset that expects fewer images than were published."""
    row = dataclasses.replace(presets.PRESETS[name], classes=classes, counts=counts)
    monkeypatch.setitem(presets.PRESETS, name, row)


def write_coop(
    root: Path, folder: str, file: str, classes: list[str], per_part: tuple[int, int, int] = (3, 2, 2)
) -> Path:
    """A split file of CoOp with its images; the split file's path."""
    listing: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    seeds = itertools.count()
    for label, name in enumerate(classes):
        for part, count in zip(listing, per_part, strict=True):
            for i in range(count):
                path = f"c{label}/{part}{i}.jpg"
                image(root / folder / path, next(seeds))
                listing[part].append([path, label, name])
    (root / file).write_text(json.dumps(listing))
    return root / file
