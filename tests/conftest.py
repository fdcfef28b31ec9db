"""Shared fixtures: small parameters, a random generator on disk, a prepared workspace."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Tests run side by side on few cores; set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from typing import TYPE_CHECKING, Any

import pytest

import toy
from dreamset import params as parameters
from dreamset.core import device
from dreamset.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.params.model import Model

ROOT = Path(__file__).parents[1]
device.keep_memory()


def _keep_folders_in_memory() -> None:
    """Put the folders of tests where nothing waits for a disk: it took a quarter of the suite's time.

    A test leaves many small files, and each is flushed and removed. Where there is too little room, the folders
    stand where pytest puts them; so do those of whoever says where to put them.
    """
    place, room = Path("/dev/shm"), 8 * 2**30
    if {"TMPDIR", "PYTEST_DEBUG_TEMPROOT"} & os.environ.keys() or not os.access(place, os.W_OK):
        return
    disk = os.statvfs(place)
    words = Path("/proc/meminfo").read_text().split()
    memory = 1024 * int(words[words.index("MemAvailable:") + 1])
    # Tests run what they install.
    if not disk.f_flag & os.ST_NOEXEC and min(memory, disk.f_bavail * disk.f_frsize) > room:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)


_keep_folders_in_memory()


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: many tests wait for a process, a lock or a heartbeat."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("dvc") is None)


def pytest_collection_finish() -> None:
    """What was imported stays: a tenth of the suite's time went into looking through it for garbage."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the measures of the source tree where its tests ran; workers' own output is lost."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    if any(str(getattr(report, "nodeid", "")).startswith("tests/test_floors.py") for report in reports):
        from test_floors import summary

        terminalreporter.write_line(summary())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that a test has asked for are not those of the tests after it, which would get in each other's way."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def raw() -> dict[str, Any]:
    """params.yaml as it stands, but that the bundled judge is found from any folder."""
    return toy.found_raw()


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion of a few thousand weights."""
    from tiny import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture
def small(raw: dict[str, Any], tiny_generator: Path) -> dict[str, Any]:
    """Raw parameters of a run of seconds on the random generator."""
    return toy.shrunk(raw, tiny_generator)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace.at(tmp_path)


@pytest.fixture
def place(workspace: Workspace) -> Workspace:
    """A workspace with the splits of the toy world."""
    toy.write_splits(workspace)
    return workspace


@pytest.fixture
def prepared(small: dict[str, Any], workspace: Workspace) -> tuple[parameters.Params, Workspace]:
    """Small parameters, and a workspace with their splits."""
    params = toy.parse(small)
    toy.prepare(params, workspace)
    return params, workspace


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small base of each family of pipelines, with random weights."""
    from tiny import FAMILIES

    return {name: write(tmp_path_factory.mktemp("families") / name) for name, write in FAMILIES.items()}


@pytest.fixture
def model(raw: dict[str, Any]) -> Model:
    """The row of the bundled model."""
    return toy.parse(raw).base
