"""The page of ``dreamset review``: served to this machine alone, and to the browser that was given its address.

Any page that a person has open can send requests to 127.0.0.1, and a name of its own can be made to point there. So
the address holds a secret that only the printed link tells, the Host header must be this server's, and a decision
must come from its own page. Pictures are asked for by number: no path is ever taken from a request.
"""

from __future__ import annotations

import functools
import hmac
import io
import json
import secrets
import sys
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from dreamset.core import locks
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.files import sha256
from dreamset.data import decisions
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreamset.core.workspace import Workspace
    from dreamset.data.decisions import Decision
    from dreamset.data.splits import Sample, Split
    from dreamset.data.synthetic import SyntheticImage

_PAGE: Final = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
_TYPES: Final = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript"}
_HEADERS: Final = {
    # Shots can be private: nothing stays in the browser, and nothing is asked of anyone else.
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LONGEST: Final = 2**22  # bytes of a request: a page of decisions takes a thousandth of it
_SHOT_SIDE: Final = 512  # pixels, of a shot as it is shown
_LETTERS: Final[dict[Decision | None, str]] = {None: ".", "kept": "k", "rejected": "r"}


class RefusedError(Exception):
    """Why a request is not answered: a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Review:
    """The images of a recipe, its shots, and what has been decided; safe for several threads.

    Args:
        workspace: where the dataset and the decisions are.
        recipe: whose dataset.

    Raises:
        InputError: there is no dataset yet, it is of other classes, or its decisions cannot be read.
    """

    def __init__(self, workspace: Workspace, recipe: str) -> None:
        self.recipe, self.folder, self.cell = recipe, workspace.synthetic(recipe), workspace.cell
        self.file = workspace.review(recipe)
        self.split: Split = read_split(workspace.splits)
        self.images: Sequence[SyntheticImage] = sorted(read_metadata(self.folder), key=lambda i: (i.label, i.index))
        for image in self.images:
            if not 0 <= image.label < len(self.split.classes) or self.split.classes[image.label] != image.class_name:
                raise InputError(
                    f"{self.folder}: holds class {image.class_name!r}, unlike the splits; run `dreamset generate "
                    f"{recipe}` again."
                )
        self.decided = decisions.read(self.file)
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What the page starts from. Images are numbered over all classes; ``states`` has a letter for each."""
        found = [self.decided.get(decisions.picture(image)) for image in self.images]
        classes: list[dict[str, Any]] = [{"name": name, "images": [], "shots": []} for name in self.split.classes]
        for number, image in enumerate(self.images):
            classes[image.label]["images"].append(number)
        for number, sample in enumerate(self.split.train):
            classes[sample.label]["shots"].append(number)
        return {
            "recipe": self.recipe,
            "file": f"data/review/{self.file.name}",
            "classes": classes,
            "indices": [image.index for image in self.images],
            "states": "".join(_LETTERS[decision] for decision in found),
        }

    def decide(self, changes: object) -> dict[str, int]:
        """Take decisions over, ``[number, "kept" | "rejected" | null]`` each, and write the file at once.

        Returns:
            How many images of the dataset were looked at, and how many of them rejected.

        Raises:
            RefusedError: a change is none; nothing of the request is taken over.
        """
        if not isinstance(changes, list):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "changes is no list")
        wanted: dict[decisions.Picture, Decision | None] = {}
        named: dict[object, Decision | None] = {None: None, "kept": "kept", "rejected": "rejected"}
        for change in changes:
            match change:
                case [int(number), None | "kept" | "rejected" as decision] if 0 <= number < len(self.images):
                    wanted[decisions.picture(self.images[number])] = named[decision]
                case _:
                    raise RefusedError(HTTPStatus.BAD_REQUEST, f"not a decision: {change!r}")
        with self._lock:
            decided = self.decided | wanted
            kept = {key: decision for key, decision in decided.items() if decision is not None}
            decisions.write(self.file, self.recipe, kept)
            self.decided = kept
            looked = decisions.count(kept, self.images)
        return {"looked_at": looked.looked_at, "rejected": looked.rejected}

    def image(self, number: int) -> bytes:
        """The file of an image.

        Raises:
            RefusedError: it is gone or is another one by now, as after `dreamset generate`.
        """
        image = self.images[number]
        return _checked(self.folder, image.file_name, image.sha256)

    @functools.lru_cache(maxsize=256)  # noqa: B019  one object in a process
    def shot(self, number: int) -> bytes:
        """A shot as PNG, whatever its file is: upright, RGB, at most 512 pixels.

        Raises:
            RefusedError: as for ``image``.
        """
        from PIL import Image

        from dreamset.core.images import read_rgb

        sample: Sample = self.split.train[number]
        _checked(self.cell, sample.path, sample.sha256, anywhere=True)
        picture = read_rgb(self.cell / sample.path)
        picture.thumbnail((_SHOT_SIDE, _SHOT_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


def _checked(folder: Path, name: str, expected: str, *, anywhere: bool = False) -> bytes:
    """Bytes of a file that a manifest names, which must lie in ``folder`` unless a person's own may be ``anywhere``."""
    path = (folder / name).resolve()
    if not anywhere and not path.is_relative_to(folder.resolve()):
        raise RefusedError(HTTPStatus.FORBIDDEN, "outside the dataset")
    data = path.read_bytes() if path.is_file() else b""
    if sha256(data) != expected:
        raise RefusedError(HTTPStatus.GONE, "the dataset has changed; start `dreamset review` again")
    return data


class Server(ThreadingHTTPServer):
    """The page of a review at ``url`` until ``shutdown``.

    Args:
        review: what is looked at.
        port: of 127.0.0.1; 0: one that is free.

    Raises:
        InputError: the port is taken, or needs more rights.
    """

    daemon_threads = True

    def __init__(self, review: Review, port: int = 0) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error.strerror}); name another or none.") from error
        self.review, self.token = review, secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone away before it had its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dreamset", ""
    timeout = 60  # seconds that an idle connection is kept
    ending = False

    def do_GET(self) -> None:
        """The page, its data, an image or a shot."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Decisions, or the end."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""

    def _answer(self, respond: Any) -> None:
        try:
            kind, data = respond(self._path())
            status = HTTPStatus.OK
        except RefusedError as error:
            status, kind, data = error.status, "text/plain; charset=utf-8", f"{error}\n".encode()
        except DiskFullError as error:
            status, kind, data = HTTPStatus.INSUFFICIENT_STORAGE, "text/plain; charset=utf-8", f"{error}\n".encode()
        if status is not HTTPStatus.OK:
            # A body that was not read would be taken for the next request.
            self.close_connection = True
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        if self.ending:
            # After the answer, which would be lost with this process.
            threading.Thread(target=self.server.shutdown).start()

    def _path(self) -> str:
        """What is asked for, behind the secret.

        Raises:
            RefusedError: another host's name, or another secret.
        """
        if self.headers.get("Host") not in self.server.hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, "not a name of this server")
        token, _, path = self.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "open the address that `dreamset review` has printed")
        return path

    def _get(self, path: str) -> tuple[str, bytes]:
        review = self.server.review
        if path in _PAGE:
            name = _PAGE[path]
            return _TYPES[name.rpartition(".")[2]], resources.files(__package__).joinpath(name).read_bytes()
        if path == "data":
            return "application/json", json.dumps(review.state(), ensure_ascii=False).encode()
        kind, _, number = path.partition("/")
        count = {"images": len(review.images), "shots": len(review.split.train)}.get(kind, 0)
        if not (number.isascii() and number.isdecimal() and int(number) < count):
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such picture")
        return "image/png", (review.image if kind == "images" else review.shot)(int(number))

    def _post(self, path: str) -> tuple[str, bytes]:
        # The secret is enough; that it leaks through a copied address must not be.
        if self.headers.get("Origin", f"http://{self.headers['Host']}") != f"http://{self.headers['Host']}":
            raise RefusedError(HTTPStatus.FORBIDDEN, "from another page")
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "decisions come as JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and int(length) <= _LONGEST):
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {_LONGEST} bytes, and say how many")
        body = self.rfile.read(int(length))
        if path == "done":
            self.ending = True
            return "application/json", b"{}"
        if path != "decide":
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")
        try:
            changes = json.loads(body)["changes"]
        except (ValueError, KeyError, TypeError):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "no changes in the request") from None
        return "application/json", json.dumps(self.server.review.decide(changes)).encode()


def serve(workspace: Workspace, recipe: str, port: int = 0, *, browser: bool = True) -> str:
    """Serve the page until Ctrl-C or its Done button; decisions are saved as they are made.

    Args:
        workspace: of the dataset.
        recipe: whose images are looked at.
        port: of 127.0.0.1; 0: one that is free.
        browser: open the page.

    Returns:
        A sentence on what was decided, and what comes next.

    Raises:
        InputError: as ``Review`` and ``Server``.
        StoppedError: the recipe is being reviewed already.
    """
    lock = locks.take(workspace.locks / f"review_{recipe}{locks.SUFFIX}")
    if lock is None:
        raise StoppedError(f"review {recipe}: is open already; go on there, or end it first.")
    try:
        review = Review(workspace, recipe)
        with Server(review, port) as server:
            print(f"review {recipe}: {server.url}  (Ctrl-C or Done ends it; decisions are saved at once)", flush=True)
            if browser:
                webbrowser.open(server.url)
            try:
                server.serve_forever(poll_interval=0.1)
            except KeyboardInterrupt as error:
                if type(error) is not KeyboardInterrupt:  # a SIGTERM goes on to the command line
                    raise
    finally:
        lock.release()
    looked = decisions.count(review.decided, review.images)
    start = f"review {recipe}: {looked.looked_at} of {len(review.images)} looked at, {looked.rejected} rejected"
    if not looked.looked_at:
        return f"{start}."
    return (
        f"{start}; in {review.file.relative_to(workspace.cell)}, to be committed. `dvc repro`, or `dreamset generate "
        f"{recipe}`, replaces what was rejected."
    )
