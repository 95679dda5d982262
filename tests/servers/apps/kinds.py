"""The app that every server serves, as it is and in the middleware.

``/bare/KIND`` is the app itself, ``/wrapped/KIND`` the app in the middleware, and ``/pool/KIND``
the same with a pool as its executor. The bodies of ``/closed/KIND`` record where the server closes
them.

Each kind of response is a function below. Callbacks, and bodies that wait for the client, tell the
harness what happens and where, through :func:`say`. The query string names the harness's port and
the request. This module imports only the standard library and ``wsgi_after``, because mod_wsgi runs
it on the system's Python.
"""

import gc
import io
import json
import os
import platform
import socket
import sys
import threading
import time
from contextvars import ContextVar
from types import GeneratorType
from urllib.parse import parse_qs

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

# Responses that nobody closes stay until about() collects them, not until some later allocation.
gc.disable()

CONTEXT = ContextVar("CONTEXT", default="nothing")
LOCAL = threading.local()  # its "request" is set by the app, and cleared by a callback
not_cleared = []  # ids of requests whose "request" another request found


def place():
    """Where this runs: the thread twice, the greenlet, and what a context variable holds there."""
    greenlet = sys.modules.get("greenlet")
    current = greenlet and id(greenlet.getcurrent())
    return [threading.get_ident(), threading.get_native_id(), current, CONTEXT.get()]


def plain(length=None):
    """A list of headers for each response: wsgiref adds to the one that it is given."""
    return [("Content-Type", "text/plain"), *([("Content-Length", length)] if length else [])]


def say(query, event, notes=None):
    """Report ``event`` of this request, and return when the harness says to go on.

    :param notes: where the request has been before.
    """
    report = {"id": query["id"], "event": event, "here": place(), **(notes or {})}
    address = ("127.0.0.1", int(query["control"]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(json.dumps(report).encode() + b"\n")
        connection.recv(1)


def query_of(environ):
    return {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}


def register(environ):
    """Register callbacks, if there is a list for them; the harness delays the second.

    :return: what they will also report: where the app was called, and where its body was closed.
    """
    notes = {}
    after = environ.get("wsgi.after")
    if after is not None:
        query = query_of(environ)  # not the environ itself: uWSGI clears it after the request
        LOCAL.request = query["id"]
        CONTEXT.set(query["id"])
        notes["called"] = place()
        after(setattr, LOCAL, "request", None)
        for event in ("first", "slow", "last"):
            after(say, query, event, notes)
    return notes


def note_close(notes):
    """Record where the server closes the response, and leave a mark there for the callbacks."""
    if notes:
        notes["closed"] = place()
        CONTEXT.set(f"closed {notes['called'][-1]}")


def about(environ, start_response):
    """What the harness wants to know about this process; this also collects garbage."""
    gc.collect()
    if environ.get("QUERY_STRING") == "meet":
        time.sleep(0.05)  # so that others are served in other threads
    found = {
        "place": [os.getpid(), threading.get_ident()],
        "python": platform.python_version(),
        "mod_wsgi": ".".join(map(str, environ.get("mod_wsgi.version", ()))),
        "reads": File.reads,
        "not_cleared": not_cleared,
    }
    body = json.dumps(found).encode()
    start_response("200 OK", plain(str(len(body))))
    return [body]


def beside_about(application):
    """An app that also answers the harness's question for :func:`about`."""

    def app(environ, start_response):
        is_about = environ["PATH_INFO"] == "/bare/about"
        return (about if is_about else application)(environ, start_response)

    return app


class ClassIterator:
    """An app that is a class, as in PEP 3333: the instance is the iterable."""

    def __init__(self, environ, start_response):
        start_response("200 OK", plain())
        self.chunks = [b"hello ", b"class"]
        self.notes = environ.get("tests.notes")

    def __iter__(self):
        return self

    def __next__(self):
        if not self.chunks:
            raise StopIteration
        return self.chunks.pop(0)

    def close(self):  # without it, fastwsgi answers 500 to the next request
        note_close(self.notes)


def answering(make, length=None, status="200 OK", headers=None):
    """An app that answers at once, with what ``make()`` returns."""

    def app(environ, start_response):
        start_response(status, plain(length) if headers is None else [*headers])
        return make()

    return app


list_with_length = answering(lambda: [b"hello ", b"list"], "10")


class File(io.FileIO):
    """Records where it is closed, and the size of each read of the latest file."""

    reads = ()

    def __init__(self, path, notes):
        super().__init__(path)
        self.notes = notes
        File.reads = []

    def read(self, size=-1):
        File.reads.append(size)
        return super().read(size)

    def close(self):
        if not self.closed:
            note_close(self.notes)
        super().close()


def in_blocks(opened, size):
    with opened:
        while block := opened.read(size):
            yield block


def file(environ, start_response):
    name = environ["PATH_INFO"].split("/")[-1]
    path = os.path.join(os.path.dirname(__file__), f"{name}.bin")
    wrapper = environ.get("wsgi.file_wrapper")
    opened = File(path, environ.get("tests.notes") if wrapper else None)
    start_response("200 OK", plain(str(os.path.getsize(path))))
    return (wrapper or in_blocks)(opened, 65536)


def own_environ(environ, start_response):
    query = query_of(environ)
    after = environ.get("wsgi.after")
    after.clear()
    after(say, query, "slow")
    after(lambda: say(query, f"reads {environ['QUERY_STRING']} of {environ['PATH_INFO']}"))
    after(say, query, "last")
    return list_with_length(environ, start_response)


def write(environ, start_response):
    write = start_response("200 OK", plain("11"))
    write(b"hello ")
    write(b"write")
    return []


def error_before_return(environ, start_response):
    raise RuntimeError("raised on purpose, before the app returned")


def failing(chunks):
    for _ in range(chunks):
        yield b"first chunk"
    raise RuntimeError(f"raised on purpose, after {chunks} chunks")


def hang_up(environ, start_response):
    def body(query):
        yield b"first chunk"
        say(query, "in mid-body")  # returns when the client has gone
        for _ in range(64):
            yield b"x" * 65536

    start_response("200 OK", plain())
    return body(query_of(environ))


ELSEWHERE = [("Location", "/elsewhere"), ("Content-Length", "0")]
KINDS = {
    "list_with_length": list_with_length,
    "two_requests": list_with_length,
    "list_without_length": answering(lambda: [b"hello list"]),
    "tuple": answering(lambda: (b"hello ", b"tuple")),
    "generator": answering(lambda: (chunk for chunk in (b"hello ", b"generator"))),
    "class_iterator": ClassIterator,
    "empty_list": answering(list),
    "redirect": answering(list, status="302 Found", headers=ELSEWHERE),
    "no_content": answering(list, status="204 No Content", headers=[]),
    "not_modified": answering(list, status="304 Not Modified", headers=[("ETag", '"tag"')]),
    "head": answering(list, "10"),
    "small_file": file,
    "large_file": file,
    "write": write,
    "error_before_return": error_before_return,
    "error_in_first_chunk": answering(lambda: failing(0)),
    "error_in_mid_body": answering(lambda: failing(1)),
    "hang_up": hang_up,
    "own_environ": own_environ,
}


def app(environ, start_response):
    """``/MODE/KIND``, and whatever follows."""
    if found := getattr(LOCAL, "request", None):
        not_cleared.append(found)
    kind = environ["PATH_INFO"].split("/")[2]
    if kind == "about":
        return about(environ, start_response)
    environ["tests.notes"] = register(environ)
    return KINDS[kind](environ, start_response)


class Body:
    """Records ``close()`` for a body whose own type cannot record it."""

    def __init__(self, body, notes):
        self.body = body
        self.notes = notes

    def __iter__(self):
        return iter(self.body)

    def close(self):
        if isinstance(self.body, GeneratorType):
            self.body.close()
        note_close(self.notes)


def closed(environ, start_response):
    body = app(environ, start_response)
    noted = not isinstance(body, (list, tuple, GeneratorType))
    return body if noted else Body(body, environ["tests.notes"])


def quick(environ, start_response):
    """One callback, which takes no time."""
    environ["wsgi.after"].append(int)
    start_response("200 OK", plain("2"))
    return [b"ok"]


def closes_early(app):
    """A middleware that closes the response before returning it."""

    def middleware(environ, start_response):
        body = app(environ, start_response)
        chunks = list(body)
        body.close()
        return chunks

    return middleware


def in_another_thread(app):
    """A middleware that makes and closes the response in another thread."""

    def middleware(environ, start_response):
        early = closes_early(app)
        chunks = []
        thread = threading.Thread(target=lambda: chunks.extend(early(environ, start_response)))
        thread.start()
        thread.join()
        return chunks

    return middleware


MODES = {
    "quick": AfterResponseMiddleware(quick),
    "early": closes_early(AfterResponseMiddleware(quick)),
    "thread": in_another_thread(AfterResponseMiddleware(app)),
    "bare": app,
    "wrapped": AfterResponseMiddleware(app),
    "closed": AfterResponseMiddleware(closed),
    "pool": AfterResponseMiddleware(app, executor=BoundedThreadPoolExecutor()),
}


def application(environ, start_response):
    """Nothing stands between the server and what a mode returns."""
    mode = environ["PATH_INFO"].split("/")[1]
    return MODES[mode](environ, start_response)
