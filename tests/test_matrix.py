"""Where it fails × what the app returns × how many callbacks × what the server does with it.

Each cell compares the complete event log with what :func:`expected` says. That is a second,
independent statement of the contract, in the order in which things must happen.
"""

from __future__ import annotations

import gc
import itertools
import sys
import warnings
from contextlib import contextmanager
from wsgiref.util import FileWrapper

import pytest

from wsgi_after import AfterResponseMiddleware

PLACES = [
    *("nowhere", "before start_response", "after start_response", "first chunk", "mid-body"),
    *("inner close", "one callback", "all callbacks"),
]
KINDS = [
    *("list", "tuple", "generator", "class iterator", "separate iterator", "sized class"),
    *("empty list", "file wrapper", "bytes", "not iterable"),
]
CALLBACKS = {"none": 0, "one": 1, "three": 3, "nested": 2}
SERVERS = ["reads all", "reads one chunk", "reads nothing", "closes twice", "never closes"]

#: The kinds that run code of the app when a chunk is read, and those that do when they are closed.
LIVE = ["generator", "class iterator", "separate iterator", "sized class", "file wrapper"]
CLOSABLE = ["class iterator", "separate iterator", "sized class", "file wrapper"]


def possible(place, kind, callbacks, server):
    if place in ("first chunk", "mid-body"):
        return kind in LIVE
    if place == "inner close":
        return kind in CLOSABLE
    return callbacks != "none" or "callback" not in place


CELLS = [cell for cell in itertools.product(PLACES, KINDS, CALLBACKS, SERVERS) if possible(*cell)]


class Boom(Exception):
    """The error at the place that fails."""


class Iterable:
    """An iterable of the app's: it logs its close, and fails at the given place."""

    def __init__(self, log, place):
        self.log, self.place = log, place
        self.only_pass = self.chunks()

    def chunks(self):
        for number, chunk in enumerate((b"1", b"2", b"3")):
            if self.place == ("first chunk", "mid-body", "")[number]:
                raise Boom(self.place)
            yield chunk

    def close(self):
        self.log.append("app's iterable closed")
        if self.place == "inner close":
            raise Boom(self.place)


class SeparateIterator(Iterable):
    __iter__ = Iterable.chunks


class SizedClass(SeparateIterator):
    def __len__(self):
        return 3


class ClassIterator(Iterable):
    def __iter__(self):
        return self

    def __next__(self):
        return next(self.only_pass)


class File(Iterable):
    def read(self, size=-1):
        return next(self.only_pass, b"")


def generator(log, place):
    try:
        yield from Iterable(log, place).chunks()
    finally:
        log.append("app's iterable closed")


MAKE = {
    "list": lambda log, place: [b"1", b"2", b"3"],
    "tuple": lambda log, place: (b"1", b"2", b"3"),
    "generator": generator,
    "class iterator": ClassIterator,
    "separate iterator": SeparateIterator,
    "sized class": SizedClass,
    "empty list": lambda log, place: [],
    "file wrapper": lambda log, place: FileWrapper(File(log, place)),
    "bytes": lambda log, place: b"123",
    "not iterable": lambda log, place: object(),
}


def make_app(place, kind, callbacks, log):
    def app(environ, start_response):
        after = environ["wsgi.after"]

        def register(name, nested=None):
            def callback():
                log.append(f"{name}: {after.status}, {after.completed}, {after.error!r}")
                if nested:
                    register(nested)
                if place == "all callbacks" or (place, name) == ("one callback", "callback 1"):
                    raise Boom(name)

            after.append(callback)

        for number in range(CALLBACKS[callbacks]):
            nested = callbacks == "nested" and number == 0
            register(f"callback {number + 1}", "nested callback" if nested else None)
        log.append("app called")
        if place == "before start_response":
            raise Boom(place)
        start_response("200 OK", [])
        if place == "after start_response":
            raise Boom(place)
        return MAKE[kind](log, place)

    return app


def serve(application, server, kind, log):
    """Do what a server does, in the given manner."""

    @contextmanager
    def caught():
        try:
            yield
        except Boom as error:
            log.append(f"server caught {error!r}")

    def start_response(status, headers, exc_info=None):
        log.append(f"start_response {status}")

    with caught():
        result = application({"wsgi.file_wrapper": FileWrapper}, start_response)
        if kind == "not iterable":
            log.append(f"server got {type(result).__name__}")
            return
        limit = {"reads one chunk": 1, "reads nothing": 0}.get(server)
        with caught():
            for chunk in itertools.islice(result, limit) if limit is not None else result:
                log.append(f"server read {chunk!r}")
        for _ in range({"closes twice": 2, "never closes": 0}.get(server, 1)):
            with caught():
                result.close()


def expected(place, kind, callbacks, server):
    """State the contract a second time, as an event log."""
    boom = repr(Boom(place))
    yield "app called"
    if place == "before start_response":
        yield from expected_callbacks(place, callbacks, f"None, False, {boom}")
        yield f"server caught {boom}"
        return
    yield "start_response 200 OK"
    if place == "after start_response":
        yield from expected_callbacks(place, callbacks, f"200 OK, False, {boom}")
        yield f"server caught {boom}"
        return
    if kind == "not iterable":
        yield from expected_callbacks(place, callbacks, "200 OK, False, None")
        yield "server got object"
        return

    body = {"empty list": [], "bytes": [b"123"]}.get(kind, [b"1", b"2", b"3"])
    readable = {"first chunk": 0, "mid-body": 1}.get(place, len(body))
    asked = {"reads one chunk": 1, "reads nothing": 0}.get(server, len(body) + 1)
    for chunk in body[: min(asked, readable)]:
        yield f"server read {chunk!r}"
    failed = place in ("first chunk", "mid-body") and asked > readable
    exhausted = not failed and asked > len(body)
    if kind == "generator" and (failed or exhausted):
        yield "app's iterable closed"  # a generator's "finally" runs where it ends
    if failed:
        yield f"server caught {boom}"

    never = server == "never closes"
    if never and callbacks != "none":
        yield "ResourceWarning"
    if kind in CLOSABLE or (kind == "generator" and asked == 1 and not failed):
        yield "app's iterable closed"
    error = boom if (failed and kind != "file wrapper") or place == "inner close" else "None"
    completed = None if kind == "file wrapper" else exhausted
    yield from expected_callbacks(place, callbacks, f"200 OK, {completed}, {error}")
    if place == "inner close":
        yield f"finalizer raised {boom}" if never else f"server caught {boom}"
    if server == "closes twice" and kind == "file wrapper":  # as with the bare app
        yield "app's iterable closed"
        if place == "inner close":
            yield f"server caught {boom}"


def expected_callbacks(place, callbacks, seen):
    names = ["callback 1", "callback 2", "callback 3"]
    names = names[: CALLBACKS[callbacks]]
    if callbacks == "nested":
        names.append("nested callback")
    for name in names:
        yield f"{name}: {seen}"
        if place == "all callbacks" or (place, name) == ("one callback", "callback 1"):
            yield f"ERROR logged: {Boom(name)!r}"


@pytest.fixture
def log(monkeypatch, caplog):
    """Everything that happens: what app and server append, warnings, log records, finalizers."""
    log = []

    def emit(record):
        log.append(f"{record.levelname} logged: {record.exc_info[1]!r}")

    monkeypatch.setattr(caplog.handler, "emit", emit)
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: log.append(f"finalizer raised {args.exc_value!r}")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda message, kind, *_: log.append(kind.__name__)
        )
        yield log


@pytest.mark.parametrize(
    ("place", "kind", "callbacks", "server"), CELLS, ids=[" | ".join(cell) for cell in CELLS]
)
def test_the_event_log_is_the_one_that_the_contract_tells(place, kind, callbacks, server, log):
    gc.disable()  # reference counting alone has to be enough, with one exception:
    try:
        serve(AfterResponseMiddleware(make_app(place, kind, callbacks, log)), server, kind, log)
        if place in ("first chunk", "mid-body"):
            # "error" is kept for the callbacks. Its traceback holds the frame of the server that
            # caught it, and that frame holds the body: a cycle, if the server does not close the
            # body. What the collector drops waits for the next request.
            gc.collect()
            AfterResponseMiddleware(lambda environ, start_response: [])({}, None).close()
    finally:
        gc.enable()
    assert log == list(expected(place, kind, callbacks, server))
