"""The apps of :mod:`benchmarks.throughput`: ``/`` is a greeting, ``/file`` the file it names."""

import os
from pathlib import Path

from wsgi_after import AfterResponseMiddleware

from .recipe import ClosingIteratorRecipe

BODY = b"Hello, world!\n"


def bare(environ, start_response):
    """One chunk with its length, or a file by the server's file_wrapper."""
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
