"""Nothing but ``evaluate`` opens a test image: every file that a stage opens is recorded."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toy
from dreamset import adapt, deliver, evaluate, expect, generate, prepare, report, train
from dreamset.command import cli
from dreamset.core import audit
from dreamset.core.files import atomic_write
from dreamset.core.images import png
from dreamset.core.workspace import Workspace
from dreamset.data.runs import REAL
from dreamset.data.splits import read_test
from dreamset.params import Params
from dreamset.review.server import Review
from dreamset.sweep import crossval
from dreamset.use import export

_open: list[set[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _open and isinstance(arguments[0], str | bytes | os.PathLike):
        _open[-1].add(os.path.realpath(os.fsdecode(arguments[0])))


@pytest.fixture(scope="module", autouse=True)
def _recorder() -> None:
    # Never taken away again: Python has no way to.
    sys.addaudithook(_note)


@contextmanager
def opened() -> Iterator[set[str]]:
    """Every file that this process opens inside."""
    _open.append(set())
    try:
        yield _open[-1]
    finally:
        _open.pop()


@pytest.fixture
def project(small: dict[str, Any], tmp_path: Path) -> tuple[Params, Workspace]:
    """Folders of images with a test part of their own, tiny models, one recipe that adapts and one that does not."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(toy.CLASSES):
            for index in range(count):
                atomic_write(tmp_path / f"photos/{part}/{name}/{index}.png", png(toy.picture(label, rng)))
    toy.write_clip(tmp_path / "clip")
    toy.write_judge(tmp_path / "judge")
    row = small["models"]["bundled"]
    row |= {"clip": str(tmp_path / "clip"), "judge": str(tmp_path / "judge")}
    row["train"]["resnet20"] |= {"width": 4, "steps": 4, "batch": 8, "warmup": 1}
    row["train"]["clip_lora"] |= {"rank": 2, "alpha": 4, "steps": 4, "batch": 8, "warmup": 1}
    small["evaluate"]["bootstrap"] = 100
    small["track"]["uri"] = None
    small["active"] = ["stable_diffusion", "datadream_dset", "retrieved"]
    row["retrieval"] = f"imagefolder:{tmp_path / 'found'}"
    for index in range(40):
        atomic_write(tmp_path / f"found/{index}.png", png(toy.picture(index % len(toy.CLASSES), rng)))
    small["prepare"]["source"] = f"imagefolder:{tmp_path / 'photos'}"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small))
    return toy.parse(small), Workspace.at(tmp_path)


def test_only_evaluate_opens_a_test_image(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    prepare.run(params, workspace)
    secret = {os.path.realpath(workspace.test_split)}
    secret |= {os.path.realpath(workspace.cell / sample.path) for sample in read_test(workspace.test_split).test}
    assert len(secret) == 1 + 9
    learning: list[Callable[[], object]] = [
        lambda: expect.run(params, workspace),
        lambda: train.run(params, workspace, REAL),
    ]
    for recipe in params.active:
        learning += [
            lambda recipe=recipe: adapt.run(params, workspace, recipe),  # type: ignore[misc]
            lambda recipe=recipe: generate.run(params, workspace, recipe),  # type: ignore[misc]
            lambda recipe=recipe: train.run(params, workspace, recipe),  # type: ignore[misc]
        ]
    for stage in learning:
        with opened() as files:
            stage()
        assert files
        assert not files & secret
    with opened() as files:
        evaluate.run(params, workspace, crossval.run)
    assert secret <= files
    taking: list[Callable[[], object]] = [
        lambda: deliver.run(params, workspace, crossval.run),
        lambda: report.run(params, workspace),
        lambda: export.onnx(workspace.classifier, workspace.root / "classifier.onnx"),
    ]
    for recipe in params.active:
        taking.append(lambda recipe=recipe: _looked_at(Review(workspace, recipe)))  # type: ignore[misc]
    drawn = params.active[0]
    taking.append(lambda: export.public(params, workspace, drawn, workspace.root / "published"))
    for stage in taking:
        with opened() as files:
            stage()
        assert files
        assert not files & secret


def _looked_at(review: Review) -> None:
    """All that the page of `dreamset review` shows."""
    state = review.state()
    for own in state["classes"]:
        for number in own["images"]:
            review.image(number)
        for number in own["shots"]:
            review.shot(number)


@pytest.mark.parametrize("how", ["open", "Path", "os", "bytes", "numpy", "thread", "relative"])
def test_closed_means_closed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    atomic_write(workspace.test_split, "[]")
    atomic_write(workspace.real_test / "0.png", "x")
    monkeypatch.chdir(workspace.root)
    image = workspace.real_test / "0.png"
    ways: dict[str, Callable[[], object]] = {
        "open": lambda: open(image),  # noqa: SIM115, PTH123
        "Path": workspace.test_split.read_text,
        "os": lambda: os.open(workspace.test_split, os.O_RDONLY),
        "bytes": lambda: open(os.fsencode(image), "rb"),  # noqa: SIM115, PTH123
        "numpy": lambda: np.fromfile(image, np.uint8),
        "thread": lambda: _in_a_thread(workspace.test_split.read_text),
        "relative": lambda: open("data/../data/splits/test.json"),  # noqa: SIM115, PTH123
    }
    with audit.closed(workspace), pytest.raises(RuntimeError, match="only evaluate opens the test images"):
        ways[how]()
    assert workspace.test_split.read_text() == "[]"
    assert image.read_text() == "x"


def test_more_can_be_closed_and_opens_again(workspace: Workspace) -> None:
    held, near = workspace.root / "photos/0.png", workspace.root / "photos/0.png.txt"
    atomic_write(held, "x")
    atomic_write(near, "y")
    with audit.closed(workspace, also=[held, held]):
        # An outer and an inner block may close the same.
        with audit.closed(workspace, also=[held.parent]), pytest.raises(RuntimeError, match=r"photos/0\.png\.txt"):
            near.read_text()
        assert near.read_text() == "y"
        with pytest.raises(RuntimeError, match=r"photos/0\.png: only evaluate"):
            held.read_text()
    assert held.read_text() == "x"


def _in_a_thread(work: Callable[[], object]) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_the_command_line_closes_them(project: tuple[Params, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace = project
    monkeypatch.chdir(workspace.root)
    prepare.run(params, workspace)
    # A stage that peeks, as somebody's next change might.
    monkeypatch.setattr(train, "run", lambda *_: read_test(workspace.test_split))
    with pytest.raises(RuntimeError, match="only evaluate"):
        cli.main(["train", "real"])
