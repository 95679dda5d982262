"""Servers that hold the headers of an empty response: they are made to send them first.

Here the server is a few lines; the real ones are in ``tests/servers``.
"""

from __future__ import annotations

import logging

import pytest
from conftest import make_environ

from wsgi_after import AfterResponseMiddleware
from wsgi_after._core import servers
from wsgi_after._core.servers import SERVERS, UNKNOWN, recognise

UWSGI = {"uwsgi.version": b"2.0.31"}


def redirect(environ, start_response):
    start_response("302 Found", [("Location", "/"), ("Content-Length", "0")])
    return []


def serve(app, events, callbacks=True, close=True, **environ):
    """Call ``app`` as a server does, and log what is written to it, and the callback."""

    def registering(environ, start_response):
        if callbacks:
            environ["wsgi.after"].append(lambda: events.append("callback"))
        return app(environ, start_response)

    def start_response(status, headers, exc_info=None):
        return events.append

    result = AfterResponseMiddleware(registering)(make_environ(**environ), start_response)
    try:
        for chunk in result:
            events.append(chunk)
    finally:
        if close:
            result.close()


def test_the_headers_of_an_empty_response_go_out_before_the_callbacks(events):
    serve(redirect, events, **UWSGI)
    assert events == [b"", "callback"]


@pytest.mark.parametrize(
    "server", [server for server in SERVERS if server.key and server.holds_headers]
)
def test_each_server_that_holds_headers_is_recognised_and_flushed(server, events):
    serve(redirect, events, **{server.key: "anything"})
    assert events == [b"", "callback"]


def test_twisted_is_recognised_by_its_error_stream():
    stream = type("_ErrorStream", (), {"__module__": "twisted.web.wsgi"})()
    assert recognise(make_environ(**{"wsgi.errors": stream})).name == "twisted"


def test_another_row_with_a_key_is_another_server(monkeypatch):
    """Contributors are invited to add one: it must not matter how many there are."""
    monkeypatch.setattr(servers, "SERVERS", (*SERVERS, servers.Server("another", key="another.x")))
    assert recognise(make_environ(**{"another.x": 1})).name == "another"
    assert recognise(make_environ(**UWSGI)).name == "uWSGI"


def test_a_server_that_is_not_recognised_is_not_written_to(events):
    assert recognise(make_environ()) is UNKNOWN
    serve(redirect, events)
    assert events == ["callback"]


def test_headers_that_went_out_with_a_chunk_are_not_flushed(events):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"", b"chunk"]

    serve(app, events, **UWSGI)
    assert events == [b"", b"chunk", "callback"]


def test_without_callbacks_there_is_no_flush(events):
    serve(redirect, events, callbacks=False, **UWSGI)
    assert events == []


def test_an_app_that_never_starts_a_response_gets_no_flush(events):
    serve(lambda environ, start_response: [], events, **UWSGI)
    assert events == ["callback"]


def test_after_an_error_of_the_body_there_is_no_flush(events):
    def app(environ, start_response):
        start_response("200 OK", [])
        raise ValueError("on purpose")
        yield

    with pytest.raises(ValueError, match="on purpose"):
        serve(app, events, **UWSGI)
    assert events == ["callback"]


def test_after_an_error_of_the_call_there_is_no_flush(events):
    def app(environ, start_response):
        start_response("200 OK", [])
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        serve(app, events, **UWSGI)
    assert events == ["callback"]


def test_after_an_error_of_the_apps_close_there_is_no_flush(events):
    class Failing:
        def __iter__(self):
            return iter(())

        def close(self):
            raise ValueError("on purpose")

    def app(environ, start_response):
        start_response("200 OK", [])
        return Failing()

    with pytest.raises(ValueError, match="on purpose"):
        serve(app, events, **UWSGI)
    assert events == ["callback"]


def test_a_body_that_the_server_did_not_finish_gets_no_flush(events):
    """The server may be about to answer an error of its own."""

    def start_response(status, headers):
        return events.append

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append("callback"))
        start_response("200 OK", [])
        return iter([b"1", b"2"])

    result = AfterResponseMiddleware(app)(make_environ(**UWSGI), start_response)
    next(result)
    result.close()
    assert events == ["callback"]


def test_a_finalizer_does_not_write(events):
    with pytest.warns(ResourceWarning, match="never closed"):
        serve(redirect, events, close=False, **UWSGI)
    assert events == ["callback"]


@pytest.mark.parametrize("error", [OSError("the client has left"), KeyboardInterrupt()])
def test_an_error_of_the_flush_does_not_cost_the_callbacks(error, events, caplog):
    caplog.set_level(logging.DEBUG, "wsgi_after")

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append("callback"))
        start_response("204 No Content", [])
        return []

    def write(data):
        raise error

    result = AfterResponseMiddleware(app)(make_environ(**UWSGI), lambda *args: write)
    assert list(result) == []
    if isinstance(error, Exception):
        result.close()
        assert [record.levelname for record in caplog.records] == ["DEBUG"]
    else:
        with pytest.raises(KeyboardInterrupt):
            result.close()
    assert events == ["callback"]
