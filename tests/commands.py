"""Run the commands that the documentation shows, and ask the servers that they start."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

from servers.harness import end, find, free_port, require

import wsgi_after

PACKAGE_PARENT = Path(wsgi_after.__file__).parents[1]  # of a checkout, or of an installation
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def environment(**extra: Any) -> dict[str, str]:
    """That of a terminal in which the virtual environment of this Python is active."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "PYTHONPATH": str(PACKAGE_PARENT),
        "PYTHONUNBUFFERED": "1",
        "VIRTUAL_ENV": sys.prefix,
        **{name: str(value) for name, value in extra.items()},
    }


@contextmanager
def serving(command: str, directory: Path, port: int | None = None, **extra: Any) -> Iterator[int]:
    """Run a server by this command, but on a free port, from its readiness to its end.

    :param port: the port, if it is not 8000 in the command that says which; a free one.
    :param extra: variables of its environment. What it prints goes to a file ``log``.
    """
    program, *arguments = shlex.split(command)
    found = find(program)
    require([] if found else [program])
    port = port or free_port()
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [str(found), *(argument.replace("8000", str(port)) for argument in arguments)],
            cwd=directory,
            env=environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(port, process), directory / "log")
        yield port
    finally:
        end(process)


def wait_until(condition: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    """Return when the condition holds; fail, with the end of the log, if that takes too long."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, log.read_text()[-4000:]
        Event().wait(0.05)


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the server has ended"
    with suppress(OSError), closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.connect()
        return True
    return False


def ask(port: int, path: str, body: str | None = None) -> tuple[int, str]:
    """GET, or POST the body as that of a form; status and text of the response."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST" if body else "GET", path, body, FORM)
        response = client.getresponse()
        return response.status, response.read().decode()
