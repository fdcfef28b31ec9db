"""Finished work survives, unfinished work does not count."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreamset.core import locks, shards
from dreamset.core.errors import DiskFullError, StoppedError
from dreamset.core.files import atomic_write, digest, sha256_file


def make(store: Path, key: str, text: str = "x") -> Path:
    with shards.writing(store, key) as folder:
        (folder / "a").write_text(text)
    return store / key


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), shards.writing(tmp_path, "k") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError("killed")
    assert shards.find(tmp_path, "k") is None
    assert list(tmp_path.iterdir()) == []
    assert shards.find(tmp_path, "k") is None
    assert shards.find(tmp_path, make(tmp_path, "k").name) == tmp_path / "k"


@pytest.mark.parametrize(
    ("name", "text"), [("a", "y"), ("a", None), (shards.MARKER, None), (shards.MARKER, '{"fi'), (shards.MARKER, "{}")]
)
def test_a_damaged_shard_is_made_again(tmp_path: Path, name: str, text: str | None) -> None:
    folder = make(tmp_path, "k")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    assert shards.find(tmp_path, "k") is None
    assert not folder.exists()
    assert shards.find(tmp_path, make(tmp_path, "k").name) == folder


def test_the_first_to_finish_wins(tmp_path: Path) -> None:
    with shards.writing(tmp_path, "k") as slow:
        (slow / "a").write_text("slow")
        make(tmp_path, "k", "fast")
    assert (tmp_path / "k/a").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_signal_while_a_failed_shard_is_cleared_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two workers on one full disk: the driver ends the second because of the first, while it clears up itself.
    clear = shutil.rmtree

    def ended(folder: Path, **options: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        clear(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", ended)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a worker has it
    try:
        with pytest.raises(KeyboardInterrupt), shards.writing(tmp_path, "a") as folder:
            (folder / "a").write_text("half")
            Path("/dev/full").write_text("No disk takes this.")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []


def test_the_key_changes_with_inputs_and_code() -> None:
    maker = "dreamset.core.seeds"
    key = shards.key_of({"a": 1, "b": 2}, maker)
    assert key == shards.key_of({"b": 2, "a": 1}, maker)
    assert key != shards.key_of({"a": 1, "b": 3}, maker)
    assert key != shards.key_of({"a": 1, "b": 2}, "dreamset.core.images")


def test_assembling_replaces_the_old_folder_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with shards.assembling(target) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError), shards.assembling(target) as folder:
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["one"]
    with shards.assembling(target) as folder:
        (folder / "two").write_text("2")
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_garbage_is_what_nothing_uses(tmp_path: Path) -> None:
    make(tmp_path, "used")
    make(tmp_path, "old", "12345")
    (tmp_path / ".left-behind").mkdir()
    folders, size = shards.collect_garbage(tmp_path, {"used"})
    assert folders == 2
    assert size > 5
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    atomic_write(path, "old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device: 3 bytes needed, \d+ bytes free"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_full_disk_is_told_whole_by_another_process(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as caught, shards.writing(tmp_path, "k", 1000):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: Disk quota exceeded: 1000 bytes needed")
    with pytest.raises(PermissionError), shards.writing(tmp_path, "k", 1000):
        raise PermissionError
    assert list(tmp_path.iterdir()) == []


def holder(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds a lock until it is killed."""
    code = f"""
import time
from pathlib import Path
from dreamset.core import locks
assert locks.take(Path({str(path)!r}))
print("held", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_another_makes_comes_last_and_is_made_when_it_dies(tmp_path: Path) -> None:
    other = holder(tmp_path / ".b.lock")
    made = []
    try:
        for unit, claim in shards.claimed(tmp_path, ["a", "b", "c"], lambda unit: [unit]):
            with claim:
                made.append(unit)
                make(tmp_path, unit)
            if unit == "c":
                other.kill()
    finally:
        other.kill()
        other.communicate()
    assert made == ["a", "c", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_another_has_made_meanwhile_is_left_out(tmp_path: Path) -> None:
    units = shards.claimed(tmp_path, ["a", "b"], lambda unit: [unit, f"{unit}2"])
    first, claim = next(units)
    make(tmp_path, "b")
    make(tmp_path, "b2")
    claim.close()
    assert first == "a"
    assert list(units) == []
    assert locks.busy(tmp_path) == []


def test_a_claim_is_all_of_its_locks_or_none(tmp_path: Path) -> None:
    taken = locks.take(tmp_path / ".b.lock")
    assert taken
    units = shards.claimed(tmp_path, [("a", "b"), ("c", "d")], lambda unit: unit)
    assert next(units)[0] == ("c", "d")
    assert locks.busy(tmp_path) == ["b", "c", "d"]
    taken.release()


def test_a_lock_whose_file_was_removed_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder before removes its file between another's open and flock."""
    path, flock, calls = tmp_path / "x.lock", fcntl.flock, []

    def late(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = locks.take(path)
    assert lock
    assert len(calls) == 2
    assert path.stat().st_ino == os.fstat(lock.handle).st_ino
    assert locks.take(path) is None
    lock.release()


def test_without_flock_work_goes_on_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        with locks.turn(tmp_path, "generate"):
            for unit, claim in shards.claimed(tmp_path, ["a", "b"], lambda unit: [unit]):
                with claim:
                    make(tmp_path, unit)
    assert shards.find(tmp_path, "a")
    assert shards.find(tmp_path, "b")
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: no flock" in said


def test_a_turn_ends_when_another_token_is_written(tmp_path: Path) -> None:
    with locks.turn(tmp_path, "adapt"):
        locks.boundary()
        assert not locks.superseded()
        atomic_write(tmp_path / "adapt.token", "17 elsewhere 0123\n")
        assert locks.superseded()
        with pytest.raises(StoppedError, match=r"adapt: a newer run \(process 17 on elsewhere\) has taken over"):
            locks.boundary()
    locks.boundary()
    assert [path.name for path in tmp_path.iterdir()] == ["adapt.token"]


def test_of_two_that_wait_the_newer_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = holder(tmp_path / "adapt.lock")
    code = f"""
from pathlib import Path
from dreamset.core import locks
with locks.turn(Path({str(tmp_path)!r}), "adapt"):
    print("on")
"""
    try:
        waiting = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE)]
        assert waiting[0].stderr is not None
        assert b"waiting" in waiting[0].stderr.readline()
        waiting.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE))
        assert b"taken over" in waiting[0].communicate(timeout=30)[1]
    finally:
        other.kill()
        other.communicate()
    assert waiting[1].communicate(timeout=30)[0] == b"on\n"
    assert list(tmp_path.iterdir()) == []


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf")
    assert digest({"x": [1, "ü"]}) == digest(json.loads('{"x": [1, "\\u00fc"]}'))


def test_a_shard_names_the_processor_and_the_threads_that_made_it(tmp_path: Path) -> None:
    import torch

    for key, threads in (("one", 1), ("two", 2), ("another", 1)):
        torch.set_num_threads(threads)
        make(tmp_path, key)
    machines = shards.machines(tmp_path, ["one", "two", "another"])
    assert [machine["threads"] for machine in machines] == [1, 2]
    assert len({machine["device"] for machine in machines}) == 1
    marker = tmp_path / "one" / shards.MARKER
    older = json.loads(marker.read_text())
    del older["machine"]
    marker.write_text(json.dumps(older))
    assert shards.machines(tmp_path, ["one"]) == []
