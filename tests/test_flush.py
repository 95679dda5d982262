"""Servers that hold the headers of an empty response: the middleware makes them send these first.

Here the server is a few lines; the real ones are in ``tests/servers``.
"""

from __future__ import annotations

import io
import logging
from contextlib import nullcontext, suppress
from wsgiref.util import FileWrapper

import pytest
from conftest import make_environ, registers

from wsgi_after._core import servers
from wsgi_after._core.servers import SERVERS, UNKNOWN, recognise

UWSGI = {"uwsgi.version": b"2.0.31"}
HOLD_HEADERS = [{server.key: b""} for server in SERVERS if server.key and server.holds_headers]


class Body:
    """A body that fails at a given place."""

    def __init__(self, *chunks, fails=""):
        self.chunks, self.fails = chunks, fails

    def __iter__(self):
        yield from self.chunks
        if self.fails == "body":
            raise ValueError("on purpose")

    def close(self):
        if self.fails == "close":
            raise ValueError("on purpose")


def starts(*body, fails=""):
    def app(environ, start_response):
        start_response("302 Found", [("Location", "/"), ("Content-Length", "0")])
        if fails == "call":
            raise ValueError("on purpose")
        return Body(*body, fails=fails)

    return app


def never_starts(environ, start_response):
    return []


@pytest.fixture
def serve(events):
    """Call an app as a server does; record what is read and written, and the callback."""

    def serve(app, environ, callbacks=1, reads=list, close=True):
        application = registers(*[lambda: events.append("callback")] * callbacks, app=app)
        result = application(make_environ(**environ), lambda *args: events.append)
        try:
            events.extend(reads(result))
        finally:
            if close:
                result.close()

    return serve


def begin(body):
    return [next(iter(body))]


def read_again(body):
    """Read twice, like a server that finds out the length first and ignores an exception."""
    with suppress(ValueError):
        list(body)
    return list(body)


def breaks(environ, start_response):
    """The body is a generator, which is empty after it has failed."""
    return iter(starts(fails="body")(environ, start_response))


def sends_file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](io.BytesIO())


@pytest.mark.parametrize("environ", HOLD_HEADERS)
@pytest.mark.parametrize("chunks", [(), (b"",)])
def test_the_headers_of_an_empty_response_go_out_before_the_callbacks(
    chunks, environ, serve, events
):
    serve(starts(*chunks), environ)
    assert events == [*chunks, b"", "callback"]


@pytest.mark.parametrize(
    ("app", "options", "expected"),
    [
        (starts(b"", b"chunk"), {}, [b"", b"chunk", "callback"]),  # the headers are out
        (starts(), {"environ": {}}, ["callback"]),  # a server that is not known
        (starts(), {"callbacks": 0}, []),
        (never_starts, {}, ["callback"]),
        # The server may be about to answer an error of its own.
        (starts(b"1", b"2"), {"reads": begin}, [b"1", "callback"]),
        (starts(b"", b"2"), {"reads": begin}, [b"", "callback"]),
        (starts(), {"reads": lambda body: []}, ["callback"]),
        (breaks, {"reads": read_again}, ["callback"]),
        (sends_file, {"environ": {**UWSGI, "wsgi.file_wrapper": FileWrapper}}, ["callback"]),
    ],
)
def test_otherwise_there_is_no_flush(app, options, expected, serve, events):
    serve(app, **{"environ": UWSGI, **options})
    assert events == expected


@pytest.mark.parametrize("place", ["call", "body", "close"])
def test_after_an_error_of_the_app_there_is_no_flush(place, serve, events):
    with pytest.raises(ValueError, match="on purpose"):
        serve(starts(fails=place), UWSGI)
    assert events == ["callback"]


def test_a_finalizer_does_not_write(serve, events):
    with pytest.warns(ResourceWarning, match="never closed"):
        serve(starts(), UWSGI, close=False)
    assert events == ["callback"]


@pytest.mark.parametrize("error", [OSError("the client has left"), KeyboardInterrupt()])
def test_an_error_of_the_flush_does_not_cost_the_callbacks(error, events, caplog):
    caplog.set_level(logging.DEBUG, "wsgi_after")

    def write(data):
        raise error

    goes_on = isinstance(error, KeyboardInterrupt)
    application = registers(lambda: events.append("callback"), app=starts())
    result = application(make_environ(**UWSGI), lambda *args: write)
    assert list(result) == []
    with pytest.raises(KeyboardInterrupt) if goes_on else nullcontext():
        result.close()
    assert events == ["callback"]
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * (not goes_on)


# How a server is recognised


def test_twisted_is_recognised_by_its_error_stream():
    stream = type("_ErrorStream", (), {"__module__": "twisted.web.wsgi"})()
    assert recognise(make_environ(**{"wsgi.errors": stream})).name == "twisted"
    assert recognise(make_environ()) is UNKNOWN


def test_another_row_with_a_key_is_another_server(monkeypatch, serve, events):
    """Contributors are invited to add rows: any number of them must work."""
    monkeypatch.setattr(servers, "SERVERS", (*SERVERS, servers.Server("another", key="another.x")))
    assert recognise(make_environ(**{"another.x": 1})).name == "another"
    assert recognise(make_environ(**UWSGI)).name == "uWSGI"
    serve(starts(), {"another.x": 1})
    assert events == ["callback"]  # it holds no headers


@pytest.mark.parametrize(
    "body",
    [[], [b""], (), iter(()), Body(b""), b"", memoryview(b"")],
    ids=["list", "list of b''", "tuple", "iterator", "object", "bytes", "memoryview"],
)
def test_an_empty_body_of_any_kind_is_flushed(body, serve, events):
    def app(environ, start_response):
        start_response("200 OK", [])
        return body

    serve(app, UWSGI, reads=lambda body: list(body) and [])
    assert events == [b"", "callback"]
