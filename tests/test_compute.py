"""Several workers on one machine: the same bytes as one, and nothing lost when one of them dies."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import faults
import toy
from dreamset import adapt, compute, generate, train
from dreamset.core import locks, shards
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.workspace import Workspace
from dreamset.data.runs import REAL_ONLY
from dreamset.params.sections import Compute
from pieces import TWO, drive, log, place, spread

RECIPE = "datadream_cls"


def shrunk(raw: dict[str, Any]) -> dict[str, Any]:
    """Parameters with pieces of each kind: groups of adapters, blocks of classes, and classifiers."""
    raw["models"]["bundled"]["adapt"]["together"] = 4
    raw["models"]["bundled"]["train"]["resnet20"] |= {"width": 4, "steps": 3, "batch": 8, "warmup": 1}
    raw["train"] |= {"classifiers": ["resnet20"], "baselines": [], "selections": 1}
    raw["active"] = [RECIPE]
    return raw


def made(workspace: Workspace) -> dict[str, bytes]:
    """The weights and pictures that a run leaves, and what is written about each picture."""
    kinds = {".safetensors", ".png", ".jsonl"}
    folders = [workspace.cell / name for name in ("models/adapters", "data/synthetic", "models/classifiers")]
    files = (path for folder in folders for path in folder.rglob("*") if path.suffix in kinds)
    return {path.relative_to(workspace.cell).as_posix(): path.read_bytes() for path in files}


def makers(workspace: Workspace) -> dict[str, set[str]]:
    """The keys of finished shards."""
    return {
        path.parent.name: set(json.loads(path.read_text())["files"]) for path in workspace.shards.glob("*/done.json")
    }


def test_two_workers_make_the_adapters_and_images_of_one(small: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name, workers in (("one", 1), ("two", 2)):
        params = toy.parse(shrunk(small) | {"compute": TWO | {"workers": workers}})
        workspace = Workspace.at(tmp_path / name)
        toy.prepare(params, workspace)
        adapt.run(params, workspace, RECIPE)
        generate.run(params, workspace, RECIPE)
        found.append((made(workspace), makers(workspace).keys()))
    (one, keys), (two, others) = found
    assert one == two
    assert keys == others
    assert len(one) > 50


def test_folds_in_two_workers_are_those_of_one(small: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name, workers in (("one", 1), ("two", 2)):
        params = toy.parse(shrunk(small) | {"shots": 12, "selection": "cv", "compute": TWO | {"workers": workers}})
        workspace = Workspace.at(tmp_path / name)
        toy.prepare(params, workspace)
        train.run(params, workspace, "real", [REAL_ONLY])
        found.append((made(workspace), makers(workspace).keys()))
    assert found[0] == found[1]
    assert len(found[0][1]) > 2  # trials, and the classifier


# Pieces that are no more than files


def test_each_piece_is_made_once_and_by_both(tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(8)]
    assert sum(spread(store, keys)) == 8
    made = log(store)
    assert sorted(key for key, _ in made) == sorted(keys)
    assert len({maker for _, maker in made}) == 2
    assert str(os.getpid()) not in {maker for _, maker in made}
    assert spread(store, []) == []


def test_a_worker_that_is_killed_gives_its_piece_to_another(tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", ["once", *(f"slow{index}" for index in range(4))]
    spread(store, keys)
    assert all(shards.find(store, key) for key in keys)
    made = [key for key, _ in log(store)]
    assert made.count("once") == 2
    assert all(made.count(key) == 1 for key in keys[1:])
    assert [path.name for path in store.glob(".*.lock")] == []


def test_a_piece_that_kills_all_its_workers_is_a_sentence(tmp_path: Path) -> None:
    store = tmp_path / "shards"
    with pytest.raises(StoppedError, match=r"toys: 3 times a worker was killed \(SIGKILL.*compute\.workers"):
        spread(store, ["quick", "deadly"])
    assert shards.find(store, "quick")


def test_an_error_in_a_worker_is_that_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^wrong: this piece cannot be made\.$"):
        spread(tmp_path / "shards", ["wrong", *(f"slow{index}" for index in range(50))])
    assert len(log(tmp_path / "shards")) < 50


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    store = tmp_path / "shards"
    spread(store, ["quick"])
    with pytest.raises(DiskFullError, match=f"^{store}: No space left on device: .* bytes free; make room"):
        spread(store, ["quick", "full", "full too"])
    assert shards.find(store, "quick")
    # A worker that is ended right after it took a lock leaves the file, and nobody has the lock of a dead process.
    assert [path for path in store.iterdir() if path.name != "quick" and path.suffix != ".lock"] == []
    assert locks.busy(store) == []


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_next_finds_what_is_finished(tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(10)]
    driver = faults.start(tmp_path, drive, store, keys, {})
    faults.until(lambda: len([*store.glob("slow*")]) > 2)
    assert driver.pid
    os.kill(driver.pid, signal.SIGKILL)
    makers = {int(maker) for _, maker in log(store)}
    faults.until(lambda: not any(Path(f"/proc/{maker}").exists() for maker in makers), 10)
    before = {path.name for path in store.glob("slow*")}
    assert len(before) < 10
    spread(store, keys)
    made = [key for key, _ in log(store)]
    assert all(shards.find(store, key) for key in keys)
    assert all(made.count(key) == 1 for key in before)


def test_of_two_drivers_the_newer_takes_over_and_nothing_is_made_twice(tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(8)]
    older = faults.start(tmp_path, drive, store, keys, {})
    faults.until(lambda: len([*store.glob("slow*")]) > 1)
    newer = faults.start(tmp_path, drive, store, keys, {})
    status, said = faults.finish(older, tmp_path)
    assert status == 1 and f"process {newer.pid}" in said
    assert faults.finish(newer, tmp_path)[0] == 0
    assert all(shards.find(store, key) for key in keys)
    finished = [key for key, _ in log(store)]
    assert len(finished) - len(set(finished)) <= 2  # pieces that the older one's workers had in hand


def test_ray_without_ray_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^compute\.executor: ray is not installed; run `pip install -e '\.\[ray\]'`"):
        spread(tmp_path / "shards", ["a"], executor="ray")


def test_pieces_without_keys_are_made_once_each(tmp_path: Path) -> None:
    two = Compute("local", 2, None, None, None)
    compute.each(two, tmp_path, partial(place, tmp_path), list("abcd"), what="letters")
    made = sorted(path.name.partition("-")[0] for path in tmp_path.glob("?-*"))
    assert made == list("abcd")
    assert [*(tmp_path / ".dreamset/scratch").iterdir()] == []
    with compute.inline():
        assert compute.workers(two) == 1
        assert not compute.spreads(two)


# Wrong values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 0}, "compute.workers: expected an integer of at least 1"),
        ({"threads": 0}, "compute.threads: expected an integer of at least 1"),
        ({"executor": "dask"}, "compute.executor: expected one of local, ray"),
        ({"store": "bucket/folder"}, "compute.store: expected a URL such as s3://BUCKET/FOLDER"),
    ],
)
def test_wrong_values_are_named(raw: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        toy.parse(raw | {"compute": TWO | changes})
