"""The app under load, ``/MODE/KIND?ID``: some kinds of response fail, on purpose.

It writes one line when a request arrives, and each callback writes one, in one ``write()`` to a
file that is only appended to. It also runs on the system's Python, so it imports nothing else.
"""

import gc
import os
import random
import sys
import time
from collections import deque
from functools import partial

from wsgi_after import AfterResponseMiddleware, after_this_response
from wsgi_after.executor import BoundedThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
WRITTEN = os.open(os.path.join(HERE, "written"), os.O_WRONLY | os.O_APPEND)
FILE = os.path.join(HERE, "small_file.bin")  # of 10,000 bytes
BLOCK = b"x" * 65536


def write(*words):
    os.write(WRITTEN, f"{' '.join(words)}\n".encode())


def started(environ, start_response, length=None):
    headers = [("X-Request", environ["QUERY_STRING"])]
    return start_response("200 OK", headers + [("Content-Length", str(length))] * bool(length))


def sized(environ, start_response):
    started(environ, start_response, length=10)
    return [b"hello ", b"list"]


def stream(environ, start_response):
    started(environ, start_response)
    return (chunk for chunk in (b"hello ", b"generator"))


def redirect(environ, start_response):
    headers = [("Location", "/elsewhere"), ("Content-Length", "0")]
    start_response("302 Found", [*headers, ("X-Request", environ["QUERY_STRING"])])
    return []


def written(environ, start_response):
    started(environ, start_response, length=11)(b"hello write")
    return []


def file(environ, start_response):
    opened = open(FILE, "rb")  # noqa: SIM115 -- the server closes it
    started(environ, start_response, length=10_000)
    return environ.get("wsgi.file_wrapper", lambda file: file)(opened)


def large(environ, start_response):
    started(environ, start_response, length=64 * len(BLOCK))  # more than sockets hold
    return (BLOCK for _ in range(64))


def slow(environ, start_response):
    started(environ, start_response, length=20)
    for _ in range(2):
        time.sleep(random.uniform(0, 0.01))
        yield b"hello slow"


def fails_when_called(environ, start_response):
    raise RuntimeError("raised on purpose, before the app returned")


def fails_at_first(environ, start_response):
    started(environ, start_response)
    return (1 / 0 for _ in "1")


def fails_in_the_middle(environ, start_response):
    started(environ, start_response)
    yield b"first chunk"
    raise RuntimeError("raised on purpose, in mid-body")


class Fails(deque):
    def close(self):
        raise RuntimeError("raised on purpose, in close()")


def fails_when_closed(environ, start_response):
    started(environ, start_response, length=5)
    return Fails([b"hello"])


def fail():
    raise random.choice([RuntimeError, SystemExit])("raised on purpose, in a callback")


def fails_after(environ, start_response):
    environ["wsgi.after"].insert(0, fail)
    return sized(environ, start_response)


def slow_after(environ, start_response):
    environ["wsgi.after"].insert(0, partial(time.sleep, random.uniform(0, 0.02)))
    return sized(environ, start_response)


def ran(environ, arrived):
    """The callback: record whether the environ and the current list are this request's own."""
    note = partial(write, "nested", arrived)
    after_this_response(note)
    own_list = environ["wsgi.after"][-1:] == [note]
    write("ran", arrived, environ["QUERY_STRING"] if own_list else "another")


def app(environ, start_response):
    arrived = environ["QUERY_STRING"]
    environ["wsgi.after"](ran, environ, arrived)
    write("arrived", arrived)
    kind = environ["PATH_INFO"].split("/")[2]
    return globals()[kind](environ, start_response)


MODES = {
    "closed": AfterResponseMiddleware(app),
    "pool": AfterResponseMiddleware(app, executor=BoundedThreadPoolExecutor()),
}


def ready(environ, start_response):
    """Tells whether the server, with all that it has imported, runs with the GIL.

    Collects garbage: the next request ends the responses that nobody has closed.
    """
    gc.collect()
    gil = b"true" if getattr(sys, "_is_gil_enabled", lambda: True)() else b"false"
    found = b'{"gil": %s}' % gil
    start_response("200 OK", [("Content-Length", str(len(found)))])
    return [found]


def application(environ, start_response):
    mode = environ["PATH_INFO"].split("/")[1]
    if environ["SERVER_PROTOCOL"] == "HTTP/0.9":  # a line that the client did not finish
        mode = ""
    return MODES.get(mode, ready)(environ, start_response)
