"""Debian's PostgreSQL, for tests of what callbacks do to a real database."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam
from typing import Any

from servers.harness import end, find, free_port, require, start, wait_until


@dataclass(frozen=True)
class PostgreSQL:
    """The address of a PostgreSQL. The user may do everything, and needs no password."""

    port: int
    host: str = "127.0.0.1"
    user: str = "postgres"
    dbname: str = "postgres"

    def url(self, scheme: str = "postgresql") -> str:
        """A URL. SQLAlchemy needs the scheme ``"postgresql+psycopg"``."""
        return f"{scheme}://{self.user}@{self.host}:{self.port}/{self.dbname}"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run a new PostgreSQL. It takes connections when the block begins, and ends with the block.

    If PostgreSQL is not installed, skip the test; in CI, fail it.
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
            process = start(command(directory, port), directory, log, **identity)
            try:
                wait_until(lambda: takes_connections(port), directory / "log", process, seconds=30)
                yield PostgreSQL(port)
            finally:
                process.send_signal(signal.SIGINT)  # disconnects its clients; SIGTERM waits
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                end(process)


def program(name: str) -> str | None:
    """The path of a program of PostgreSQL: Debian keeps those of the server off ``PATH``."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else find(name)


def user() -> dict[str, Any]:
    """The user to run the server as, as options of subprocess: it refuses to run as root."""
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


def command(directory: Path, port: int) -> list[str]:
    # No Unix socket: Debian's would be in a directory of its own. No fsync: no data must survive.
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    return [
        *(str(program("postgres")), "-D", str(directory / "data"), "-p", str(port)),
        *(argument for setting in settings for argument in ("-c", setting)),
    ]


def takes_connections(port: int) -> bool:
    asked = [str(program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(asked, timeout=30).returncode == 0
