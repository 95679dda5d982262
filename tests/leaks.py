"""``python tests/leaks.py REQUESTS``: serve requests of all kinds; print what is left of them.

In this process, nothing else takes memory, and the garbage collector is off.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from wsgiref.util import FileWrapper

from conftest import Immediately, Marker, Refuses, make_environ

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response
from wsgi_after.executor import BoundedThreadPoolExecutor

CHUNKS = [b"1", b"2"]
# Counters whose next() threads may call at once.
registered = itertools.count()
calls = itertools.count()
pool = BoundedThreadPoolExecutor(max_workers=1)  # its thread is there from the first job on


def ran(environ: object = None) -> None:
    next(calls)


def ok(environ: dict[str, Any], start_response: Callable[..., Any]) -> Callable[[bytes], Any]:
    """Register three callbacks: one refers to the environ, one registers the last."""
    for _ in range(3):
        next(registered)
    after = environ["wsgi.after"]
    after.append(ran)
    after(ran, environ)
    after.append(lambda: after_this_response(ran))
    write: Callable[[bytes], Any] = start_response("200 OK", [("Content-Type", "text/plain")])
    return write


def answers(make: Callable[..., Any]) -> Callable[..., Any]:
    """An app that registers callbacks, and returns ``make(environ, write)``."""

    def app(environ, start_response):
        return make(environ, ok(environ, start_response))

    return app


def raises(error: type[BaseException], *arguments: object) -> None:
    raise error(*arguments)


def fails_in_the_middle(environ, start_response):
    ok(environ, start_response)
    yield b"1"
    raise ValueError


class FailsWhenClosed(list[bytes]):
    def close(self):
        raise ValueError


def send_file(environ, write):
    return environ["wsgi.file_wrapper"](open(os.devnull, "rb"))


def callbacks_fail(environ, write):
    for error in (ValueError, SystemExit, KeyboardInterrupt):
        environ["wsgi.after"].insert(0, partial(raises, error, environ))
    return CHUNKS


def prepared(environ, start_response):
    after_this_request(lambda response: response.set_cookie("name", environ["PATH_INFO"]))
    return list_(environ, start_response)


def within(environ, start_response):
    """A request within a request, with an environ of its own."""
    inner = MIDDLEWARE(generator)(make(Marker()), lambda *args: None)
    list(inner)
    inner.close()
    return list_(environ, start_response)


def no_callbacks(environ, start_response):
    start_response("200 OK", [])
    return CHUNKS


def error_handled(environ, start_response):
    try:
        raise ValueError
    except ValueError:
        start_response("500 Oops", [], sys.exc_info())
    return list_(environ, start_response)


list_ = answers(lambda environ, write: CHUNKS)
generator = answers(lambda environ, write: (chunk for chunk in CHUNKS))
sized = answers(lambda environ, write: tuple(CHUNKS))
file = answers(send_file)
fails_when_called = answers(lambda environ, write: raises(ValueError))
MIDDLEWARE = AfterResponseMiddleware
LIST = MIDDLEWARE(list_)
FAILS_IN_THE_MIDDLE = MIDDLEWARE(fails_in_the_middle)


def twice(environ, start_response):
    """A second call with the same environ, as for an error page."""
    LIST(environ, start_response).close()
    return LIST(environ, start_response)


SHARED = MIDDLEWARE(MIDDLEWARE(MIDDLEWARE(list_)))
APP_WIDE = MIDDLEWARE(sized)
APP_WIDE.after_response(ran)
KINDS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *(
        (MIDDLEWARE(app), {})
        for app in (
            *(list_, no_callbacks, generator, sized, file, fails_when_called),
            *(prepared, within, error_handled, answers(callbacks_fail)),
            answers(lambda environ, write: write(b"written") or []),
            answers(lambda environ, write: FailsWhenClosed(CHUNKS)),
        )
    ),
    (FAILS_IN_THE_MIDDLE, {}),
    *((MIDDLEWARE(app, executor=Immediately()), {}) for app in (list_, generator, file)),
    *((MIDDLEWARE(app, executor=Refuses()), {}) for app in (list_, fails_when_called)),
    (MIDDLEWARE(list_, executor=pool), {}),
    (MIDDLEWARE(file), {"wsgi.file_wrapper": lambda file, size=8192: file}),  # as on uWSGI
    (MIDDLEWARE(list_), {"uwsgi.version": b"2"}),  # whose headers are flushed
    *((application, {}) for application in (SHARED, APP_WIDE, twice)),
]


def make(marker: Marker, **extra: Any) -> dict[str, Any]:
    return {**ENVIRON, "marker": marker, "PATH_INFO": f"/{id(marker)}", **extra}


ENVIRON = make_environ(**{"wsgi.file_wrapper": FileWrapper})


def start_response(*args: object) -> Callable[[bytes], object]:
    return lambda data: None


def serve(application: Callable[..., Any], environ: dict[str, Any], ending: int) -> None:
    """Serve one request: read all of it, one chunk or none, or forget to close it."""
    with suppress(ValueError, KeyboardInterrupt):
        body = application(environ, start_response)
        try:
            for _ in body if ending else ():
                if ending == 1:
                    break
        finally:
            if ending != 2:
                body.close()


def wait_until_gone(reference: weakref.ref[Marker]) -> bool:
    """Whether the environ is freed, which may take a moment if it went to a thread."""
    pool.drain()
    deadline = time.monotonic() + 1
    while reference() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    return reference() is None


def in_use() -> dict[str, int]:
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "bytes_traced": tracemalloc.get_traced_memory()[0],
        "bytes_resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def kinds() -> Iterator[tuple[Callable[..., Any], dict[str, Any], int]]:
    """All kinds, with all endings. Few of them submit a job to the pool."""
    for (application, extra), ending in itertools.product(KINDS, (3, 0, 1, 2)):
        # If a server drops this unclosed, only the garbage collector can end it: the app's
        # exception refers to the body.
        if not (ending == 2 and application is FAILS_IN_THE_MIDDLE):
            yield application, extra, ending


def main(number: int) -> dict[str, Any]:
    logger = logging.getLogger("wsgi_after")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    warnings.simplefilter("ignore")  # of responses that were not closed
    sys.unraisablehook = lambda unraisable: None  # for what their finalizers raise
    kept = app_wide = 0
    first = {}
    cycle = itertools.cycle(list(kinds()))
    for served, (application, extra, ending) in enumerate(itertools.islice(cycle, number), 1):
        if served == len(KINDS) * 4:  # what is imported at first use leaves cycles
            gc.collect()
            gc.disable()
        if served == number * 9 // 10:  # for the last tenth, because it takes twice the time
            tracemalloc.start()
        marker = Marker()
        reference = weakref.ref(marker)
        environ = make(marker, **extra)
        serve(application, environ, ending)
        del marker, environ
        if reference() is not None and not wait_until_gone(reference):
            kept += 1
        app_wide += application is APP_WIDE
        if served == number // 10:
            first = in_use()
        if served == number * 91 // 100:
            first["bytes_traced"] = tracemalloc.get_traced_memory()[0]
    last = in_use()
    tracemalloc.stop()
    return {
        "requests": served,
        "registered": next(registered) + app_wide,
        "ran": next(calls),
        "environs_kept": kept,
        "cycles": gc.collect(),
        "grown": {name: last[name] - first[name] for name in first},
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
