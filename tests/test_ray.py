"""Workers of a Ray cluster of two nodes on this machine: the bytes of one process, and the faults of a cluster."""

import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import faults
import toy
from dreamset import adapt, compute, generate, train
from dreamset.core import shards
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.workspace import Workspace
from dreamset.params.sections import Compute
from pieces import TWO, drive, log, place, spread
from test_compute import RECIPE, made, makers, shrunk

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head with one core, and a node with another; they listen to this machine alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # paths of sockets have to be short
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("nodes")))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # with these tests
        import ray
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        started.add_node(num_cpus=1)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def on(cluster: Any) -> dict[str, Any]:
    """The section ``compute`` for the cluster."""
    return {"executor": "ray", "workers": None, "ray_address": cluster.address}


def test_two_nodes_make_the_bytes_of_one_process(small: dict[str, Any], on: dict[str, Any], tmp_path: Path) -> None:
    found = []
    (tmp_path / "bucket").mkdir()
    ways = {"one": {"workers": 1}, "shared folder": on, "object storage": on | {"store": f"file://{tmp_path}/bucket"}}
    for name, changes in ways.items():
        params = toy.parse(shrunk(small) | {"compute": TWO | changes})
        workspace = Workspace.at(tmp_path / name)
        compute.prepare(params.compute, workspace.shards)
        toy.prepare(params, workspace)
        adapt.run(params, workspace, RECIPE)
        generate.run(params, workspace, RECIPE)
        train.run(params, workspace, "real")
        found.append((made(workspace), makers(workspace).keys()))
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1] == found[1][1] <= found[2][1]  # and the project's files


def test_pieces_without_keys_are_made_once_each(on: dict[str, Any], tmp_path: Path) -> None:
    compute.each(Compute(**TWO | on), tmp_path, partial(place, tmp_path), list("abc"), what="letters")
    assert sorted(path.name.partition("-")[0] for path in tmp_path.glob("?-*")) == list("abc")


def test_a_killed_worker_s_piece_is_made_by_another(on: dict[str, Any], tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", ["once", *(f"slow{index}" for index in range(3))]
    assert sum(spread(store, keys, **on)) == 4
    assert all(shards.find(store, key) for key in keys)
    names = [key for key, _ in log(store)]
    assert [names.count(key) for key in keys] == [2, 1, 1, 1]


def test_a_task_that_is_killed_each_time_as_for_memory_is_a_sentence(on: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "shards"
    with pytest.raises(StoppedError, match=r"toys: a piece lost its worker 4 times .*perhaps for lack of memory"):
        spread(store, ["quick", "deadly"], **on)
    assert shards.find(store, "quick")
    assert shards.find(store, "deadly") is None


def test_a_full_folder_is_a_sentence_and_loses_nothing(on: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "shards"
    with pytest.raises(DiskFullError, match=f"^{store}: No space left on device: .* bytes free; make room"):
        spread(store, ["quick", "full"], **on | {"workers": 1})
    assert shards.find(store, "quick")
    assert [path for path in store.iterdir() if path.name != "quick"] == []


def test_a_removed_node_s_pieces_are_made_elsewhere(cluster: Any, on: dict[str, Any], tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(10)]
    driver = faults.start(tmp_path, drive, store, keys, on)
    faults.until(lambda: len([*store.glob("slow*")]) > 2, 120)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    assert faults.finish(driver, tmp_path)[0] == 0
    assert all(shards.find(store, key) for key in keys)
    names = [key for key, _ in log(store)]
    assert len(names) - len(keys) <= 1  # the one that the node had in hand
    cluster.add_node(num_cpus=1)


def test_a_killed_driver_s_successor_makes_only_the_rest(on: dict[str, Any], tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(10)]
    driver = faults.start(tmp_path, drive, store, keys, on)
    faults.until(lambda: len([*store.glob("slow*")]) > 2, 120)
    assert driver.pid
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    before = {path.name for path in store.glob("slow*")}
    spread(store, keys, **on)
    names = [key for key, _ in log(store)]
    assert all(shards.find(store, key) for key in keys)
    assert all(names.count(key) == 1 for key in before)


def test_of_two_drivers_the_newer_goes_on(on: dict[str, Any], tmp_path: Path) -> None:
    store, keys = tmp_path / "shards", [f"slow{index}" for index in range(10)]
    older = faults.start(tmp_path, drive, store, keys, on)
    faults.until(lambda: len([*store.glob("slow*")]) > 1, 120)
    newer = faults.start(tmp_path, drive, store, keys, on)
    status, said = faults.finish(older, tmp_path)
    assert status == 1 and f"process {newer.pid}" in said
    assert faults.finish(newer, tmp_path)[0] == 0
    assert all(shards.find(store, key) for key in keys)
    assert len(log(store)) - len(keys) <= 2  # what the older one's tasks had in hand


def test_an_address_that_does_not_answer_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        InputError, match=f"compute.ray_address: no Ray cluster answers at {address} .*ray start --head"
    ):
        spread(tmp_path / "shards", ["a"], executor="ray", ray_address=address)
