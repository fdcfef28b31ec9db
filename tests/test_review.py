"""The page on which a person looks at pictures: served to one browser, saved at once, and nothing else given away."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from PIL import Image

import browser
import toy
from dreamset.command import cli
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.workspace import Workspace
from dreamset.data import decisions
from dreamset.data.synthetic import write_metadata
from dreamset.review.server import Review, Server, serve

RECIPE = "stable_diffusion"


def read(workspace: Workspace) -> dict[decisions.Picture, decisions.Decision]:
    return decisions.read(workspace.review(RECIPE))


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Server]:
    """The page of the toy dataset: three classes of six images and four shots."""
    toy.write_splits(workspace)
    toy.write_synthetic(workspace, RECIPE)
    running = Server(Review(workspace, RECIPE))
    with started(running) as thread:
        yield running
    assert not thread.is_alive()


@contextlib.contextmanager
def started(server: Server) -> Iterator[threading.Thread]:
    """The thread in which a server answers; it ends with the block at the latest."""
    thread = threading.Thread(target=server.run, args=([server.socket],))
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(10)


def ask(
    server: Server, path: str, body: object = None, *, raw: str | None = None, **headers: str
) -> tuple[int, str, bytes]:
    """Status, content type and body of a request for a path behind the token, or for a ``raw`` one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    data = None if body is None else json.dumps(body)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given = {"Content-Type": "application/json"} | given
    connection.request("POST" if data else "GET", raw or f"/{server.token}/{path}", data, given)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


def test_the_page_and_its_pictures_are_served(server: Server, workspace: Workspace) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    for path, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        status, content_type, body = ask(server, path)
        assert (status, content_type.partition(";")[0]) == (200, kind)
        assert b"http://" not in body and b"https://" not in body
    data = json.loads(ask(server, "data")[2])
    assert [row["name"] for row in data["classes"]] == list(toy.CLASSES)
    assert data["classes"][1]["images"] == [6, 7, 8, 9, 10, 11] and data["classes"][1]["shots"] == [4, 5, 6, 7]
    assert data["states"] == "." * 18
    name = server.review.images[7].file_name
    assert ask(server, "images/7") == (200, "image/png", (workspace.synthetic(RECIPE) / name).read_bytes())
    assert ask(server, "shots/5")[:2] == (200, "image/png")


def test_a_shot_of_any_format_is_shown_as_png_and_small(workspace: Workspace, tmp_path: Path) -> None:
    import dataclasses
    import io

    from dreamset.core.files import sha256_file
    from dreamset.data.splits import write_split

    split = toy.write_splits(workspace)
    toy.write_synthetic(workspace, RECIPE)
    photo = tmp_path / "elsewhere.tif"
    Image.new("CMYK", (3000, 1500)).save(photo)
    own = dataclasses.replace(split.train[0], path=str(photo), sha256=sha256_file(photo))
    write_split(workspace.splits, dataclasses.replace(split, train=(own, *split.train[1:])))
    with Image.open(io.BytesIO(Review(workspace, RECIPE).shot(0))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (512, 256))


def test_other_pages_and_other_names_are_refused(server: Server, workspace: Workspace) -> None:
    body = {"changes": [[0, "rejected"]]}
    assert ask(server, "", raw="/")[0] == 403
    assert ask(server, "", raw=f"/{server.token[:-1]}/data")[0] == 403
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(f"GET /{'ä' * 32}/data HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        assert plain.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(server, "", raw=f"/{'%C3%A4' * 32}/data")[0] == 403
    # A name of an attacker's that was made to point to this machine.
    assert ask(server, "data", Host=f"evil.example:{server.port}")[0] == 403
    assert ask(server, "data", Host="127.0.0.1")[0] == 403
    assert ask(server, "data", Host=f"localhost:{server.port}")[0] == 200
    # Another page that has the address still cannot decide.
    assert ask(server, "decide", body, Origin="http://evil.example")[0] == 403
    assert ask(server, "decide", body, Origin="null")[0] == 403
    assert ask(server, "decide", body, Content_Type="text/plain")[0] == 415
    assert ask(server, "done", {}, Origin="http://evil.example")[0] == 403
    assert ask(server, "decide", body, Content_Length="99999999")[0] == 413
    assert not workspace.review(RECIPE).exists()
    assert ask(server, "decide", body, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_only_pictures_are_served(server: Server) -> None:
    for path in (
        "images/../../../params.yaml",
        "images/..%2f..%2fparams.yaml",
        "../../etc/passwd",
        "page.html",
        "decisions.py",
        "images/",
        "images/-1",
        "images/18",
        "images/1.5",
        "images/%C2%B2",
        "shots/12",
        "shots/999999999999",
        "data/0",
    ):
        assert ask(server, path)[0] == 404, path
        assert ask(server, path, {})[0] in {404, 405}, path


def test_a_manifest_cannot_lead_outside_the_dataset(workspace: Workspace) -> None:
    import dataclasses

    from starlette.exceptions import HTTPException

    from dreamset.core.files import sha256_file

    toy.write_splits(workspace)
    images = toy.write_synthetic(workspace, RECIPE)
    digest = sha256_file(workspace.splits)
    inside = workspace.synthetic(RECIPE) / "000_bar/00001.png"
    inside.unlink()
    inside.symlink_to(workspace.splits)
    images[0] = dataclasses.replace(images[0], file_name="../../splits/train.json", sha256=digest)
    images[1] = dataclasses.replace(images[1], sha256=digest)
    write_metadata(workspace.synthetic(RECIPE), images)
    review = Review(workspace, RECIPE)
    for number in (0, 1):
        with pytest.raises(HTTPException, match="outside the dataset"):
            review.image(number)
    assert review.image(2)


def test_a_picture_that_has_changed_is_not_shown(server: Server, workspace: Workspace) -> None:
    path = workspace.synthetic(RECIPE) / server.review.images[0].file_name
    path.write_bytes((workspace.synthetic(RECIPE) / server.review.images[1].file_name).read_bytes())
    assert ask(server, "images/0")[0] == 410
    path.unlink()
    assert ask(server, "images/0")[0] == 410


def test_decisions_are_on_disk_at_once_and_can_be_taken_back(server: Server, workspace: Workspace) -> None:
    older: dict[decisions.Picture, decisions.Decision] = {("bar", 0, "0" * 64): "kept"}
    server.review.decided.update(older)
    answer = ask(server, "decide", {"changes": [[0, "rejected"], [1, "kept"], [7, "kept"]]})
    assert json.loads(answer[2]) == {"looked_at": 3, "rejected": 1}
    key = [decisions.picture(image) for image in server.review.images]
    assert read(workspace) == older | {key[0]: "rejected", key[1]: "kept", key[7]: "kept"}
    assert json.loads(ask(server, "decide", {"changes": [[0, None], [1, "rejected"]]})[2]) == {
        "looked_at": 2,
        "rejected": 1,
    }
    assert read(workspace) == older | {key[1]: "rejected", key[7]: "kept"}
    assert json.loads(ask(server, "data")[2])["states"] == ".r.....k" + "." * 10


def test_a_broken_request_is_refused_without_a_traceback(
    server: Server, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    host = f"HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    post = f"POST /{server.token}/decide {host}Content-Type: application/json\r\n"
    for text, status in (
        ("nothing of the kind\r\n\r\n", b"400"),
        (f"GET /{server.token}/data HTTP/1.1\r\n\r\n", b"400"),
        (f"OPTIONS * {host}\r\n", b"403"),
        (f"GET /{server.token}/images/{'9' * 5000} {host}\r\n", b"404"),
        (f"{post}Content-Length: x\r\n\r\n", b"400"),
        (f"{post}Content-Length: 50000\r\n\r\n{'[' * 50000}", b"400"),
        (f"{post}Content-Length: 4\r\n\r\n\xff\xfe{{}}", b"400"),
        (f"{post}Transfer-Encoding: chunked\r\n\r\n500000\r\n{' ' * 0x500000}\r\n0\r\n\r\n", b"413"),
        (f"{post}Content-Length: 100\r\n\r\n{{", None),  # and the browser goes away
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            with contextlib.suppress(ConnectionError):  # an answer can come before all was sent
                plain.sendall(text.encode("latin-1"))
            if status:
                assert plain.recv(100).split()[1] == status, text[:100]
    assert ask(server, "data")[0] == 200
    assert not workspace.review(RECIPE).exists()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_malformed_decision_changes_nothing(server: Server, workspace: Workspace) -> None:
    bodies: list[object] = [
        [],
        {},
        {"changes": 3},
        {"changes": [[0, "kept"], [18, "kept"]]},
        {"changes": [[-1, "kept"]]},
        {"changes": [["0", "kept"]]},
        {"changes": [[0, "maybe"]]},
        {"changes": [[0, ["kept"]]]},
        {"changes": [[0]]},
    ]
    for body in bodies:
        assert ask(server, "decide", body)[0] == 400, body
    assert not workspace.review(RECIPE).exists()
    assert server.review.decided == {}


def test_a_full_disk_is_told_and_the_decision_stays_open(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFullError(28, "No space left on device", "data/review")

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "write", full)
        assert ask(server, "decide", {"changes": [[0, "kept"]]})[0] == 507
    assert server.review.decided == {}
    assert ask(server, "decide", {"changes": [[0, "kept"]]})[0] == 200


def test_a_decision_that_cannot_be_saved_is_one_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "write", refused)
        status, _, said = ask(server, "decide", {"changes": [[0, "kept"]]})
    assert status == 500
    assert b"cannot be written (Permission denied); mend that, and decide again." in said
    assert "Traceback" not in capfd.readouterr().err
    assert ask(server, "decide", {"changes": [[0, "kept"]]})[0] == 200


def test_a_taken_port_is_one_sentence(server: Server) -> None:
    with pytest.raises(InputError, match=rf"--port {server.port}: cannot be used"):
        Server(server.review, server.port)


def test_two_reviews_of_a_recipe_do_not_meet(workspace: Workspace) -> None:
    from dreamset.core import locks

    lock = locks.take(workspace.locks / f"review_{RECIPE}.lock")
    assert lock
    with pytest.raises(StoppedError, match="is open already"):
        serve(workspace, RECIPE, browser=False)
    lock.release()


def test_a_dataset_of_other_classes_is_refused(workspace: Workspace) -> None:
    import dataclasses

    toy.write_splits(workspace)
    images = toy.write_synthetic(workspace, RECIPE)
    write_metadata(workspace.synthetic(RECIPE), [dataclasses.replace(images[0], class_name="barn"), *images[1:]])
    with pytest.raises(InputError, match="holds class 'barn', unlike the splits"):
        Review(workspace, RECIPE)


def test_without_a_dataset_the_command_says_what_makes_one(
    tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    toy.write_splits(Workspace.at(tmp_path))
    for arguments, words in (
        ([RECIPE], "run `dreamset generate stable_diffusion` first"),
        (["nothing"], "no row 'nothing' in recipes"),
        ([RECIPE, "--port", "70000"], "--port 70000: is no port"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["review", *arguments, "--no-browser"])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("ended_by", ["done", signal.SIGINT, signal.SIGTERM])
def test_it_ends_by_done_or_by_a_signal(tmp_path: Path, raw: dict[str, Any], ended_by: str | signal.Signals) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    workspace = Workspace.at(tmp_path)
    toy.write_splits(workspace)
    toy.write_synthetic(workspace, RECIPE)
    # A shell starts what runs in the background deaf to Ctrl-C, and so would this be.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from dreamset.command.cli import main; main(sys.argv[1:])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, "review", RECIPE, "--no-browser"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    where = urlsplit(running.stdout.readline().split()[2])
    connection = http.client.HTTPConnection(where.netloc, timeout=10)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"{where.path}decide", json.dumps({"changes": [[0, "rejected"]]}), headers)
    assert json.loads(connection.getresponse().read()) == {"looked_at": 1, "rejected": 1}
    if ended_by == "done":
        connection.request("POST", f"{where.path}done", "{}", headers)
        assert connection.getresponse().status == 200
    else:
        os.kill(running.pid, ended_by)
    out, err = running.communicate(timeout=20)
    assert running.returncode == (143 if ended_by is signal.SIGTERM else 0), err
    if ended_by is not signal.SIGTERM:
        assert "1 of 18 looked at, 1 rejected; in data/review/stable_diffusion.json, to be committed." in out
    assert list(read(workspace).values()) == ["rejected"]


@pytest.mark.browser
@pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not there")
def test_a_person_ticks_off_pictures_in_a_browser(workspace: Workspace, tmp_path: Path) -> None:
    toy.write_splits(workspace)
    images = toy.write_synthetic(workspace, RECIPE, per_class=110)
    key = [decisions.picture(image) for image in images]
    server = Server(Review(workspace, RECIPE))
    with started(server) as thread, browser.opened(tmp_path / "profile") as page:

        def saved(*expected: tuple[int, str]) -> None:
            """Wait for the file: autosave needs no button."""
            wanted, end = {key[number]: decision for number, decision in expected}, time.monotonic() + 10
            while read(workspace) != wanted:
                assert time.monotonic() < end, sorted(read(workspace).items())
                time.sleep(0.05)

        page.open(server.url)
        # Nothing outside this server, nothing broken, and the other class's pictures are not loaded.
        page.until("[...document.querySelectorAll('#shots img')].every(i => i.complete && i.naturalWidth == 16)")
        names = page.js("performance.getEntriesByType('resource').map(e => e.name)")
        assert all(name.startswith(server.url) for name in names if not name.endswith("favicon.ico"))
        assert page.js("document.querySelectorAll('#grid button').length") == 96
        assert page.js("document.querySelectorAll('#shots img').length") == 4

        page.press("ArrowRight", " ")
        saved((1, "rejected"))
        page.click("#grid button:nth-child(3)")
        saved((1, "rejected"), (2, "rejected"))
        page.press(" ")  # the click has moved the focus there
        saved((1, "rejected"), (2, "kept"))
        page.press("u", "u")
        saved((1, "rejected"))
        assert "1 of 330 looked at, 1 rejected" in page.js("document.querySelector('#total').textContent")

        page.press("Enter")
        first = [(number, "rejected" if number == 1 else "kept") for number in range(96)]
        saved(*first)
        assert page.js("document.querySelector('#page').textContent") == "page 2 of 2"
        page.press("Enter")
        assert page.js("document.querySelector('#name').textContent") == "plank"
        saved(*first, *((number, "kept") for number in range(96, 110)))
        assert "✕1 ✓110" in page.js("document.querySelector('#classes li').textContent")
        page.press("u")
        saved(*first)
        assert page.js("document.querySelector('#name').textContent") == "bar"

        # Loaded again, it goes on where it was; and what is saved is shown. Before it knows, the page asks to stay.
        page.until("document.querySelector('#saved').textContent === 'Saved'")
        page.open(server.url)
        assert page.js("document.querySelector('#page').textContent") == "page 2 of 2"
        page.press("p")
        assert page.js("document.querySelectorAll('#grid .rejected').length") == 1
        assert page.js("document.querySelector('#grid .rejected').title") == "bar, image 1"

        page.until("[...document.images].every(i => i.complete)")
        page.click("#done")
        thread.join(10)
        assert not thread.is_alive()
        page.until("document.body.textContent.includes('You can close this page')")
        # The browser asks for an icon by itself, without the secret.
        assert [error for error in page.errors if "favicon.ico" not in error] == []
