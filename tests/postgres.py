"""A PostgreSQL of the tests' own, on a port of 127.0.0.1, its data in a folder that ends with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults import until

USER, PASSWORD, DATABASE = "tuner", "tests {only}", "postgres"


def _programs() -> Path | None:
    """Where initdb and postgres are; Debian keeps them out of PATH, in a folder per version."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    places = [*reversed(debian), *([Path(found).parent] if found else [])]
    return next((place for place in places if all((place / name).is_file() for name in ("initdb", "postgres"))), None)


def _account() -> str | None:
    """Another user than root, as whom the server refuses to run; None where this is no root."""
    if os.geteuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class Server:
    """A server that can be stopped and started again; ``url`` has a password in it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self.account = programs, folder, _account()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD + "\n")
        if self.account:
            for path in (folder, password):
                shutil.chown(path, self.account)
        options = ("-D", "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", "password", "-E", "UTF8", "--no-sync")
        subprocess.run(
            [programs / "initdb", *options, "--locale=C"],
            cwd=folder,
            user=self.account,
            check=True,
            capture_output=True,
            text=True,
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        quoted = PASSWORD.replace(" ", "%20").replace("{", "%7B").replace("}", "%7D")
        return f"postgresql+psycopg://{USER}:{quoted}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "port": self.port}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", "data", *(f"--{key}={value}" for key, value in settings.items())],
                cwd=self.folder,
                user=self.account,
                stdout=log,
                stderr=log,
            )
        until(self._answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # at once; nothing in it is wanted any more
            self.process.wait(30)
            self.process = None

    def _answers(self) -> bool:
        import psycopg

        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(
                host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=DATABASE, connect_timeout=5
            ).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running() -> Iterator[Server]:
    """A server with an empty database; the test is skipped, with the reason, where none can be had."""
    pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server here (initdb, postgres)")
    # Not under pytest's folders, which root keeps to itself.
    folder = Path(tempfile.mkdtemp(prefix="dreamset-postgres-"))
    try:
        try:
            server = Server(programs, folder)
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"no PostgreSQL can be made here: {getattr(error, 'stderr', None) or error}")
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
