"""Finished work survives, unfinished work does not count."""

import json
from pathlib import Path

import pytest

from dreamset import shards
from dreamset.files import atomic_write, digest, sha256_file


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


def test_without_its_marker_a_folder_is_no_shard(tmp_path: Path) -> None:
    folder = make(tmp_path, "k")
    (folder / shards.MARKER).unlink()
    assert shards.find(tmp_path, "k") is None


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = make(tmp_path, "k")
    if damage == "change":
        (folder / "a").write_text("y")
    else:
        (folder / "a").unlink()
    assert shards.find(tmp_path, "k") is None
    assert not folder.exists()


def test_the_first_to_finish_wins(tmp_path: Path) -> None:
    with shards.writing(tmp_path, "k") as slow:
        (slow / "a").write_text("slow")
        make(tmp_path, "k", "fast")
    assert (tmp_path / "k/a").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_the_key_changes_with_inputs_and_code() -> None:
    code = ("dreamset.seeds",)
    key = shards.key_of({"a": 1, "b": 2}, code)
    assert key == shards.key_of({"b": 2, "a": 1}, code)
    assert key != shards.key_of({"a": 1, "b": 3}, code)
    assert key != shards.key_of({"a": 1, "b": 2}, ("dreamset.images",))


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
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a").startswith("ba7816bf")
    assert digest({"x": [1, "ü"]}) == digest(json.loads('{"x": [1, "\\u00fc"]}'))
