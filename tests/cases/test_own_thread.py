"""Rule 3: in which thread, and in which context, callbacks run.

First with servers that fork or start a thread for each request; tests/servers has all others. Each
request of the app opens a session that belongs to its thread, and registers a callback that closes
it. In another thread, the callback would close nothing, and the next request would find the
session.
"""

from __future__ import annotations

import io
import json
import threading
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from wsgiref.util import FileWrapper

import pytest
from commands import serving
from conftest import Exchange, make_environ
from servers.client import fetch
from servers.harness import wait_until

from wsgi_after import AfterResponseMiddleware

APP = """
import json, os, threading
from contextvars import ContextVar
from wsgi_after import AfterResponseMiddleware

local = threading.local()
user = ContextVar("user")

def place(environ):
    # A server may say that it has no threads, and start one for each request all the same.
    names = [thread.name for thread in threading.enumerate() if "request" not in thread.name]
    return os.getpid(), threading.get_ident(), 0 if environ["wsgi.multithread"] else names

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


# Without a server: the test calls close()

#: By what the app does: the status, and the body.
RESPONSES = {
    "list": ("200 OK", lambda environ: [b"chunk"]),
    "generator": ("200 OK", lambda environ: (chunk for chunk in [b"chunk"])),
    "file": ("200 OK", lambda environ: environ["wsgi.file_wrapper"](io.BytesIO())),
    "error page": ("500 Internal Server Error", lambda environ: [b"sorry"]),
    "no iterable": ("200 OK", lambda environ: None),
    "raises": ("200 OK", lambda environ: 1 / 0),
}
user = ContextVar("user", default="nobody")


@pytest.mark.parametrize("kind", RESPONSES)
def test_callbacks_run_in_the_thread_that_closes_and_in_its_context_not_in_a_copy(kind, events):
    """If there is nothing to close, they run in the thread that calls the app."""

    def note(what):
        events.append((what, threading.get_ident(), user.get()))
        user.set(what)

    def app(environ, start_response):
        status, body = RESPONSES[kind]
        environ["wsgi.after"](note, "callback")
        start_response(status, [])
        return body(environ)

    def end():
        user.set("who closes")
        with suppress(ZeroDivisionError):
            ends()
        note("closed")

    environ = make_environ(**{"wsgi.file_wrapper": FileWrapper, "SERVER_PROTOCOL": "HTTP/1.0"})
    ends = partial(Exchange, AfterResponseMiddleware(app), environ)
    if kind not in {"no iterable", "raises"}:
        ends = ends().result.close
    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert events == [
        ("callback", thread.ident, "who closes"),
        ("closed", thread.ident, "callback"),
    ]
