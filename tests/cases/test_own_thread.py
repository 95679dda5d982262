"""Rule 3: callbacks run in the thread, or greenlet, and in the context of their own request.

Each request of the app opens a session that belongs to its thread, and registers a callback that
closes it: in another thread, that would close nothing, and the next request would find it.
"""

from __future__ import annotations

import json
import socket
from contextlib import closing
from importlib.util import find_spec

import pytest
from commands import serving
from servers.harness import require, wait_until

APP = """
import json, os, sys, threading
from contextvars import ContextVar
from wsgi_after import AfterResponseMiddleware

local = threading.local()
user = ContextVar("user")

def place():
    greenlet = sys.modules.get("greenlet")
    return os.getpid(), threading.get_ident(), greenlet and id(greenlet.getcurrent())

def close_session(kind, found, began, threads):
    started = set(threading.enumerate()) - threads
    with open("events", "a") as events:
        line = [kind, found, local.session, user.get(None), place() == began, len(started)]
        events.write(json.dumps(line) + "\\n")
    del local.session

def app(environ, start_response):
    kind = environ["PATH_INFO"][1:]
    found = getattr(local, "session", None)
    local.session = kind
    user.set(kind)
    threads = set() if environ["wsgi.multithread"] else set(threading.enumerate())
    environ["wsgi.after"](close_session, kind, found, place(), threads or ANY)
    if kind == "raises":
        raise ValueError("on purpose")
    status, headers, body = KINDS[kind]
    write = start_response(status, headers)
    if kind == "written":
        write(b"chunk")
    return body()

def stream():
    yield b"chunk"
    yield b"chunk"

def breaks():
    yield b"chunk"
    raise ValueError("on purpose")

class Any:
    def __rsub__(self, threads):
        return ()

ANY = Any()
OK, SIZED = "200 OK", [("Content-Length", "5")]
KINDS = {
    "sized": (OK, SIZED, lambda: [b"chunk"]),
    "head": (OK, SIZED, lambda: [b"chunk"]),
    "written": (OK, SIZED, lambda: []),
    "stream": (OK, [], stream),
    "http10": (OK, [], stream),
    "empty": (OK, [], lambda: []),
    "breaks": (OK, [], breaks),
    "redirect": ("302 Found", [("Location", "/"), ("Content-Length", "0")], lambda: []),
    "unchanged": ("304 Not Modified", [], lambda: []),
    "error": ("500 Internal Server Error", SIZED, lambda: [b"sorry"]),
}

application = AfterResponseMiddleware(app)
"""
KINDS = ["sized", "raises", "stream", "head", "http10", "breaks", "redirect", "unchanged", "error"]
KINDS += ["written", "empty", "raises", "sized"]

SOCKETSERVER = """
import sys
from socketserver import ForkingMixIn, ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from own import application

class Plain:
    pass

class Server({mixin}, WSGIServer):
    daemon_threads = True

make_server("127.0.0.1", int(sys.argv[1]), application, Server).serve_forever()
"""
WERKZEUG = """
import sys
from werkzeug.serving import run_simple
from own import application

run_simple("127.0.0.1", int(sys.argv[1]), application, {option})
"""

#: By the module that it needs and what it is: the command, and a script that it runs.
SERVERS = {
    "wsgiref": ("python serve.py 8000", SOCKETSERVER.format(mixin="Plain")),
    "wsgiref, a thread for each": (
        "python serve.py 8000",
        SOCKETSERVER.format(mixin="ThreadingMixIn"),
    ),
    "wsgiref, a process for each": (
        "python serve.py 8000",
        SOCKETSERVER.format(mixin="ForkingMixIn"),
    ),
    "werkzeug, a process for each": ("python serve.py 8000", WERKZEUG.format(option="processes=2")),
    "werkzeug, a thread for each": (
        "python serve.py 8000",
        WERKZEUG.format(option="threaded=True"),
    ),
    "gunicorn, sync": ("gunicorn -b 127.0.0.1:8000 own", ""),
    "gunicorn, gthread": ("gunicorn -b 127.0.0.1:8000 --threads 2 own", ""),
    "gunicorn, gevent": ("gunicorn -b 127.0.0.1:8000 -k gevent own", ""),
    "waitress": ("python -m waitress --listen=127.0.0.1:8000 own:application", ""),
    "cheroot": ("python -m cheroot --bind 127.0.0.1:8000 own:application", ""),
    "uwsgi": ("uwsgi --master --die-on-term --http-socket 127.0.0.1:8000 -w own", ""),
}


def ask(port, kind):
    """Send a request, and read to the end of its connection."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
        method = "HEAD" if kind == "head" else "GET"
        version = "1.0" if kind == "http10" else "1.1"
        head = f"{method} /{kind} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())
        while client.recv(4096):
            pass


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
def test_a_session_of_the_thread_is_closed_before_the_next_request(name, tmp_path):
    command, script = SERVERS[name]
    require([] if find_spec(module := name.partition(",")[0]) or module == "uwsgi" else [module])
    (tmp_path / "own.py").write_text(APP)
    (tmp_path / "serve.py").write_text(script)
    events = tmp_path / "events"
    events.touch()
    with serving(command, tmp_path) as port:
        for number, kind in enumerate(KINDS, 1):
            ask(port, kind)
            wait_until(lambda n=number: events.read_text().count("\n") == n, tmp_path / "log")
    found = [json.loads(line) for line in events.read_text().splitlines()]
    assert found == [[kind, None, kind, kind, True, 0] for kind in KINDS]
