"""Start a server, wait until it is ready, end it.

A description (:mod:`tests.servers.descriptions`) says what to start. Everything a server needs lies
in a directory that every user may read, because Apache's workers run as another user.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import SystemRandom
from typing import IO, Any

import pytest

import wsgi_after

from .client import Connection
from .control import Control, Watch

APPS = Path(__file__).with_name("apps")
SIZES = {"small_file": 10_000, "large_file": 20_000_000}  # bytes


@dataclass(frozen=True)
class Server:
    """How to start one server.

    :param name: as the documentation calls it.
    :param commands: the processes to start, given where and on which port. Clients talk to the last
        one; the first one runs Python.
    :param modules: the modules without which it cannot start.
    :param programs: the programs without which it cannot start, by name or whole path.
    :param version: one line that names what was measured.
    :param places: how many threads, in all processes, must have served before a test begins.
    :param killed: whether to end it with SIGKILL, because it is slow to end otherwise.
    """

    name: str
    commands: Callable[[Place], list[Sequence[str | Path]]]
    version: Callable[[], str]
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    places: int = 0
    killed: bool = False

    def missing(self) -> list[str]:
        """The modules and programs that are not installed."""
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return modules + [name for name in self.programs if not find(name)]


@dataclass
class Place:
    """Where one server runs."""

    directory: Path
    port: int = field(default_factory=lambda: free_port())
    pid: int = 0  # of the process that runs Python, or of its parent
    log: Path = Path()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def write(self, name: str, text: str) -> Path:
        """Write a file, such as a configuration, for the server to read."""
        path = self.directory / name
        path.write_text(text)
        return path

    def about(self, mode: str = "bare", query: str = "") -> dict[str, Any]:
        """What the app knows about the server that it runs on; this also collects garbage."""
        with Connection(self.port) as connection:
            connection.request(f"/{mode}/about?{query}", connection="close")
            connection.read_response("GET", lambda: None)
        found: dict[str, Any] = json.loads(connection.received.partition(b"\r\n\r\n")[2])
        return found


def find(program: str) -> str | None:
    """The path of a program: beside this Python, or installed for everybody."""
    if "/" in program:
        return program if Path(program).exists() else None
    path = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
    return shutil.which(program, path=os.pathsep.join(path))


def free_port() -> int:
    """A port below those that Linux gives to clients, so that no connection takes it meanwhile."""
    while True:
        port = SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def require(missing: Sequence[str]) -> None:
    """Skip the test if something is not installed; where CI is set, fail."""
    if missing:
        message = f"not installed: {', '.join(missing)}; see .ci/install-servers"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def prepared() -> Iterator[Place]:
    """A directory with the app, the package and the files to send, for every user to read."""
    with tempfile.TemporaryDirectory(prefix="wsgi_after-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        # Not the whole of site-packages: mod_wsgi runs on another Python.
        copied = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(wsgi_after.__file__).parent, directory / "wsgi_after", ignore=copied)
        shutil.copytree(APPS, directory, ignore=copied, dirs_exist_ok=True)
        for kind, size in SIZES.items():
            # No two blocks are alike, so one that is lost or sent twice shows.
            line = b"%015d\n"
            content = b"".join(line % number for number in range(size // 16 + 1))
            (directory / f"{kind}.bin").write_bytes(content[:size])
        yield Place(directory)


@contextmanager
def running(server: Server, before: Sequence[str] = ()) -> Iterator[Place]:
    """Run ``server`` until the end of the block, which begins when the server answers.

    If something is not installed, skip the test; where CI is set, fail it.

    :param before: what to put before the first command, such as ``strace``.
    """
    require(server.missing())
    with prepared() as where:
        where.log = where.directory / "log"
        environment = {**os.environ, "PYTHONPATH": str(where.directory), "PYTHONUNBUFFERED": "1"}
        with where.log.open("wb") as log:
            try:
                for number, command in enumerate(server.commands(where)):
                    prefix = () if number else before
                    command = [*prefix, *map(str, command)]
                    where.processes.append(start(command, where.directory, log, env=environment))
                wait_until(lambda: answers(where), where.log, *where.processes, seconds=30)
                where.pid = where.processes[0].pid
                if server.places:
                    warm(where, server.places)
                yield where
            finally:
                for process in where.processes:
                    if server.killed:
                        process.kill()
                    end(process)


def start(
    command: Sequence[str], directory: Path, log: IO[bytes], **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process that prints into ``log``; call :func:`end` when you are done.

    :param options: other options of :class:`subprocess.Popen`, such as ``env``.
    """
    return subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # a group of its own, to end its workers too
        **options,
    )


def wait_until(
    condition: Callable[[], object],
    log: Path,
    *processes: subprocess.Popen[bytes],
    seconds: float = 120,
) -> None:
    """Return when the condition holds.

    Fails, with the end of the log, if that takes too long, or if one of the processes ends.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        over = time.monotonic() > deadline or any(p.poll() is not None for p in processes)
        assert not over, log.read_text(errors="replace")[-4000:]
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether this port accepts connections."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30):
        return True
    return False


def answers(where: Place) -> bool:
    with suppress(OSError, ValueError):
        where.about()
        return True
    return False


def warm(where: Place, places: int) -> None:
    """Return when so many threads of the server have each ended a request."""
    found = set()

    def visit(number: int) -> str:
        return str(where.about(query="meet")["place"])

    def all_found() -> bool:
        found.update(pool.map(visit, range(2 * places)))
        return len(found) == places

    with ThreadPoolExecutor(2 * places) as pool:
        wait_until(all_found, where.log, *where.processes)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of the group after 5 seconds."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


@cache
def control() -> Control:
    """The one control of this process."""
    return Control()


def send(where: Place, path: str, *, connection: str = "close", patience: float = 10) -> Watch:
    """Send a request, and read its response; its slow callback waits for ``watch.end``."""
    watch = control().watch(patience)
    with Connection(where.port) as client:
        client.request(f"/{path}?{watch.query}", connection=connection)
        client.read_response("GET", watch.headers.set)
    return watch
