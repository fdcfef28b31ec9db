"""Faults: kills, full disks, too little memory, two at once, files that are not what they should be."""

import ctypes
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import faults
import toy
from dreamset import adapt, generate, prepare
from dreamset.command import cli
from dreamset.core import locks, shards
from dreamset.core.errors import InputError
from dreamset.core.files import read_json, sha256_file, write_json
from dreamset.core.workspace import Workspace
from dreamset.data.adapters import read_adapters
from dreamset.data.synthetic import SyntheticImage, read_metadata, write_metadata
from dreamset.drawing import draw
from dreamset.generator import sampler, training
from dreamset.generator.lora import WEIGHTS

ADAPT = ["adapt", "datadream_dset"]
GENERATE = ["generate", "stable_diffusion"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project in which nothing went wrong: six steps, a checkpoint after each second; three blocks of images."""
    root = Path(__file__).parents[1]
    raw = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    raw["models"]["bundled"]["judge"] = str(root / "models/base/judge")
    row = raw["models"]["bundled"]
    row["generator"] = str(tiny_generator)
    row["adapt"] |= {"sample_every": 6}
    row["adapt"]["dataset"] |= {"max_steps": 6, "warmup": 2, "batch": 4}
    row["generate"] |= {"per_class": 6, "batch": 20, "steps": 2}
    raw["adapt"] |= {"checkpoint_every": 2, "sample_images": 1, "sample_steps": 2}
    raw["track"]["uri"] = None
    raw["shots"] = 2
    workspace = Workspace.at(tmp_path_factory.mktemp("unbroken"))
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(raw))
    params = toy.parse(raw)
    prepare.run(params, workspace)
    adapt.run(params, workspace, ADAPT[1])
    adapt.run(params, workspace, GENERATE[1])
    generate.run(params, workspace, GENERATE[1])
    return workspace


@pytest.fixture
def fresh(unbroken: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The same project before its adapters are trained and its images drawn; the current folder."""
    shutil.copyfile(unbroken.root / "params.yaml", tmp_path / "params.yaml")
    for name in ("splits", "real"):
        shutil.copytree(unbroken.root / "data" / name, tmp_path / "data" / name)
    shutil.copytree(unbroken.adapter(GENERATE[1]), tmp_path / "models/adapters" / GENERATE[1])
    monkeypatch.chdir(tmp_path)
    return Workspace.at(tmp_path)


def state(workspace: Workspace) -> tuple[Path, int]:
    """The one checkpoint, which loads, and its step."""
    (path,) = workspace.unfinished.glob("*/state.safetensors")
    with safe_open(path, "pt") as opened:
        step = json.loads(opened.metadata()["state"])["step"]
    assert load_file(path)["losses"].shape == (1, step)
    return path, step


def assert_ends_as(fresh: Workspace, unbroken: Workspace, verb: list[str]) -> None:
    """The same command, run again, leaves the bytes of an unbroken run and nothing beside them."""
    cli.main(verb)
    if verb == ADAPT:
        assert content(fresh.adapter(ADAPT[1])) == content(unbroken.adapter(ADAPT[1]))
        assert list(fresh.unfinished.iterdir()) == []
    else:
        assert content(fresh.synthetic(GENERATE[1])) == content(unbroken.synthetic(GENERATE[1]))
    for folder in (fresh.adapter(ADAPT[1]).parent, fresh.synthetic(GENERATE[1]).parent, fresh.results):
        assert [path for path in folder.rglob(".*") if path.name != ".gitignore"] == []
    assert list(fresh.locks.iterdir()) == []


# Kills


def opened_as(handle: int) -> str:
    """Name of an open file."""
    return Path(f"/proc/self/fd/{handle}").readlink().name


def die_inside_a_checkpoint(nth: int) -> None:
    """SIGKILL when half of the nth checkpoint is on disk."""
    fsync, seen = os.fsync, iter(range(nth))

    def dying(handle: int) -> None:
        if "state.safetensors" in opened_as(handle) and next(seen) == nth - 1:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = dying
    cli.main(ADAPT)


def test_a_kill_inside_a_checkpoint_write_keeps_the_one_before(fresh: Workspace, unbroken: Workspace) -> None:
    process = faults.start(fresh.root, die_inside_a_checkpoint, 2)
    assert faults.finish(process, fresh.root) == (-signal.SIGKILL, "")
    path, step = state(fresh)
    assert step == 2
    (torn,) = path.parent.glob(".state*.tmp")
    assert 0 < torn.stat().st_size < path.stat().st_size
    assert_ends_as(fresh, unbroken, ADAPT)


def wait_at(step: int) -> None:
    """Stay in a step until a file ``go`` is there, and say so."""
    train_step = training.Together._train_step

    def slow(self: training.Together) -> None:
        if self.step == step:
            Path("there").touch()
            while not Path("go").exists():
                time.sleep(0.01)
        train_step(self)

    training.Together._train_step = slow  # type: ignore[method-assign]
    cli.main(ADAPT)


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_in_adapt_ends_the_step_and_saves_it(
    fresh: Workspace,
    unbroken: Workspace,
    number: signal.Signals,
    status: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = faults.start(fresh.root, wait_at, 2)
    faults.until((fresh.root / "there").exists)
    assert process.pid
    os.kill(process.pid, number)
    faults.until((fresh.root / f"stderr_{process.pid}").read_text)
    (fresh.root / "go").touch()
    code, said = faults.finish(process, fresh.root)
    assert code == status
    assert [line[:24] for line in said.splitlines()] == ["dreamset: stopping after", f"dreamset: {word}; run"[:24]]
    assert state(fresh)[1] == 3  # no multiple of checkpoint_every
    assert not fresh.adapter(ADAPT[1]).exists()
    # Had it been stopped after a quarter of an hour, that would be a part of what adapting took.
    clock = state(fresh)[0].with_name("clock.json")
    began = read_json(clock, "")
    write_json(clock, began | {"started": began["started"] - 900})
    assert_ends_as(fresh, unbroken, ADAPT)
    assert "from step 3 of 6\n" in capsys.readouterr().err
    assert 900 < read_json(fresh.result(*ADAPT), "")["seconds"] < 1000


def test_a_second_signal_stops_within_the_step(fresh: Workspace, unbroken: Workspace) -> None:
    process = faults.start(fresh.root, wait_at, 3)
    faults.until((fresh.root / "there").exists)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    faults.until((fresh.root / f"stderr_{process.pid}").read_text)
    os.kill(process.pid, signal.SIGTERM)
    assert faults.finish(process, fresh.root)[0] == 143
    assert state(fresh)[1] == 2
    assert_ends_as(fresh, unbroken, ADAPT)


def test_a_checkpoint_that_is_not_whole_is_named(
    fresh: Workspace, unbroken: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        train_step = training.Together._train_step
        patch.setattr(training.Together, "_train_step", refusing(train_step, KeyboardInterrupt(), lambda _: True, 3))
        with pytest.raises(SystemExit):
            cli.main(ADAPT)
    path, _ = state(fresh)
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert f"{path}: is not a complete checkpoint" in exits_with_two(ADAPT, capsys)
    path.unlink()
    assert_ends_as(fresh, unbroken, ADAPT)


def die_assembling(nth: int) -> None:
    link, seen = shards.link, iter(range(nth))

    def dying(source: Path, target: Path) -> None:
        if next(seen) == nth - 1:
            os.killpg(0, signal.SIGKILL)
        link(source, target)

    shards.link = dying
    cli.main(GENERATE)


def test_a_kill_while_a_dataset_is_put_together_leaves_nothing_half(fresh: Workspace, unbroken: Workspace) -> None:
    process = faults.start(fresh.root, die_assembling, 17)
    assert faults.finish(process, fresh.root)[0] == -signal.SIGKILL
    assert not fresh.synthetic(GENERATE[1]).exists()
    assert len(list(fresh.synthetic(GENERATE[1]).parent.glob(".*/*/*.png"))) == 16
    assert_ends_as(fresh, unbroken, GENERATE)


# A full disk


def refusing(
    whole: Callable[..., Any], error: BaseException, when: Callable[..., bool], nth: int = 1
) -> Callable[..., Any]:
    """A function that fails from its nth fitting call on."""
    seen = iter(range(nth - 1))

    def function(*args: Any, **kwargs: Any) -> Any:
        if when(*args) and next(seen, None) is None:
            raise error
        return whole(*args, **kwargs)

    return function


def no_space(place: str, patch: pytest.MonkeyPatch) -> None:
    """Let one kind of write fail."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def named(name: str) -> Callable[..., bool]:
        return lambda handle: name in opened_as(handle)

    if place == "image":
        patch.setattr(Path, "write_bytes", refusing(Path.write_bytes, full, lambda _, __: True, 25))
    elif place == "copy":
        patch.setattr(os, "link", refusing(os.link, OSError(errno.EXDEV, "cross-device"), lambda *_: True))
        patch.setattr(shutil, "copyfile", refusing(shutil.copyfile, full, lambda *_: True, 9))
    elif place == "adapter":
        # As safetensors says it.
        error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        patch.setattr(training.Together, "save", refusing(training.Together.save, error, lambda *_: True))
    elif place == "folder":
        patch.setattr(Path, "mkdir", refusing(Path.mkdir, full, lambda path, *_: path.name == "003_three"))
    else:
        patch.setattr(os, "fsync", refusing(os.fsync, full, named(place)))


@pytest.mark.parametrize(
    ("verb", "place", "folder", "needed"),
    [
        (GENERATE, "image", ".dreamset/shards", True),
        (GENERATE, "folder", ".dreamset/shards", True),
        (GENERATE, "metadata.jsonl", ".dreamset/shards", True),
        (GENERATE, "done.json", ".dreamset/shards", True),
        (GENERATE, "copy", "data/synthetic/stable_diffusion", False),
        (GENERATE, "stable_diffusion.json", "results/generate", True),
        (ADAPT, "samples_", ".dreamset/unfinished", True),
        (ADAPT, "state", ".dreamset/unfinished", True),
        (ADAPT, "adapter", ".dreamset/shards", False),
        (ADAPT, "loss.csv", "results/plots/adapt/datadream_dset", True),
    ],
)
def test_a_full_disk_is_one_sentence_and_the_next_run_completes(
    fresh: Workspace,
    unbroken: Workspace,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
    place: str,
    folder: str,
    needed: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        no_space(place, patch)
        with pytest.raises(SystemExit) as stopped:
            cli.main(verb)
    assert stopped.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dreamset: {fresh.root / folder}") and "No space left on device" in said
    assert " bytes free" in said
    assert (" bytes needed" in said) == needed
    assert_nothing_half(fresh)
    assert_ends_as(fresh, unbroken, verb)


def assert_nothing_half(workspace: Workspace) -> None:
    """Every shard there is whole, and nothing stands aside."""
    for path in workspace.shards.glob("*"):
        assert shards.find(workspace.shards, path.name) == path
    assert [path for path in workspace.unfinished.rglob("*") if path.suffix == ".tmp"] == []
    assert not workspace.synthetic(GENERATE[1]).exists() or read_metadata(workspace.synthetic(GENERATE[1]))
    assert [path for path in workspace.synthetic("x").parent.glob(".*") if path.name != ".gitignore"] == []


def on_a_small_disk(verb: list[str], kilobytes: int) -> None:
    """Give the work folder a file system of its own, of a few pages; what it holds at the end goes into a file."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private = 0x00020000, 0x10000000, 0x00040000 | 0x4000
    work = Path(".dreamset")
    work.mkdir()
    if libc.unshare(new_mounts | (0 if os.getuid() == 0 else new_users)) or libc.mount(None, b"/", None, private, None):
        raise SystemExit(77)
    if libc.mount(b"tmpfs", bytes(work.absolute()), b"tmpfs", 0, f"size={kilobytes}k".encode()):
        raise SystemExit(77)
    try:
        cli.main(verb)
    finally:
        listed = [path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()]
        Path("left.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(("verb", "kilobytes"), [(GENERATE, 128), (ADAPT, 64), (ADAPT, 700)])
def test_a_disk_that_is_really_full(fresh: Workspace, unbroken: Workspace, verb: list[str], kilobytes: int) -> None:
    process = faults.start(fresh.root, on_a_small_disk, verb, kilobytes)
    code, said = faults.finish(process, fresh.root)
    if code == 77:
        pytest.skip("this machine lets nobody mount a file system")
    assert (code, said.count("\n")) == (1, 1), said
    assert "No space left on device" in said and " bytes free" in said
    left = json.loads((fresh.root / "left.json").read_text())
    assert [name for name in left if "/." in name] == []
    assert_ends_as(fresh, unbroken, verb)


def with_a_limit_on_files(kilobytes: int) -> None:
    """Let the system refuse the last bytes of the adapter's own file."""
    save = training.Together.save

    def limited(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))
        save(*args)

    training.Together.save = limited  # type: ignore[method-assign]
    cli.main(ADAPT)


def test_a_refused_write_of_an_adapter_is_told_as_one(fresh: Workspace, unbroken: Workspace) -> None:
    process = faults.start(fresh.root, with_a_limit_on_files, 16)
    code, said = faults.finish(process, fresh.root)
    assert (code, said.count("\n")) == (1, 1), said
    assert said.startswith(f"dreamset: {fresh.shards}: File too large: ")
    assert_nothing_half(fresh)
    assert state(fresh)[1] == 6
    assert_ends_as(fresh, unbroken, ADAPT)


# Too little memory


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")],
)
def test_too_little_memory_to_train_names_what_to_lower(
    fresh: Workspace, unbroken: Workspace, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        train_step = training.Together._train_step
        patch.setattr(training.Together, "_train_step", refusing(train_step, error, lambda _: True, 4))
        with pytest.raises(SystemExit) as stopped:
            cli.main(ADAPT)
    assert stopped.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    for key in ("models.bundled.adapt.dataset.batch", "models.bundled.adapt.together", "models.bundled.memory"):
        assert key in said
    assert "gradient_checkpointing" in said
    assert state(fresh)[1] == 2
    assert_ends_as(fresh, unbroken, ADAPT)


def test_another_error_is_not_taken_for_one_of_memory(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("shapes do not fit")
    monkeypatch.setattr(training.Together, "_train_step", refusing(lambda _: None, error, lambda _: True))
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(ADAPT)


def test_too_little_memory_for_one_image_names_what_to_change(
    fresh: Workspace, unbroken: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "draw", refusing(sampler.draw, torch.OutOfMemoryError("no"), lambda *_: True, 2))
        with pytest.raises(SystemExit) as stopped:
            cli.main(GENERATE)
    assert stopped.value.code == 1
    assert "models.bundled.memory" in capsys.readouterr().err
    assert_ends_as(fresh, unbroken, GENERATE)


# Two at once


def note(line: object) -> None:
    with Path("log").open("a") as file:
        file.write(f"{line}\n")


def noting_draws(wait_for: str = "") -> None:
    """Note each block that is drawn; with the first in hand, wait for a file."""
    original = draw.Drawer.draw

    def slow(*args: Any) -> draw.Drawn:
        note(args[1].key)
        drawn = original(*args)
        if wait_for:
            faults.until(Path(wait_for).exists)
        return drawn

    draw.Drawer.draw = slow
    cli.main(GENERATE)


def noting_steps(at: int = -1, wait_for: str = "") -> None:
    """Note each step that is trained; after one of them, wait for a file."""
    train_step = training.Together._train_step

    def slow(self: training.Together) -> None:
        note(self.step)
        train_step(self)
        if self.step == at:
            faults.until(Path(wait_for).exists)

    training.Together._train_step = slow  # type: ignore[method-assign]
    cli.main(ADAPT)


@pytest.mark.parametrize("verb", [GENERATE, ADAPT])
def test_a_newer_run_takes_over_and_nothing_is_made_twice(
    fresh: Workspace, unbroken: Workspace, verb: list[str]
) -> None:
    log = fresh.root / "log"
    older = faults.start(fresh.root, *((noting_draws, "go") if verb == GENERATE else (noting_steps, 3, "go")))
    faults.until(lambda: log.exists() and len(log.read_text().splitlines()) == (1 if verb == GENERATE else 3))
    newer = faults.start(fresh.root, *((noting_draws,) if verb == GENERATE else (noting_steps,)))
    waiting = fresh.root / f"stderr_{newer.pid}"
    faults.until(lambda: waiting.exists() and f"process {older.pid}" in waiting.read_text())
    (fresh.root / "go").touch()
    code, said = faults.finish(older, fresh.root)
    assert code == 1
    assert f"process {newer.pid}" in said and "taken over" in said and said.count("\n") == 1
    assert faults.finish(newer, fresh.root)[0] == 0
    made = log.read_text().splitlines()
    assert len(made) == len(set(made)) == (3 if verb == GENERATE else 6)
    assert_ends_as(fresh, unbroken, verb)


def one_cell(root: Path, cell: Path) -> None:
    """A cell's images; both cells wait for each other before they begin."""
    original = draw.Drawer.draw

    def slow(*args: Any) -> draw.Drawn:
        with (root / "log").open("a") as file:
            file.write(f"{args[1].key} {os.getpid()}\n")
        time.sleep(0.3)
        return original(*args)

    draw.Drawer.draw = slow
    (cell / "ready").touch()
    faults.until(lambda: all((root / name / "ready").exists() for name in "ab"))
    generate.run(toy.load(root / "params.yaml"), Workspace(root, cell), GENERATE[1])


def test_two_cells_share_the_shards_that_both_need(fresh: Workspace, unbroken: Workspace) -> None:
    cells = [fresh.root / name for name in "ab"]
    for cell in cells:
        for name in ("data", "models"):
            shutil.copytree(fresh.root / name, cell / name)
    processes = [faults.start(cell, one_cell, fresh.root, cell) for cell in cells]
    for process, cell in zip(processes, cells, strict=True):
        assert faults.finish(process, cell) == (0, "")
        found = content(Workspace(fresh.root, cell).synthetic(GENERATE[1]))
        assert found == content(unbroken.synthetic(GENERATE[1]))
    made = [line.split() for line in (fresh.root / "log").read_text().splitlines()]
    assert len(made) == len({key for key, _ in made}) == 3
    assert {int(maker) for _, maker in made} == {process.pid for process in processes}


def test_gc_leaves_the_work_of_a_run_alone(fresh: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with shards.writing(fresh.shards, "k") as folder:
        (folder / "a").write_text("of a run that is going on")
    with locks.turn(fresh.locks, "generate_stable_diffusion"), pytest.raises(SystemExit) as stopped:
        cli.main(["gc"])
    assert stopped.value.code == 1
    assert "generate_stable_diffusion is running" in capsys.readouterr().err
    cli.main(["gc", "--dry-run"])
    assert shards.find(fresh.shards, "k")
    said = capsys.readouterr().out
    cli.main(["gc"])
    assert said == capsys.readouterr().out.replace("removed", "would remove") != ""
    assert not shards.find(fresh.shards, "k")


# Files that are not what they should be


@pytest.fixture
def adapted(fresh: Workspace, unbroken: Workspace) -> Workspace:
    """With adapters that share nothing with those of the unbroken project."""
    shutil.copytree(unbroken.adapter(ADAPT[1]), fresh.adapter(ADAPT[1]))
    shutil.copytree(unbroken.shards, fresh.shards)
    return fresh


def exits_with_two(verb: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(verb)
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    return said


def test_a_flipped_bit_in_an_adapter_stops_generate_and_adapt_mends_it(
    adapted: Workspace, unbroken: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter,) = read_adapters(adapted.adapter(ADAPT[1]))
    for path in (adapted.adapter(ADAPT[1]) / WEIGHTS, adapted.shards / adapter.shard / WEIGHTS):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    said = exits_with_two(["generate", ADAPT[1]], capsys)
    assert f"{adapted.adapter(ADAPT[1]) / WEIGHTS}: is not the adapter that was trained" in said
    assert not adapted.synthetic(ADAPT[1]).exists()
    assert_ends_as(adapted, unbroken, ADAPT)


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def replace(workspace: Workspace, name: str, data: bytes) -> None:
    """Put another file in an adapter's place, with a record that agrees."""
    folder = workspace.adapter(ADAPT[1])
    (folder / name).write_bytes(data)
    record = json.loads((folder / "adapters.json").read_text())
    record["adapters"][0] |= {"file": name, "sha256": sha256_file(folder / name)}
    (folder / "adapters.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "lora.pt", WEIGHTS])
def test_a_pickled_adapter_is_not_opened(adapted: Workspace, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pickled = pickle.dumps(Bomb())
    replace(adapted, name, pickled)
    said = exits_with_two(["generate", ADAPT[1]], capsys)
    assert name in said and ("pickled" in said or "not a whole LoRA file" in said)
    assert not Path("exploded").exists()
    pickle.loads(pickled)
    assert Path("exploded").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a[:0], b[:, :0]), "no pair of matrices of rank 1 to 1024"),
        (lambda a, b: (a.repeat(200, 1), b.repeat(1, 200)), "no pair of matrices of rank 1 to 1024"),
        (lambda a, b: (a[0], b[:, 0]), "no pair of matrices"),
        (lambda a, b: (a[:, :-1], b), "do not fit the base"),
        (lambda a, b: (a * float("nan"), b), "NaN"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    adapted: Workspace, capsys: pytest.CaptureFixture[str], change: Callable[..., Any], words: str
) -> None:
    tensors = load_file(adapted.adapter(ADAPT[1]) / WEIGHTS)
    down = next(key for key in tensors if key.endswith("lora_A.weight"))
    up = down.replace("lora_A", "lora_B")
    changed = change(tensors[down], tensors[up])
    tensors |= {key: tensor.contiguous() for key, tensor in zip((down, up), changed, strict=True)}
    other = adapted.root / "other.safetensors"
    save_file(tensors, other)
    replace(adapted, "other.safetensors", other.read_bytes())
    assert words in exits_with_two(["generate", ADAPT[1]], capsys)


@pytest.mark.parametrize("name", ["../../../x.safetensors", "/etc/x.safetensors"])
def test_an_adapter_outside_its_folder_is_refused(adapted: Workspace, name: str) -> None:
    path = adapted.adapter(ADAPT[1]) / "adapters.json"
    record = json.loads(path.read_text())
    record["adapters"][0]["file"] = name
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="lies outside"):
        read_adapters(path.parent)
    del record["adapters"][0]["sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"adapters\.json: is not a record of adapters \('sha256'\)"):
        read_adapters(path.parent)


def rows(folder: Path) -> Path:
    name = "a\u2028b \x85 ü"  # what Python takes for line breaks and JSON does not
    image = SyntheticImage("000_a/00000.png", 0, name, 0, f"a photo of {name}", 1, 0, {}, None, "0")
    write_metadata(folder, [image, image, image])
    assert read_metadata(folder) == [image] * 3
    return folder / "metadata.jsonl"


def test_a_torn_line_of_metadata_names_file_and_line(tmp_path: Path) -> None:
    path = rows(tmp_path)
    whole = path.read_bytes()
    first, second, third, _ = whole.split(b"\n")
    inside = whole.rindex("ü".encode()) + 1
    for cut in (1, 2, 10, len(third), len(whole) - inside):
        path.write_bytes(whole[:-cut])
        with pytest.raises(InputError, match=r"metadata\.jsonl, line 3: is not a whole row .*run `dreamset generate"):
            read_metadata(tmp_path)
    for torn in (second[:30], second[30:], b"", b"[1]", b"\xff", second[:-1] + b', "more": 1}'):
        path.write_bytes(b"\n".join([first, torn, third, b""]))
        with pytest.raises(InputError, match=r"metadata\.jsonl, line 2"):
            read_metadata(tmp_path)


def test_the_page_of_faults_names_tests_that_are_there() -> None:
    tests = Path(__file__).parent
    there = {
        name for path in tests.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = set(re.findall(r"`(test_\w+)`", (tests.parent / "docs/faults.md").read_text()))
    assert len(named) > 40
    assert named - there == set()
    own = re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.M)
    assert set(own) - named == {
        "test_the_page_of_faults_names_tests_that_are_there",
        "test_another_error_is_not_taken_for_one_of_memory",
    }
