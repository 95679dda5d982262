"""The apps of :mod:`benchmarks.throughput`.

``/`` is a greeting, ``/hello`` the same by Flask, and ``/file`` a file by the server's own wrapper.
"""

import os
from pathlib import Path

from wsgi_after import AfterResponseMiddleware

from .ablation import middleware_of
from .recipe import ClosingIteratorRecipe
from .workloads import flask_application

BODY = b"Hello, world!\n"
flask = flask_application()


def bare(environ, start_response):
    """One chunk with its length, what Flask returns, or a file by the server's file_wrapper."""
    if environ["PATH_INFO"] == "/hello":
        return flask(environ, start_response)
    if environ["PATH_INFO"] != "/file":
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
        return [BODY]
    file = Path(os.environ["BENCHMARK_FILE"]).open("rb")  # noqa: SIM115 - the server closes it
    size = str(os.fstat(file.fileno()).st_size)
    start_response(
        "200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", size)]
    )
    return environ["wsgi.file_wrapper"](file)


ours = AfterResponseMiddleware(bare)
recipe = ClosingIteratorRecipe(bare)
if "BENCHMARK_COPY" in os.environ:
    ablated = middleware_of(os.environ["BENCHMARK_COPY"])(bare)


class Least:
    """What any middleware has to return that wants to know of ``close()``."""

    __slots__ = ("_iterable",)

    def __init__(self, iterable):
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def close(self):
        if hasattr(self._iterable, "close"):
            self._iterable.close()


def least(environ, start_response):
    """Behind a middleware that only wraps, and does nothing in ``close()``."""
    return Least(bare(environ, start_response))
