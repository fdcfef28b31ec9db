"""Workers of a Ray cluster: Ray places the pieces by GPUs and cores, and repeats those whose worker died.

The machines of the cluster have dreamset installed. They share the project's folder; or, with ``compute.store``, what
they need of it goes to object storage as a shard of its own, and what they make comes back from there.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import tempfile
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dreamset.compute.call import keep
from dreamset.core import device, locks, remote, shards
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import digest
from dreamset.core.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreamset.compute.call import Call
    from dreamset.params.sections import Compute

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_TRIES: Final = 3  # further tries of a piece whose worker died
_LOOK: Final = 0.5  # seconds between two looks for a newer run
_ANSWER: Final = 10  # seconds to wait for the head of a cluster
# What no machine needs of the project's folder.
_ASIDE: Final = (".dreamset", ".dvc", ".git", ".venv", "__pycache__", "mlruns")
_place: Path | None = None  # in a worker: where the project's folder is on this machine


def run(compute: Compute, root: Path, call: Call[Unit, Result], units: list[Unit], what: str) -> list[Result]:
    """Make pieces as tasks of the cluster; see ``dreamset.compute.run``.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
        StoppedError: a piece killed all its workers.
    """
    ray = _connected(compute, call.threads[0])
    sent = None if compute.store is None else (compute.store, _inputs(root))
    task = ray.remote(_make).options(max_retries=_TRIES, **_resources(ray, call.threads[0]))
    blob = ray.put(_pickled(call, root if sent else None))
    left, waiting, results = list(units), list[Any](), list[Result]()
    try:
        with bar(total=len(units), what=what, unit="piece") as progress:
            while left or waiting:
                while left and (compute.workers is None or len(waiting) < compute.workers):
                    waiting.append(task.remote(blob, _pickled(left.pop(0), root if sent else None), sent))
                ready, waiting = ray.wait(waiting, timeout=_LOOK)
                locks.boundary()
                for done in ready:
                    results.append(_result(ray, done, what))
                    progress.update()
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished, force=True)
    return results


def _make(blob: bytes, unit: bytes, sent: tuple[str, str] | None) -> tuple[Exception | None, Any]:
    """Make a piece in a worker.

    Args:
        blob: the call.
        unit: the piece.
        sent: URL and shard of the inputs, where the machines share no folder.
    """
    device.keep_memory()
    keep()
    try:
        if sent is not None:
            _unpack(*sent)
        return None, pickle.loads(blob)([pickle.loads(unit)])
    except (InputError, StoppedError, OSError) as error:
        return error, None


def _result(ray: Any, done: Any, what: str) -> Any:
    """Return the result of a task, or raise what ended it."""
    try:
        error, result = ray.get(done)
    except ray.exceptions.RayTaskError as failed:
        raise failed.cause from failed
    except ray.exceptions.RaySystemError:
        raise
    except ray.exceptions.RayError as died:
        raise StoppedError(
            f"{what}: a piece lost its worker {_TRIES + 1} times ({type(died).__name__}), perhaps for lack of memory; "
            "lower what one piece takes (models.*.memory, batch), or compute.workers. Finished pieces are kept."
        ) from died
    if error is not None:
        raise error
    return result


def _connected(compute: Compute, threads: int) -> Any:
    """Return Ray, connected to the cluster that is named, or to one that ends with this process."""
    # Nothing of a run leaves its machines; a task that was killed for memory is not tried for ever.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(_TRIES))
    address = compute.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None or address.startswith("127.0.0.1:"):
        # Ray's word for a cluster that listens to this machine alone, whatever the system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "compute.executor: ray is not installed; run `pip install -e '.[ray]'`, or set it to local."
        ) from error
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cores = (compute.workers or max(1, (os.cpu_count() or 1) // threads)) * threads
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        return ray
    _check(address)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:
        raise _no_cluster(address, error) from error
    return ray


def _check(address: str) -> None:
    """Refuse an address where nothing answers, for Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # auto
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InputError:
    said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return InputError(
        f"compute.ray_address: no Ray cluster answers at {address} ({said}); start one with `ray start --head`, "
        "correct the address (or RAY_ADDRESS), or set it to null."
    )


def _resources(ray: Any, threads: int) -> dict[str, float]:
    """Return what a task takes: a GPU where there are any, and a core for each thread, as far as a machine has them."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((machine.get("CPU", 0) for machine in machines), default=0)
    gpus = max((machine.get("GPU", 0) for machine in machines), default=0)
    return {"num_cpus": min(threads, most), "num_gpus": min(1, gpus)}


class _Pickler(pickle.Pickler):
    """Pickles paths in the project's folder as places in that folder on whatever machine reads them."""

    def __init__(self, file: io.BytesIO, root: Path | None) -> None:
        super().__init__(file)
        self.root = root

    def reducer_override(self, value: Any) -> Any:
        if self.root is not None and isinstance(value, PurePath) and value.is_relative_to(self.root):
            return _placed, (value.relative_to(self.root).as_posix(),)
        return NotImplemented


def _placed(path: str) -> Path:
    assert _place is not None
    return _place / path


def _pickled(value: Any, root: Path | None) -> bytes:
    file = io.BytesIO()
    _Pickler(file, root).dump(value)
    return file.getvalue()


def _inputs(root: Path) -> str:
    """Return the shard that holds the project's files, without finished work; it is made and sent where it is new."""
    store = root / ".dreamset/shards"
    files = sorted(_files(root))
    facts = [(path, (stat := (root / path).stat()).st_size, stat.st_mtime_ns) for path in files]
    key = digest({"inputs": facts})
    for _, claim in shards.claimed(store, [key], lambda key: [key]):
        with claim, shards.writing(store, key) as folder:
            for path in files:
                shards.link(root / path, folder / path)
    return key


def _files(root: Path) -> Iterator[str]:
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if name not in _ASIDE]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and path.suffix != ".db":
                yield path.relative_to(root).as_posix()


def _unpack(url: str, key: str) -> None:
    """Let the project's folder on this machine be the shard of the inputs, with the shards of this machine below."""
    global _place  # noqa: PLW0603
    store = Path(tempfile.gettempdir()) / f"dreamset-{os.getuid()}" / hashlib.sha256(url.encode()).hexdigest()[:16]
    remote.use(store, url)
    for _, claim in shards.claimed(store, [key], lambda key: [key]):
        with claim:
            raise StoppedError(
                f"compute.store: the inputs of this run are gone from {url}; run the same command again."
            )
    _place = store / key
    link = _place / ".dreamset/shards"
    link.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(store, target_is_directory=True)
