"""Rule 3, where servers fork or start a thread for each request; tests/servers has all others.

Each request of the app opens a session that belongs to its thread, and registers a callback that
closes it: in another thread, that would close nothing, and the next request would find it.
"""

from __future__ import annotations

import json

import pytest
from commands import serving
from servers.client import fetch
from servers.harness import wait_until

APP = """
import json, os, threading
from contextvars import ContextVar
from wsgi_after import AfterResponseMiddleware

local = threading.local()
user = ContextVar("user")

def place(environ):
    threads = 0 if environ["wsgi.multithread"] else threading.active_count()
    return os.getpid(), threading.get_ident(), threads

def close_session(kind, found, environ, began):
    with open("events", "a") as events:
        line = [kind, found, local.session, user.get(None), place(environ) == began]
        events.write(json.dumps(line) + "\\n")
    del local.session

def app(environ, start_response):
    kind = environ["PATH_INFO"][1:]
    found = getattr(local, "session", None)
    local.session = kind
    user.set(kind)
    environ["wsgi.after"](close_session, kind, found, environ, place(environ))
    if kind == "raises":
        raise ValueError("on purpose")
    start_response("500 Oops" if kind == "error" else "200 OK", [])
    return stream(kind) if kind in ("stream", "breaks") else [b"chunk"]

def stream(kind):
    yield b"chunk"
    if kind == "breaks":
        raise ValueError("on purpose")

application = AfterResponseMiddleware(app)
"""
KINDS = ["list", "raises", "stream", "error", "breaks", "list"]

SERVE = """
import sys
from socketserver import ForkingMixIn, ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from werkzeug.serving import run_simple
from own import application

class Forking(ForkingMixIn, WSGIServer):
    pass

class Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True

name, port = sys.argv[1], int(sys.argv[2])
if name == "werkzeug":
    run_simple("127.0.0.1", port, application, processes=2)
else:
    make_server("127.0.0.1", port, application, globals()[name]).serve_forever()
"""


@pytest.mark.servers
@pytest.mark.parametrize("name", ["Forking", "Threading", "werkzeug"])
def test_a_session_of_the_thread_is_closed_before_the_next_request(name, tmp_path):
    (tmp_path / "own.py").write_text(APP)
    (tmp_path / "serve.py").write_text(SERVE)
    events = tmp_path / "events"
    events.touch()
    with serving(f"python serve.py {name} 8000", tmp_path) as port:
        for number, kind in enumerate(KINDS, 1):
            fetch(port, f"/{kind}")
            wait_until(lambda n=number: events.read_text().count("\n") == n, tmp_path / "log")
    found = [json.loads(line) for line in events.read_text().splitlines()]
    assert found == [[kind, None, kind, kind, True] for kind in KINDS]
