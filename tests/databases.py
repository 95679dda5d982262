"""Debian's PostgreSQL, for tests of what callbacks do to a real database."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam
from typing import Any

from servers.harness import end, find, free_port, require


@dataclass(frozen=True)
class PostgreSQL:
    """Where a PostgreSQL listens. The user may do everything, and needs no password."""

    port: int
    host: str = "127.0.0.1"
    user: str = "postgres"
    dbname: str = "postgres"

    def url(self, scheme: str = "postgresql") -> str:
        """A URL, for SQLAlchemy with the scheme ``"postgresql+psycopg"``."""
        return f"{scheme}://{self.user}@{self.host}:{self.port}/{self.dbname}"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of its own, from when it takes connections to the end of the block.

    Skips the test where it is not installed; in CI, fails it.
    """
    require([name for name in ("initdb", "postgres", "pg_isready") if not program(name)])
    with tempfile.TemporaryDirectory(prefix="wsgi_after-") as name:
        directory = Path(name)
        identity = user()
        if identity:
            os.chown(directory, identity["user"], identity["group"])
        initialise(directory, identity)
        port = free_port()
        with open(directory / "log", "wb") as log:
            process = start(directory, port, identity, log)
            try:
                wait_until_ready(process, port, directory / "log")
                yield PostgreSQL(port)
            finally:
                process.send_signal(signal.SIGINT)  # disconnects its clients; SIGTERM waits
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                end(process)


def program(name: str) -> str | None:
    """The path of one of PostgreSQL's programs: Debian keeps the server's off the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else find(name)


def user() -> dict[str, Any]:
    """Who is to run the server, as options of subprocess: it refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = getpwnam("postgres")
    except KeyError:
        entry = getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def initialise(directory: Path, identity: dict[str, Any]) -> None:
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(
        [str(program("initdb")), *options, f"--pgdata={directory / 'data'}"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        **identity,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def start(
    directory: Path, port: int, identity: dict[str, Any], log: Any
) -> subprocess.Popen[bytes]:
    # No Unix socket: Debian's would be in a directory of its own. No fsync: nothing is to survive.
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    return subprocess.Popen(
        [
            *(str(program("postgres")), "-D", str(directory / "data"), "-p", str(port)),
            *(argument for setting in settings for argument in ("-c", setting)),
        ],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **identity,
    )


def wait_until_ready(
    process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 30
) -> None:
    command = [str(program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + seconds
    while subprocess.run(command, timeout=30).returncode != 0:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"not ready:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
