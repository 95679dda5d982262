"""The app that every server serves: ``/bare/KIND`` as it is, the rest in the middleware.

Callbacks of ``/inline/KIND`` run in ``close()`` always, those of ``/default/KIND`` where they do by
default, those of ``/pool/KIND`` in a pool that was asked for.

Each kind of response is a function below. Callbacks, and bodies that wait for the client, tell
the harness what happens through :func:`say`. The query string names the harness's port, the
request, and the file to send. Imports nothing but the standard library and ``wsgi_after``: mod_wsgi
runs it on the system's Python.
"""

import gc
import io
import json
import os
import platform
import socket
from urllib.parse import parse_qs

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

# What nobody closes waits for about(), not for whichever allocation happens to be one too many.
gc.disable()


def plain(length=None):
    """A list of headers for each response: wsgiref adds to the one that it is given."""
    return [("Content-Type", "text/plain"), *([("Content-Length", length)] if length else [])]


def say(query, event):
    """Report ``event`` of this request, and return when the harness says to go on."""
    address = ("127.0.0.1", int(query["control"]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{query['id']} {event}\n".encode())
        connection.recv(1)


def query_of(environ):
    return {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}


def register(environ):
    """Three callbacks, if there is a list to register them in: the harness delays the second."""
    after = environ.get("wsgi.after")
    if after is not None:
        query = query_of(environ)  # not the environ itself: uWSGI clears it after the request
        for event in ("first", "slow", "last"):
            after(say, query, event)


def about(environ, start_response):
    """What is to be known of this process; garbage is collected on the way."""
    gc.collect()
    found = {
        "python": platform.python_version(),
        "mod_wsgi": ".".join(map(str, environ.get("mod_wsgi.version", ()))),
        "reads": CountedFile.reads,
    }
    body = json.dumps(found).encode()
    start_response("200 OK", plain(str(len(body))))
    return [body]


def list_with_length(environ, start_response):
    start_response("200 OK", plain("10"))
    return [b"hello ", b"list"]


def list_without_length(environ, start_response):
    start_response("200 OK", plain())
    return [b"hello list"]


def tuple_(environ, start_response):
    start_response("200 OK", plain())
    return (b"hello ", b"tuple")


def generator(environ, start_response):
    start_response("200 OK", plain())
    return (chunk for chunk in (b"hello ", b"generator"))


class ClassIterator:
    """An app that is a class, as in PEP 3333: the instance is the iterable."""

    def __init__(self, environ, start_response):
        start_response("200 OK", plain())
        self.chunks = [b"hello ", b"class"]

    def __iter__(self):
        return self

    def __next__(self):
        if not self.chunks:
            raise StopIteration
        return self.chunks.pop(0)

    def close(self):  # fastwsgi answers 500 to the next request after an iterator without one
        self.chunks.clear()


def empty_list(environ, start_response):
    start_response("200 OK", plain())
    return []


def redirect(environ, start_response):
    start_response("302 Found", [("Location", "/elsewhere"), ("Content-Length", "0")])
    return []


def no_content(environ, start_response):
    start_response("204 No Content", [])
    return []


def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"tag"')])
    return []


def head(environ, start_response):
    start_response("200 OK", plain("10"))
    return []


def in_blocks(opened):
    with opened:
        while block := opened.read(65536):
            yield block


def file(environ, start_response):
    path = query_of(environ)["file"]
    opened = open(path, "rb")  # noqa: SIM115 -- the server closes it
    start_response("200 OK", plain(str(os.path.getsize(path))))
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(opened, 65536) if wrapper else in_blocks(opened)


class CountedFile(io.FileIO):
    """Notes the size of each read, of the latest file."""

    reads = ()

    def __init__(self, path):
        super().__init__(path)
        CountedFile.reads = []

    def read(self, size=-1):
        CountedFile.reads.append(size)
        return super().read(size)


def counted_file(environ, start_response):
    path = query_of(environ)["file"]
    start_response("200 OK", plain(str(os.path.getsize(path))))
    return environ["wsgi.file_wrapper"](CountedFile(path), 65536)


def own_environ(environ, start_response):
    query = query_of(environ)
    after = environ.get("wsgi.after")
    after.clear()
    after(say, query, "slow")
    after(lambda: say(query, f"{environ['PATH_INFO']} {environ['HTTP_COOKIE']}"))
    after(say, query, "last")
    return list_with_length(environ, start_response)


def write(environ, start_response):
    write = start_response("200 OK", plain("11"))
    write(b"hello ")
    write(b"write")
    return []


def error_before_return(environ, start_response):
    raise RuntimeError("raised on purpose, before the app returned")


def error_in_first_chunk(environ, start_response):
    def body():
        raise RuntimeError("raised on purpose, in the first chunk")
        yield b""

    start_response("200 OK", plain())
    return body()


def error_in_mid_body(environ, start_response):
    def body():
        yield b"first chunk"
        raise RuntimeError("raised on purpose, in mid-body")

    start_response("200 OK", plain())
    return body()


def hang_up(environ, start_response):
    def body(query):
        yield b"first chunk"
        say(query, "in mid-body")  # returns when the client has gone
        for _ in range(64):
            yield b"x" * 65536

    start_response("200 OK", plain())
    return body(query_of(environ))


KINDS = {
    "list_with_length": list_with_length,
    "list_without_length": list_without_length,
    "tuple": tuple_,
    "generator": generator,
    "class_iterator": ClassIterator,
    "empty_list": empty_list,
    "redirect": redirect,
    "no_content": no_content,
    "not_modified": not_modified,
    "head": head,
    "small_file": file,
    "large_file": file,
    "write": write,
    "error_before_return": error_before_return,
    "error_in_first_chunk": error_in_first_chunk,
    "error_in_mid_body": error_in_mid_body,
    "hang_up": hang_up,
    "two_requests": list_with_length,
    "counted_file": counted_file,
    "own_environ": own_environ,
}


def bare(environ, start_response):
    """The app without the middleware: ``/MODE/KIND``, and whatever follows."""
    kind = environ["PATH_INFO"].split("/")[2]
    if kind == "about":
        return about(environ, start_response)
    register(environ)
    return KINDS[kind](environ, start_response)


MODES = {
    "bare": bare,
    "inline": AfterResponseMiddleware(bare, executor=None),
    "default": AfterResponseMiddleware(bare),
    "pool": AfterResponseMiddleware(bare, executor=BoundedThreadPoolExecutor()),
}


def application(environ, start_response):
    """Nothing stands between the server and what a mode returns."""
    mode = environ["PATH_INFO"].split("/")[1]
    return MODES[mode](environ, start_response)
