"""Finished shards in object storage: a shard found there is as good as one of this machine's."""

import importlib.util
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamset.compute import on_ray
from dreamset.core import remote, shards
from dreamset.core.errors import InputError, StoppedError

MOTO = importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 on 127.0.0.1."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        patch.setenv("AWS_ENDPOINT_URL", url)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="lab")
        yield "s3://lab/shards"
        server.stop()


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.skipif(not MOTO, reason="needs moto and s3fs"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where shards are kept beside a folder."""
    if request.param == "s3":
        found: str = request.getfixturevalue("bucket")
        return f"{found}/{tmp_path.name}"
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


def write(store: Path, key: str, text: str) -> None:
    with shards.writing(store, key) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/a").write_text(text)


def test_a_shard_of_one_machine_is_found_on_another(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    remote.use(here, url)
    remote.use(there, url + "/")
    write(here, "k", "made here")
    found = shards.find(there, "k")
    assert found == there / "k" and (found / "inner/a").read_text() == "made here"
    assert shards.find(there, "other") is None
    assert sorted(path.name for path in there.iterdir()) == ["k"]
    # A damaged one of this machine is loaded anew.
    (there / "k/inner/a").write_text("damaged")
    assert shards.find(there, "k") is None
    assert shards.find(there, "k")


def test_what_was_not_sent_is_sent_later(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    remote.use(here, url)
    remote.use(there, url)
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_system", lambda _: Silent())
        with pytest.raises(
            StoppedError, match=r"compute\.store: .* \(TimeoutError: no answer\).*stays in .dreamset/shards"
        ):
            write(here, "k", "made here")
    assert shards.find(there, "k") is None
    assert shards.find(here, "k")
    assert shards.find(there, "k")
    assert [path.name for path in here.iterdir()] == ["k"]


class Silent:
    """A storage that does not answer."""

    def put_file(self, *_: str) -> None:
        raise TimeoutError("no answer")

    def get_file(self, *_: str) -> None:
        raise FileNotFoundError


def test_half_a_file_is_no_shard(tmp_path: Path) -> None:
    url, here, there = f"file://{tmp_path}/bucket", tmp_path / "here", tmp_path / "there"
    (tmp_path / "bucket").mkdir()
    remote.use(here, url)
    remote.use(there, url)
    write(here, "k", "x" * 100_000)
    os.truncate(tmp_path / "bucket/k.tar", 60_000)
    assert shards.find(there, "k") is None
    write(there, "k", "made anew")
    shutil.rmtree(here)
    found = shards.find(here, "k")
    assert found and (found / "inner/a").read_text() == "made anew"


@pytest.mark.parametrize("member", ["../elsewhere", "link"])
def test_an_archive_of_something_else_is_no_shard(tmp_path: Path, member: str) -> None:
    here = tmp_path / "here"
    (tmp_path / "bucket").mkdir()
    remote.use(here, f"file://{tmp_path}/bucket")
    info = tarfile.TarInfo(member)
    if member == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "done.json"
    with tarfile.open(tmp_path / "bucket/k.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("first"))
        tar.addfile(info)
    assert shards.find(here, "k") is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bucket", "here", "k.tar"]


def test_the_project_s_files_travel_as_a_shard(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "project", f"file://{tmp_path}/bucket"
    (tmp_path / "bucket").mkdir()
    for name in ("data/real/a.png", "models/x.safetensors", ".git/config", ".dreamset/shards/k/a", "studies.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    remote.use(root / ".dreamset/shards", elsewhere)
    key = on_ray._inputs(root)
    assert on_ray._inputs(root) == key
    found = shards.find(root / ".dreamset/shards", key)
    assert found is not None
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert names == {"data/real/a.png", "models/x.safetensors", shards.MARKER}
    (root / "data/real/a.png").write_text("changed")
    assert on_ray._inputs(root) != key


def test_paths_in_the_project_are_those_of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    value: Any = [tmp_path / "data", tmp_path, Path("/elsewhere"), "text"]
    sent = on_ray._pickled(value, tmp_path)
    monkeypatch.setattr(on_ray, "_place", Path("/node"))
    assert pickle.loads(sent) == [Path("/node/data"), Path("/node"), Path("/elsewhere"), "text"]
    assert pickle.loads(on_ray._pickled(value, None)) == value


def test_a_protocol_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compute\.store: no file system has the protocol nothing"):
        remote.use(tmp_path, "nothing://here")
