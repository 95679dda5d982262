"""Run the commands that the documentation shows, and ask the servers that these start."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from servers.harness import end, find, free_port, listens, require, start, wait_until

import wsgi_after

PACKAGE_PARENT = Path(wsgi_after.__file__).parents[1]  # of a checkout, or of an installation
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def environment(**extra: Any) -> dict[str, str]:
    """The environment of a terminal in which this Python's virtual environment is active."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "PYTHONPATH": str(PACKAGE_PARENT),
        "PYTHONUNBUFFERED": "1",
        "VIRTUAL_ENV": sys.prefix,
        **{name: str(value) for name, value in extra.items()},
    }


def run(command: str, directory: Path, **extra: Any) -> str:
    """Run a command to its end; return what it printed. Fails if the command does.

    :param extra: variables of its environment.
    """
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(find(program)), *arguments],
        cwd=directory,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


#: Marks a test that installs the package, with what it needs from the package index.
installs = pytest.mark.skipif(
    "CI" not in os.environ or not (ROOT / "wsgi_after").is_dir(),
    reason="it installs from the package index, and the package beside its tests: only in CI",
)


def copied_checkout(directory: Path) -> Path:
    """A copy of the checkout, in which something can be installed."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT, directory / "checkout", ignore=left_out)


def paste(command: str, directory: Path) -> str:
    """Run a line in a shell without an active virtual environment; return what it printed."""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.check_output(
        command, shell=True, cwd=directory, env={**without, "PATH": path}, text=True
    )


def masked(output: str) -> str:
    """What the command of the package printed, without its milliseconds."""
    return re.sub(r"(?m)^ +\d+\.\d(?=  \w)", " #", output)


@contextmanager
def serving(command: str, directory: Path, port: int | None = None, **extra: Any) -> Iterator[int]:
    """Run a server with this command, but on a free port. It is ready when the block begins.

    Its output goes to the file ``log``.

    :param port: a free port, if the command does not name it as 8000.
    :param extra: variables of its environment.
    """
    program, *arguments = shlex.split(command)
    found = find(program)
    require([] if found else [program])
    port = port or free_port()
    started = [str(found), *(argument.replace("8000", str(port)) for argument in arguments)]
    with (directory / "log").open("wb") as log:
        process = start(started, directory, log, env=environment(**extra))
    try:
        wait_until(lambda: listens(port), directory / "log", process)
        yield port
    finally:
        end(process)


def ask(port: int, path: str, body: str | None = None) -> tuple[int, str]:
    """GET, or POST the body as a form; return the status and the text of the response."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST" if body else "GET", path, body, FORM)
        response = client.getresponse()
        return response.status, response.read().decode()


def ask_json(port: int, path: str) -> Any:
    """GET, and return the decoded JSON of the response."""
    return json.loads(ask(port, path)[1])


def ask_all(port: int, paths: Sequence[str], clients: int = 4) -> set[tuple[int, str]]:
    """GET all paths with ``clients`` clients at once, each on one connection.

    :return: status and text of the responses, without duplicates.
    """

    def answers(paths: Sequence[str]) -> set[tuple[int, str]]:
        found = set()
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
            for path in paths:
                client.request("GET", path)
                response = client.getresponse()
                found.add((response.status, response.read().decode()))
        return found

    with ThreadPoolExecutor(clients) as pool:
        each = [paths[number::clients] for number in range(clients)]
        return set().union(*pool.map(answers, each))
