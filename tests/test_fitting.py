"""Keys of trained classifiers: what must change them, and what must not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import toy
from dreamset.classifiers.fitting import Fitted
from dreamset.classifiers.parts import Part
from dreamset.core.workspace import Workspace
from dreamset.data.runs import Kind, Run
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata, write_metadata

if TYPE_CHECKING:
    from dreamset.data.splits import Split

RECIPE = "datadream_dset"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    found = Workspace.at(tmp_path_factory.mktemp("fitting"))
    toy.write_clip(found.root / "models/base/clip")
    toy.write_splits(found, selection=3)
    toy.write_synthetic(found, RECIPE)
    toy.write_synthetic(found, "stable_diffusion")
    return found


def key(place: Workspace, kind: str, name: str, arm: str = RECIPE, split: Split | None = None, **changes: Any) -> str:
    params = toy.params(**({"selection": "extra:3"} | changes))
    run = Run(arm, Kind.parse(kind), name)
    return Fitted(Part(params, place, split or read_split(place.splits), arm, place.shards), run).key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"selection": "holdout"},
        {"models__bundled__train__crop": 0.5},
        {"models__bundled__train__resnet20__lr": 0.5},
        {"train__selections": 2},
        {"train__configurations": 2},
        {"train__real_weight": 0.3},
    ],
)
def test_what_changes_a_classifier_changes_its_key(place: Workspace, change: dict[str, Any]) -> None:
    assert key(place, "both", "resnet20", **change) != key(place, "both", "resnet20")


def test_an_end_on_real_images_alone_is_in_the_keys_of_both(place: Workspace) -> None:
    finish = {"train__finish_on_real": 0.25}
    head = {"train__finish_part": "head", "train__classifiers": ["resnet20"]}
    plain = key(place, "both", "resnet20")
    assert len({plain, key(place, "both", "resnet20", **finish), key(place, "both", "resnet20", **finish, **head)}) == 3
    assert key(place, "both", "resnet20", **head) == plain
    assert key(place, "both_strong", "resnet20", **finish) != key(place, "both_strong", "resnet20")
    near = {"train__nearness": 1.0}
    assert len({plain, key(place, "both", "resnet20", **near), key(place, "both", "resnet20", train__nearness=-1)}) == 3
    assert key(place, "synthetic", "resnet20", **near) != key(place, "synthetic", "resnet20")
    assert key(place, "real", "resnet20", "real", **near) == key(place, "real", "resnet20", "real")
    assert key(place, "synthetic", "resnet20", **finish) == key(place, "synthetic", "resnet20")
    assert key(place, "real", "resnet20", "real", **finish) == key(place, "real", "resnet20", "real")


def test_the_images_that_are_seen_are_in_the_key(place: Workspace, tmp_path: Path) -> None:
    split = read_split(place.splits)
    first = dataclasses.replace(split.train[0], sha256="0" * 64)
    shot = dataclasses.replace(split, train=(first, *split.train[1:]))
    held = dataclasses.replace(
        split, selection=(dataclasses.replace(split.selection[0], label=2), *split.selection[1:])
    )
    grey = dataclasses.replace(split, channels=1)
    before = {kind: key(place, kind, "resnet20") for kind in ("synthetic", "both")}
    before["real"] = key(place, "real", "resnet20", "real")

    def changed(other: Split) -> set[str]:
        return {
            kind
            for kind in before
            if key(place, kind, "resnet20", "real" if kind == "real" else RECIPE, other) != before[kind]
        }

    assert changed(shot) == {"real", "both"}
    assert changed(held) == {"real", "both", "synthetic"}
    assert changed(grey) == {"both", "synthetic"}
    other = Workspace.at(tmp_path)
    toy.write_splits(other, selection=3)
    toy.write_synthetic(other, RECIPE)
    rows = read_metadata(other.synthetic(RECIPE))
    write_metadata(other.synthetic(RECIPE), [dataclasses.replace(rows[0], sha256="0" * 64), *rows[1:]])
    assert key(other, "synthetic", "resnet20") != before["synthetic"]
    assert key(other, "real", "resnet20", "real") == before["real"]


def test_what_changes_no_classifier_leaves_its_key(place: Workspace) -> None:
    plain = key(place, "both", "resnet20")
    # The same images under another name; captions and savings of memory are CLIP's alone.
    assert key(place, "both", "resnet20", "stable_diffusion") == plain
    other = dataclasses.replace(read_split(place.splits), template="a drawing of a {class}")
    memory = {"models__bundled__memory": ["gradient_checkpointing"]}
    for name, same in (("resnet20", True), ("clip_lora", False)):
        before = key(place, "both", name)
        assert (key(place, "both", name, split=other) == before) == same
        assert (key(place, "both", name, **memory) == before) == same
    # Where nothing is chosen, nothing is asked of selection images.
    fixed = read_split(place.splits)
    fixed = dataclasses.replace(fixed, selection=())
    keys = {key(place, "both", "resnet20", split=fixed, selection="fixed", train__selections=n) for n in (1, 5)}
    assert len(keys) == 1
