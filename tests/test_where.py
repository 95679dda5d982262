"""Where callbacks run by default: in close(), unless the server would have the client wait."""

from __future__ import annotations

import logging
import os

import pytest
from conftest import hello, make_environ
from wsgi_after.servers import CHUNKED, CONNECTION, ERROR, SERVERS, UNKNOWN, recognise

from wsgi_after import AfterResponseMiddleware

OK = "200 OK"
SIZED, EMPTY = [("content-LENGTH", "5")], [("Content-Length", " 0 ")]

#: method, status, headers: a response to a request of HTTP/1.1
RESPONSES = {
    "sized": ("GET", OK, SIZED),
    "head": ("HEAD", OK, SIZED),
    "length 0": ("POST", "302 Found", EMPTY),
    "204": ("GET", "204 No Content", []),
    "304": ("GET", "304 Not Modified", []),
    "stream": ("GET", OK, [("Content-Type", "text/plain")]),
}
EMPTIES = {"head", "length 0", "204", "304"}

#: What goes to the pool. Behind HTTP/1.0, a stream does everywhere but on uWSGI.
HANDED_OVER = {
    "unknown": set(),
    "uWSGI": set(),
    "gunicorn": set(),
    "werkzeug": set(),
    "gevent": set(),
    "eventlet": set(),
    "a2wsgi": set(),
    "wsgiref": {"stream"},
    "waitress": {"stream"},
    "twisted": {"stream"},
    "cheroot": {"stream"},
    "hypercorn": {"stream", *EMPTIES},
    "granian": {"stream"},
    "mod_wsgi": {"stream", *EMPTIES},
    "tornado": {"stream", *EMPTIES, "sized"},
}
NEVER = {"unknown", "uWSGI"}
BY_NAME = {server.name: server for server in (*SERVERS, UNKNOWN)}


class Serve:
    """Serves one request as a server would, and tells where the callback ran."""

    def __init__(self, monkeypatch):
        self.places = []
        monkeypatch.setattr("wsgi_after.executor.shared", self)

    def submit(self, fn, *args):
        self.places.append("pool")
        fn(*args)

    def __call__(self, server, app, method="GET", protocol="HTTP/1.1"):
        def start_response(status, headers, exc_info=None):
            return lambda data: None

        def register(environ, start_response):
            environ["wsgi.after"].append(lambda: self.places.append("ran"))
            return app(environ, start_response)

        environ = make_environ(REQUEST_METHOD=method, SERVER_PROTOCOL=protocol)
        environ["wsgi.errors"] = Errors()
        Errors.__module__ = server.errors
        start_response.__module__ = server.module
        if server.key:
            environ[server.key] = "1"
        result = AfterResponseMiddleware(register)(environ, start_response)
        try:
            list(result)
        finally:
            result.close()


class Errors:
    """A class of the server's."""


@pytest.fixture
def serve(monkeypatch, throttles):
    return Serve(monkeypatch)


def responding(status, headers):
    def app(environ, start_response):
        start_response(status, headers)
        return []

    return app


def test_this_is_the_whole_table():
    assert set(HANDED_OVER) == set(BY_NAME)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", HANDED_OVER)
def test_the_pool_runs_what_the_client_would_wait_for(name, response, serve):
    method, *started = RESPONSES[response]
    serve(BY_NAME[name], responding(*started), method)
    assert serve.places == (["pool", "ran"] if response in HANDED_OVER[name] else ["ran"])


@pytest.mark.parametrize("name", HANDED_OVER)
def test_a_stream_to_a_client_of_http_1_0_ends_with_the_connection(name, serve):
    """Nginx in front is one, if nothing else is configured."""
    serve(BY_NAME[name], responding(OK, []), protocol="HTTP/1.0")
    assert serve.places == (["ran"] if name in NEVER else ["pool", "ran"])


def raises_before_it_returns(environ, start_response):
    raise ValueError("on purpose")


def raises_in_mid_body(environ, start_response):
    start_response(OK, SIZED)
    yield b"h"
    raise ValueError("on purpose")


@pytest.mark.parametrize("app", [raises_before_it_returns, raises_in_mid_body])
@pytest.mark.parametrize("name", HANDED_OVER)
def test_no_client_waits_for_the_answer_to_an_exception(name, app, serve):
    with pytest.raises(ValueError, match="on purpose"):
        serve(BY_NAME[name], app)
    assert serve.places == (["ran"] if name in NEVER else ["pool", "ran"])


def test_an_app_that_starts_no_response_is_one_that_failed(serve):
    serve(BY_NAME["gunicorn"], lambda environ, start_response: [])
    assert serve.places == ["pool", "ran"]


@pytest.mark.parametrize(
    "started", [(OK, None), (OK, [("a", "b", "c")]), (OK, [(1, 2)]), (200, []), (OK, 5)]
)
def test_headers_that_are_none_cost_no_callback(started, serve):
    """Some servers let them pass."""
    serve(BY_NAME["cheroot"], responding(*started))
    assert serve.places == ["ran"]


def test_the_first_hand_off_of_a_process_is_announced(serve, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "wsgi_after")
    for _ in range(2):
        serve(BY_NAME["cheroot"], responding(OK, []))
    assert caplog.messages == [
        "Callbacks run in a thread pool where the client would wait for them, as now: cheroot "
        "sends the last chunk, because it has no Content-Length, after close() only. "
        "AfterResponseMiddleware(app, executor=None) keeps all in close(). This is told once."
    ]
    monkeypatch.setattr(os, "getpid", lambda: 0)  # a worker that was forked since
    serve(BY_NAME["cheroot"], responding(OK, []))
    assert len(caplog.messages) == 2


def test_a_start_response_without_a_module_is_an_unknown_servers():
    assert recognise(make_environ(), object.__new__(object)) is UNKNOWN
    assert recognise(make_environ()) is UNKNOWN


def test_a_server_that_names_itself_is_not_looked_at_further():
    """None of those that are known by their ``wsgi.errors`` does."""
    environ = make_environ(SERVER_SOFTWARE="another")
    environ["wsgi.errors"] = Errors()
    Errors.__module__ = BY_NAME["twisted"].errors
    assert recognise(environ) is UNKNOWN
    del environ["SERVER_SOFTWARE"]
    assert recognise(environ) is BY_NAME["twisted"]


def test_a_test_client_runs_them_in_close(events):
    from webtest import TestApp
    from werkzeug.test import Client

    def app(environ, start_response):
        environ["wsgi.after"](events.append, "ran")
        return hello(environ, start_response)  # without Content-Length

    TestApp(AfterResponseMiddleware(app), lint=False).get("/")
    assert events == ["ran"]
    Client(AfterResponseMiddleware(app)).get("/", buffered=True)
    assert events == ["ran", "ran"]


def test_who_says_where_chunks_end_only_keeps_errors_and_connections_back():
    """What is not looked at more closely where a response is complete, and of HTTP/1.1."""
    late = {server.late for server in SERVERS if CHUNKED not in server.late}
    assert late == {frozenset({ERROR, CONNECTION})}
