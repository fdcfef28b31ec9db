"""Weights from the hub: fetched once, found offline, refused in one sentence. The hub is a small one of our own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy
from dreamset.core.errors import InputError
from dreamset.core.workspace import Workspace
from dreamset.weights import hub
from tiny import write_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[1]


class Hub(ThreadingHTTPServer):
    """Serves one repository of files as the hub does, and counts what was asked."""

    def __init__(self, repo: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.folder = repo, folder
        self.downloads: list[str] = []
        self.asked = 0  # for facts of the repository

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, repo = self.path.partition("?")[0], self.server.repo
        if path.startswith(f"/api/models/{repo}/tree/"):
            return self._send(json.dumps([self._row(file) for file in self._files()]).encode())
        if path.startswith(f"/api/models/{repo}"):
            self.server.asked += 1
            siblings = [{"rfilename": file, "size": self._row(file)["size"]} for file in self._files()]
            return self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        found = re.fullmatch(rf"/{repo}/resolve/[^/]+/(.+)", path)
        if not found or not (self.server.folder / found[1]).is_file():
            return self._send(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        data = (self.server.folder / found[1]).read_bytes()
        facts = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if body:
            self.server.downloads.append(found[1])
        return self._send(data, 200, facts, body=body)

    def _files(self) -> list[str]:
        root = self.server.folder
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def _row(self, file: str) -> dict[str, Any]:
        data = (self.server.folder / file).read_bytes()
        return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _send(self, data: bytes, status: int = 200, facts: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(facts or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def served(tmp_path: Path, raw: dict[str, Any]) -> Iterator[tuple[Hub, dict[str, str]]]:
    """A hub with a tiny Stable Diffusion beside files that nobody needs, and the environment that reaches it."""
    folder = write_pipeline(tmp_path / "repository")
    (folder / "README.md").write_text("a card")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"pickled")
    (folder / "whole.safetensors").write_bytes(b"the same again")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the same in half")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"the same, pickled")
    raw["models"]["bundled"]["generator"] = "hub:someone/tiny-sd@main"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    server = Hub("someone/tiny-sd", folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    yield server, environment
    server.shutdown()
    server.server_close()
    thread.join()


def dreamset(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreamset", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_fetched_once_then_found_without_a_network(served: tuple[Hub, dict[str, str]], tmp_path: Path) -> None:
    server, environment = served
    done = dreamset(tmp_path, environment, "fetch")
    assert done.returncode == 0, done.stderr
    assert f"pin it: hub:someone/tiny-sd@{COMMIT}" in done.stdout
    assert done.stdout.startswith("to load: 0.00 GB (generator 0.00); ")
    assert f" GB are free in {tmp_path / 'cache/hub'}\n" in done.stdout
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= set(server.downloads)
    # Nothing pickled, nothing twice, nothing in another form.
    assert not {name for name in server.downloads if name.endswith((".ckpt", ".bin", ".fp16.safetensors", ".md"))}
    assert "whole.safetensors" not in server.downloads
    record = json.loads((tmp_path / "models/fetched.json").read_text())["someone/tiny-sd"]
    assert record["commit"] == COMMIT
    weights = server.folder / "unet/diffusion_pytorch_model.safetensors"
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["files"]["unet/diffusion_pytorch_model.safetensors"] == expected

    before = len(server.downloads)
    assert dreamset(tmp_path, environment, "fetch").returncode == 0
    assert len(server.downloads) == before

    # A cache of which a part was lost is completed, and only that part.
    cache = tmp_path / "cache/hub/models--someone--tiny-sd"
    lost = next(cache.glob("snapshots/*/vae/diffusion_pytorch_model.safetensors"))
    lost.resolve().unlink()
    lost.unlink()
    missing = dreamset(tmp_path, environment | {"HF_HUB_OFFLINE": "1"}, "prepare")
    assert missing.returncode == 0
    stage = dreamset(tmp_path, environment | {"HF_HUB_OFFLINE": "1"}, "generate", "stable_diffusion")
    assert stage.returncode == 2
    assert dreamset(tmp_path, environment, "fetch").returncode == 0
    assert server.downloads[before:] == ["vae/diffusion_pytorch_model.safetensors"]

    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    found = dreamset(tmp_path, offline, "adapt", "stable_diffusion")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("verb", [("adapt", "datadream_dset"), ("fetch",)])
def test_what_is_not_there_is_one_sentence(
    served: tuple[Hub, dict[str, str]], tmp_path: Path, raw: dict[str, Any], verb: tuple[str, ...]
) -> None:
    _, environment = served
    raw["models"]["bundled"]["generator"] = f"hub:someone/else@{COMMIT}"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    toy.write_splits(Workspace.at(tmp_path))
    done = dreamset(tmp_path, environment, *verb)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "someone/else" in done.stderr
    if verb[0] == "adapt":
        assert str(tmp_path / "cache/hub") in done.stderr
        assert "dreamset fetch" in done.stderr


def test_what_does_not_fit_is_not_begun(served: tuple[Hub, dict[str, str]], tmp_path: Path) -> None:
    server, environment = served
    code = (
        "import shutil, sys; from dreamset.command import cli;"
        "shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10, 9, 1000); cli.main(['fetch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "GB do not fit into" in done.stderr and server.downloads == []


def test_sizes_are_of_the_files_that_are_missing(
    served: tuple[Hub, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, environment = served
    code = f"from dreamset.weights import hub; print(hub.to_load('hub:someone/tiny-sd@{COMMIT}', 'generator'))"

    def asked() -> int:
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    before = asked()
    assert dreamset(tmp_path, environment, "fetch").returncode == 0
    whole = server.folder
    assert before == sum((whole / name).stat().st_size for name in server.downloads)
    # A commit that is here whole needs no network.
    questions = server.asked
    assert (asked(), server.asked) == (0, questions)
    weights = next((tmp_path / "cache").rglob("snapshots/*/vae/diffusion_pytorch_model.safetensors"))
    weights.resolve().unlink()
    weights.unlink()
    assert asked() == (whole / "vae/diffusion_pytorch_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("away", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_without_a_network_fetch_tries_once(
    served: tuple[Hub, dict[str, str]], tmp_path: Path, away: dict[str, str], words: str
) -> None:
    done = dreamset(tmp_path, served[1] | away, "fetch")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words in done.stderr and "Retrying" not in done.stderr


@pytest.mark.parametrize("name", ["hub:", "hub:justname", "hub:a/b@", "hub:a/b c", "hub:../../etc"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="hub:OWNER/NAME"):
        hub.repository(name)


def test_names_of_repositories_and_folders(tmp_path: Path) -> None:
    assert hub.repository("models/base/sd") is None
    assert hub.repository("hub:a-b/c.d") == hub.Repository("a-b/c.d", None)
    assert hub.repository("hub:a/b@v1.0") == hub.Repository("a/b", "v1.0")
    assert hub.locate(tmp_path, "models/x", "generator") == tmp_path / "models/x"


def test_the_identity_of_the_bundled_base_is_of_the_files_that_are_read() -> None:
    for name, part in (("sd", "generator"), ("clip", "clip"), ("judge", "judge")):
        found = hub.files(ROOT / "models/base" / name, part)  # type: ignore[arg-type]
        every = {path for path in (ROOT / "models/base" / name).rglob("*") if path.is_file()}
        assert {path for path in every if path.suffix == ".safetensors"} == {
            path for path in found if path.suffix == ".safetensors"
        }


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("generator", "sd/model_index.json"),
        ("generator", "sd/scheduler/scheduler_config.json"),
        ("generator", "sd/tokenizer/tokenizer.json"),
        ("generator", "sd/unet/config.json"),
        ("generator", "sd/unet/diffusion_pytorch_model.safetensors"),
        ("generator", "sd/text_encoder/model.safetensors"),
        ("clip", "clip/open_clip_config.json"),
        ("clip", "clip/open_clip_model.safetensors"),
        ("clip", "clip/tokenizer.json"),
    ],
)
def test_a_folder_of_weights_is_looked_through(tmp_path: Path, part: Any, file: str) -> None:
    for path in (ROOT / "models/base" / file.partition("/")[0]).rglob("*.*"):
        copy = tmp_path / path.relative_to(ROOT / "models/base")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    name = file.partition("/")[0]
    hub.check(tmp_path, name, part)
    (tmp_path / file).write_text("{")
    with pytest.raises(InputError, match=rf"{file}: is no.* or correct {part} in its row\.$"):
        hub.check(tmp_path, name, part)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=rf"{file}: is missing; fetch or copy it again, or correct {part} in its row"):
        hub.check(tmp_path, name, part)
    if file.endswith(".safetensors"):
        # Whoever loads pickled weights refuses them, and names the command that converts them.
        (tmp_path / file).with_suffix(".bin").write_bytes(b"pickled")
        hub.check(tmp_path, name, part)


def test_older_and_larger_folders_are_whole(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "sd")
    hub.check(tmp_path, "sd", "generator")
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/vocab.json")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    hub.check(tmp_path, "sd", "generator")
    hub.check(tmp_path, "gone", "generator")
