"""The server behind ``dreamset review``: it answers this machine alone, and only the browser that has its address.

Any page in a person's browser can send requests to 127.0.0.1, and any host name can be made to point there. So the
address holds a secret that only the printed link contains. The Host header must name this server, and a decision must
come from the server's own page. Requests name pictures by number, so no path is ever taken from a request.
"""

from __future__ import annotations

import functools
import hmac
import io
import secrets
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from dreamset.core import locks
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.files import sha256
from dreamset.data import decisions, packed
from dreamset.data.splits import read_split
from dreamset.data.synthetic import read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from dreamset.core.workspace import Workspace
    from dreamset.data.decisions import Decision
    from dreamset.data.splits import Sample, Split
    from dreamset.data.synthetic import SyntheticImage

_HEADERS: Final = {
    # Shots can be private: the browser keeps nothing and asks nobody else for anything.
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MAX_BODY: Final = 2**22  # bytes of a request; a page of decisions needs a thousandth of it
_SHOT_SIDE: Final = 512  # pixels of a shot on the page
_CHANGED: Final = "the dataset has changed; start `dreamset review` again"
_LETTERS: Final[dict[Decision | None, str]] = {None: ".", "kept": "k", "rejected": "r"}


class Review:
    """The images of a recipe, its shots, and a person's decisions; safe for several threads.

    Args:
        workspace: where the dataset and the decisions are.
        recipe: whose dataset.

    Raises:
        InputError: the dataset is missing or has other classes, or its decisions cannot be read.
    """

    def __init__(self, workspace: Workspace, recipe: str) -> None:
        self.recipe, self.folder, self.cell = recipe, workspace.synthetic(recipe), workspace.cell
        self.file, self._read = workspace.review(recipe), packed.reader(workspace.synthetic(recipe))
        self.split: Split = read_split(workspace.splits)
        # A rejected image takes its copies with it, so that nobody has to look at these.
        drawn = [image for image in read_metadata(self.folder) if image.copy_of is None]
        self.images: Sequence[SyntheticImage] = sorted(drawn, key=lambda image: (image.label, image.index))
        for image in self.images:
            if not 0 <= image.label < len(self.split.classes) or self.split.classes[image.label] != image.class_name:
                raise InputError(
                    f"{self.folder}: holds class {image.class_name!r}, unlike the splits; run `dreamset generate "
                    f"{recipe}` again."
                )
        self.decided = decisions.read(self.file)
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """Return the data that the page starts from.

        Images are numbered across all classes; ``states`` has one letter per image.
        """
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
            "states": "".join(_LETTERS[self.decided.get(decisions.picture(image))] for image in self.images),
        }

    def decide(self, changes: object) -> dict[str, int]:
        """Apply changes to the decisions and write the file at once.

        Args:
            changes: a list of ``[number, "kept" | "rejected" | null]``.

        Returns:
            How many images of the dataset a person has looked at, and how many of them are rejected.

        Raises:
            HTTPException: one of the changes is malformed; none of them is applied.
        """
        if not isinstance(changes, list):
            raise HTTPException(400, "changes is not a list")
        wanted: dict[decisions.Picture, Decision | None] = {}
        named: dict[object, Decision | None] = {None: None, "kept": "kept", "rejected": "rejected"}
        for change in changes:
            match change:
                case [int(number), None | "kept" | "rejected" as decision] if 0 <= number < len(self.images):
                    wanted[decisions.picture(self.images[number])] = named[decision]
                case _:
                    raise HTTPException(400, f"not a decision: {change!r}")
        with self._lock:
            merged = self.decided | wanted
            decided = {key: decision for key, decision in merged.items() if decision is not None}
            decisions.write(self.file, self.recipe, decided)
            self.decided = decided
            looked = decisions.count(decided, self.images)
        return {"looked_at": looked.looked_at, "rejected": looked.rejected}

    def image(self, number: int) -> bytes:
        """Return the file of an image.

        Raises:
            HTTPException: the file has gone or has changed, as after `dreamset generate`.
        """
        image = self.images[number]
        if not (self.folder / image.file_name).resolve().is_relative_to(self.folder.resolve()):
            raise HTTPException(403, "outside the dataset")
        try:
            return self._read(image.file_name, image.sha256)
        except (InputError, OSError) as error:
            raise HTTPException(410, _CHANGED) from error

    @functools.lru_cache(maxsize=256)  # noqa: B019  one object in a process
    def shot(self, number: int) -> bytes:
        """Return a shot as PNG, whatever its file is: upright, RGB, at most 512 pixels a side.

        Raises:
            HTTPException: as for ``image``.
        """
        from PIL import Image

        from dreamset.core.images import rgb

        sample: Sample = self.split.train[number]
        path = self.cell / sample.path  # a person's own file may lie anywhere
        data = path.read_bytes() if path.is_file() else b""
        if sha256(data) != sample.sha256:
            raise HTTPException(410, _CHANGED)
        picture = rgb(data)
        picture.thumbnail((_SHOT_SIDE, _SHOT_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


class Server(uvicorn.Server):
    """Serve the page of a review at ``url``, from ``run`` until Done, a signal, or ``should_exit``.

    Args:
        review: the images and their decisions.
        port: of 127.0.0.1; 0 takes a free one.

    Raises:
        InputError: the port is taken, or needs more rights.
    """

    def __init__(self, review: Review, port: int = 0) -> None:
        try:
            self.socket = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error.strerror}); name another or none.") from error
        self.review, self.port, self.token = review, self.socket.getsockname()[1], secrets.token_urlsafe(24)
        self.url = f"http://127.0.0.1:{self.port}/{self.token}/"
        self._answers = _answers(review)
        routes = [
            Route("/decide", self._decide, methods=["POST"]),
            Route("/done", self._done, methods=["POST"]),
            Route("/{path:path}", self._get),
        ]
        app = Starlette(
            routes=[Mount(f"/{self.token}", routes=routes)],
            exception_handlers={
                DiskFullError: lambda _, error: PlainTextResponse(str(error), 507),
                OSError: lambda _, error: PlainTextResponse(_unwritable(review, error), 500),
            },
            max_body_size=_MAX_BODY,
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            await (self._refusal(Request(scope)) or app)(scope, receive, send)

        # uvicorn would take another parser where one is installed, and answer broken requests differently there.
        parts: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_level": "error"}
        super().__init__(uvicorn.Config(guarded, headers=list(_HEADERS.items()), timeout_graceful_shutdown=5, **parts))

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that is not of this server's own page; None where it is."""
        host, token = request.headers.get("host"), request.scope["path"].removeprefix("/").partition("/")[0]
        if host not in {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}:
            return PlainTextResponse("not a name of this server", 403)
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return PlainTextResponse("open the address that `dreamset review` has printed", 403)
        if request.method == "POST":
            # The secret should be enough, but a copied address gives it away.
            if request.headers.get("origin", f"http://{host}") != f"http://{host}":
                return PlainTextResponse("from another page", 403)
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return PlainTextResponse("decisions come as JSON", 415)
        return None

    def _get(self, request: Request) -> Response:
        if (answer := self._answers.get(request.path_params["path"])) is None:
            raise HTTPException(404, "no such picture")
        return answer()

    async def _decide(self, request: Request) -> Response:
        try:
            changes = (await request.json())["changes"]
        except (ValueError, KeyError, TypeError, RecursionError, ClientDisconnect):
            raise HTTPException(400, "no changes in the request") from None
        return JSONResponse(await run_in_threadpool(self.review.decide, changes))

    async def _done(self, _: Request) -> Response:
        self.should_exit = True
        return JSONResponse({})


def _answers(review: Review) -> dict[str, Callable[[], Response]]:
    """Return what every path behind the secret answers; there are no other paths."""
    pages = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
    shots = range(len(review.split.train))
    return {
        **{path: functools.partial(FileResponse, Path(__file__).with_name(name)) for path, name in pages.items()},
        "data": lambda: JSONResponse(review.state()),
        **{f"images/{number}": functools.partial(_png, review.image, number) for number in range(len(review.images))},
        **{f"shots/{number}": functools.partial(_png, review.shot, number) for number in shots},
    }


def _png(read: Callable[[int], bytes], number: int) -> Response:
    return Response(read(number), media_type="image/png")


def _unwritable(review: Review, error: Exception) -> str:
    """The sentence for a decision that cannot be saved."""
    reason = getattr(error, "strerror", None) or error
    return f"{review.file}: cannot be written ({reason}); mend that, and decide again."


def serve(workspace: Workspace, recipe: str, port: int = 0, *, browser: bool = True) -> str:
    """Serve the page until Ctrl-C or its Done button; each decision is saved at once.

    Args:
        workspace: where the dataset is.
        recipe: whose images the person reviews.
        port: of 127.0.0.1; 0 takes a free one.
        browser: whether to open the page.

    Returns:
        A sentence that counts the decisions and names the next step.

    Raises:
        InputError: as ``Review`` and ``Server``.
        StoppedError: another review of the recipe is open.
    """
    lock = locks.take(workspace.locks / f"review_{recipe}{locks.SUFFIX}")
    if lock is None:
        raise StoppedError(f"review {recipe}: is open already; go on there, or end it first.")
    try:
        review = Review(workspace, recipe)
        server = Server(review, port)
        print(f"review {recipe}: {server.url}  (Ctrl-C or Done ends it; decisions are saved at once)", flush=True)
        if browser:
            webbrowser.open(server.url)
        try:
            server.run([server.socket])
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
        f"{recipe}`, replaces the rejected images."
    )
