"""Finished shards in object storage, for machines that share no folder.

A folder of shards may have a URL of fsspec beside it (``use``). A finished shard goes there as one file, since services
such as S3 and GCS replace a file whole or not at all. A shard that is missing in the folder is looked for there.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dreamset.core.addresses import without_password
from dreamset.core.errors import InputError, StoppedError
from dreamset.core.files import filling

if TYPE_CHECKING:
    from collections.abc import Iterator

_urls: dict[Path, str] = {}


def use(store: Path, url: str | None) -> None:
    """Let the shards of a folder be found at a URL of fsspec, too, and go there; None: at none.

    Raises:
        InputError: its protocol is unknown, or its package is not installed.
    """
    _urls.pop(store, None)
    if url is not None:
        _system(url)
        _urls[store] = url.rstrip("/")


def check(url: str) -> None:
    """Refuse a URL that no shard can go to.

    Raises:
        InputError: its protocol is unknown, or its package is not installed.
    """
    _system(url)


def used(store: Path) -> str | None:
    """Return the URL beside a folder of shards; None where there is none."""
    return _urls.get(store)


def urls() -> tuple[tuple[Path, str], ...]:
    """Return all folders of shards with a URL, and the URLs, for a worker to ``use``."""
    return tuple(_urls.items())


def pull(store: Path, key: str) -> None:
    """Load a shard that is missing in the folder, if it is in the storage; its content is for the caller to check.

    Raises:
        StoppedError: the storage does not answer, or refuses.
    """
    url = _urls.get(store)
    if url is None:
        return
    store.mkdir(parents=True, exist_ok=True)
    with filling(store), tempfile.TemporaryDirectory(prefix=f".{key[:16]}-", dir=store) as aside:
        packed, folder = Path(aside) / "shard.tar", Path(aside) / "shard"
        try:
            with _explained(url):
                _system(url).get_file(f"{url}/{key}.tar", str(packed))
        except FileNotFoundError:
            return
        try:
            with tarfile.open(packed) as tar:
                _unpack(tar, folder)
            folder.rename(store / key)
        except (OSError, tarfile.TarError):
            # Half of a file, which is no shard; or another process was first.
            shutil.rmtree(folder, ignore_errors=True)


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an archive below a folder; the filters of ``extractall`` came with Python 3.11.4.

    Raises:
        tarfile.TarError: the archive is not whole, or holds what is no shard's: a link, or a path that leads elsewhere.
    """
    for member in tar:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
            raise tarfile.ExtractError(f"{name} is no file of a shard")
        place = folder / name
        (place if member.isdir() else place.parent).mkdir(parents=True, exist_ok=True)
        if (source := tar.extractfile(member)) is not None:
            with place.open("wb") as target:
                shutil.copyfileobj(source, target)


def push(store: Path, key: str) -> None:
    """Send a finished shard to the storage.

    Raises:
        StoppedError: the storage does not answer, or refuses; the shard stays in the folder, and goes there later.
    """
    url = _urls.get(store)
    if url is None:
        return
    unsent = _unsent(store, key)
    unsent.touch()
    with filling(store), tempfile.TemporaryDirectory(prefix=f".{key[:16]}-", dir=store) as aside:
        packed = Path(aside) / "shard.tar"
        with tarfile.open(packed, "w", dereference=True) as tar:
            tar.add(store / key, arcname=".")
        with _explained(url):
            try:
                _system(url).put_file(str(packed), f"{url}/{key}.tar")
            except FileNotFoundError as error:  # the bucket
                raise OSError(f"no such place: {error}") from error
    unsent.unlink(missing_ok=True)


def push_unsent(store: Path, key: str) -> None:
    """Send a shard whose sending was interrupted."""
    if store in _urls and _unsent(store, key).exists():
        push(store, key)


def _unsent(store: Path, key: str) -> Path:
    return store / f".{key}.unsent"


def _system(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise InputError(
            f"compute.store: {protocol}:// needs a package that is not installed ({error}); run `pip install -e "
            "'.[s3]'` or '.[gs]'."
        ) from error
    except ValueError as error:
        raise InputError(f"compute.store: no file system has the protocol {protocol}; write s3:// or gs://.") from error


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # each service has errors of its own
        said = (str(error).splitlines() or [""])[0].rstrip(". ")
        raise StoppedError(
            f"compute.store: {without_password(url)} cannot be used ({type(error).__name__}: {said}); mend that, and "
            "run the same command again. Finished work stays in .dreamset/shards."
        ) from error
