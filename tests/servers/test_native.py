"""gunicorn and waitress that set the key themselves: the patches of the page for a server."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import DOCS, blocks

from .descriptions import gunicorn, module, package
from .expectations import IN_HTTP_1_0, KINDS
from .harness import find, require, running
from .measure import ask_in_http_1_0, nobody_waits, received_bare, terminate

pytestmark = pytest.mark.servers
PAGE = blocks("for-a-server.rst")
WAIT = 10  # seconds to wait for what should take none

APP = """
from functools import partial
import kinds

def application(environ, start_response):
    after = environ["wsgi.after"]
    assert type(after) is list
    def register(fn, *args):
        after.append(partial(fn, *args))
    used = environ["PATH_INFO"].startswith("/wrapped/")
    return kinds.app({**environ, "wsgi.after": register if used else None}, start_response)
"""

COMMANDS = {
    "gunicorn sync": gunicorn(app="native"),
    "gunicorn gthread": gunicorn("--threads=4", app="native"),
    "gunicorn gevent": gunicorn("--worker-class=gevent", app="native"),
    "waitress": module("waitress", "--listen=127.0.0.1:{port}", "native:application"),
}


def patched(name):
    """A server from a patched copy, which Python finds before the installed one."""

    def commands(where):
        require([] if find("git") else ["git"])
        distribution = name.split()[0]
        found = importlib.util.find_spec(distribution)
        copy = where.directory / distribution
        shutil.copytree(Path(found.origin).parent, copy, ignore=shutil.ignore_patterns("__pyc*"))
        patch = where.write("patch", PAGE[f"{distribution}.patch"] + "\n")
        subprocess.check_call(["git", "apply", "-p1", patch], cwd=where.directory)
        where.write("native.py", APP)
        return COMMANDS[name](where)

    return package(name, commands, name.split()[0], *["gevent"] * name.endswith("gevent"))


@pytest.fixture(scope="module", params=COMMANDS)
def where(request):
    with running(patched(request.param)) as place:
        yield place


@pytest.mark.parametrize("kind", KINDS)
def test_no_client_waits_and_callbacks_run_once_in_the_requests_own_thread(where, kind):
    received = nobody_waits(where, kind)
    assert kind == "hang_up" or received == received_bare(where, kind)


@pytest.mark.parametrize("kind", IN_HTTP_1_0)
def test_a_response_in_http_1_0_ends_first(where, kind):
    assert ask_in_http_1_0(where, kind, WAIT).had == (False, True)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "waitress"])
def test_a_worker_of_gunicorn_that_ends_lets_a_callback_finish(name):
    with running(patched(name)) as place:
        assert terminate(place, "wrapped") == "finishes"


@pytest.mark.parametrize("name", ["gunicorn", "waitress"])
def test_the_page_says_how_many_lines_a_server_needs(name):
    added = re.findall(r"(?m)^\+(?!\+\+)", PAGE[f"{name}.patch"])
    assert f"{name} needs {len(added)} lines" in (DOCS / "for-a-server.rst").read_text()
