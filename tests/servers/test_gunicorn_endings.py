"""What becomes of callbacks on gunicorn when their worker ends: the tables of docs/gunicorn.rst."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from .client import Connection
from .descriptions import gunicorn, package
from .harness import running, wait_until
from .tables import table

pytestmark = pytest.mark.servers

#: The request for ``/error`` gets an error page.
PATHS = ("response", "error")
APP = """
import os, time
import kinds
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    path = environ["PATH_INFO"][1:]

    def say(what):
        os.write(2, f"{path} {what} {os.getpid()}\\n".encode())

    def callback():
        say("begins")
        try:
            time.sleep(%r)
        except BaseException:
            say("is interrupted")
            raise
        say("finishes")

    environ["wsgi.after"].extend([callback, lambda: say("rest")])
    if path == "error":
        raise RuntimeError("on purpose")
    return kinds.list_with_length(environ, start_response)

application = kinds.beside_about(AfterResponseMiddleware(app))
"""
TWO = "--workers=2"  # one for each request
OURS = "--worker-class=wsgi_after.gunicorn."
#: By the columns of the page: gunicorn's own class, and ours.
CLASSES = {
    "sync, Sync": ((TWO,), (TWO, f"{OURS}Sync")),
    "gthread, GThread": (("--threads=4",), ("--threads=4", f"{OURS}GThread")),
    "gevent, Gevent": (("--worker-class=gevent",), (f"{OURS}Gevent",)),
}
GRACEFUL = "--graceful-timeout=1"
MAXIMUM = "--max-requests=1"
#: What ends a worker, in the order of the page: options, the signal to gunicorn, and how many
#: seconds the callback needs.
ENDS = {
    "timeout": (("--timeout=2",), None, 4),
    "max_requests": ((MAXIMUM,), None, 3),
    "HUP": ((), signal.SIGHUP, 3),
    "TERM": ((), signal.SIGTERM, 3),
    "TERM, past graceful_timeout": ((GRACEFUL,), signal.SIGTERM, 4),
    "max_requests, past graceful_timeout": ((MAXIMUM, GRACEFUL), None, 5),
    "… and timeout": ((MAXIMUM, GRACEFUL, "--timeout=2"), None, 9),
    "QUIT": ((), signal.SIGQUIT, 3),
}


def is_there(pid):
    """Whether a process runs. If its parent has ended, it may stay as a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def seen(end, options):
    """Send both requests at once, and end their workers.

    :return: by path, what became of the callback in progress, of the next one, and of the client.
    """
    more, sign, seconds = ENDS[end]
    start = gunicorn(*options, *more, app="other")

    def commands(where):
        where.write("other.py", APP % seconds)
        return start(where)

    def said(path, what):
        return re.search(rf"^{path} {what} (\d+)", where.log.read_text(), re.MULTILINE)

    def ask(path):
        with Connection(where.port) as client:
            client.request(f"/{path}", connection="close")
            client.read_response("GET", lambda: None)
            is_late = said(path, "finishes") or said(path, "is interrupted")
        return ("late" if is_late else "at once") if client.received else "none"

    def is_over(path):
        return said(path, "rest") or not is_there(said(path, "begins")[1])

    def outcome(path):
        ways = ("finishes", "is interrupted")
        return next((way for way in ways if said(path, way)), "is lost")

    described = package("gunicorn", commands, "gunicorn", "gevent")
    with running(described) as where, ThreadPoolExecutor() as pool:
        clients = {path: pool.submit(ask, path) for path in PATHS}
        wait_until(lambda: all(said(path, "begins") for path in PATHS), where.log)
        if sign is not None:
            os.kill(where.pid, sign)
        wait_until(lambda: all(map(is_over, PATHS)), where.log)
        got = {path: clients[path].result() for path in PATHS}
        return {path: (outcome(path), bool(said(path, "rest")), got[path]) for path in PATHS}


@pytest.mark.parametrize("end", ENDS)
def test_what_becomes_of_callbacks_and_clients_when_a_worker_ends(end):
    """The callbacks of each of our classes end like those in ``close()`` of gunicorn's own."""
    callbacks, clients = (table("gunicorn.rst", "What ends the worker", n) for n in (0, 1))
    assert [*callbacks] == [*clients] == [*ENDS]
    with ThreadPoolExecutor() as pool:
        pairs = {
            name: [pool.submit(seen, end, options) for options in pair]
            for name, pair in CLASSES.items()
        }
        found = {name: [future.result() for future in pair] for name, pair in pairs.items()}
    expected = {}
    for name in CLASSES:
        outcome, error_page = callbacks[end][name], clients[end][name.partition(",")[0]]
        ours = clients[end]["ours"]
        runs = outcome != "is lost"
        expected[name] = [
            {"response": (outcome, runs, "at once"), "error": (outcome, runs, error_page)},
            {"response": (outcome, runs, "at once"), "error": (outcome, runs, ours)},
        ]
    assert found == expected
