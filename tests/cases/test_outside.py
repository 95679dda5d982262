"""A middleware outside that closes the response before returning it: clients wait, as the log says.

Callbacks run in ``close()``, here before the server has the response. Nothing inside can fix that,
so the log names the middleware, once in a process.
"""

from __future__ import annotations

import io
from contextlib import closing, suppress
from functools import partial, wraps

import pytest
import webob.dec
from conftest import Exchange, Immediately, hello, is_freed, registers
from servers.client import fetch
from servers.descriptions import OURS, SERVERS
from servers.harness import require, running, wait_until
from webtest import TestApp
from werkzeug.middleware.profiler import ProfilerMiddleware
from werkzeug.test import Client
from werkzeug.wsgi import ClosingIterator

from wsgi_after import AfterResponseMiddleware
from wsgi_after._core.logs import looks
from wsgi_after.lint import LintMiddleware


@pytest.fixture(autouse=True)
def _new_process():
    """Start as in a new process: no request has been looked at."""
    before = looks.copy()
    looks[:] = [None] * 100
    yield
    looks[:] = before


@pytest.fixture
def told(caplog):
    """When called: return the names of the middlewares logged so far."""

    def told():
        messages = [record.getMessage() for record in caplog.records]
        return [message.split("the middleware ")[1].partition(",")[0] for message in messages]

    return told


wrapped = registers(int)


@pytest.mark.servers
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_on_each_server_a_middleware_that_closes_early_is_told_of_and_no_server_is(server):
    require(server.missing())
    # There callbacks wait for the server's own moment, even if a middleware closes early.
    harmless = "uWSGI" in server.name or server in OURS
    with running(server) as where:
        for path in ("/quick/", "/quick/", "/early/first", "/early/second"):
            fetch(where.port, path)
        if not harmless:
            wait_until(lambda: "GET /early/first before" in where.log.read_text(), where.log)
        log = where.log.read_text()
    assert (".closes_early.<locals>.middleware, around" in log) is not harmless
    assert [path for path in ("/quick/", "/early/second") if f"GET {path} before" in log] == []


# Middlewares that close early


def joins(inner):
    def middleware(environ, start_response):
        body = inner(environ, start_response)
        try:
            return [b"".join(body)]
        finally:
            getattr(body, "close", int)()

    return middleware


class JoinsByHelper:
    """Closes in a helper, and names the arguments differently."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, env, start):
        return self.chunks_of(self.inner(env, start))

    def chunks_of(self, body):
        chunks = list(body)
        body.close()
        return chunks


def does_not_read(inner):
    """Like a middleware that answers a conditional request."""

    def middleware(environ, start_response):
        inner(environ, lambda *args: None).close()
        start_response("304 Not Modified", [])
        return []

    return middleware


def decorated(inner):
    @wraps(inner)
    def middleware(*args):
        with closing(inner(*args)) as body:
            return list(body)

    return middleware


def by_webob(inner):
    @webob.dec.wsgify.middleware
    def upper(request, app):
        response = request.get_response(app)
        response.body = response.body.upper()
        return response

    return upper(inner)


def exhausts_a_generator(inner):
    """The generator closes the response at its end."""
    passes_on = generates(inner)
    return lambda environ, start_response: list(passes_on(environ, start_response))


@pytest.mark.parametrize(
    ("middleware", "name"),
    [
        (
            lambda inner: ProfilerMiddleware(inner, stream=io.StringIO()),
            "werkzeug.middleware.profiler.ProfilerMiddleware.__call__",
        ),
        (JoinsByHelper, f"{__name__}.JoinsByHelper.__call__"),
        (by_webob, f"{__name__}.by_webob.<locals>.upper"),
        *(
            (middleware, f"{__name__}.{middleware.__name__}.<locals>.middleware")
            for middleware in (joins, does_not_read, decorated)
        ),
        (exhausts_a_generator, f"{__name__}.exhausts_a_generator.<locals>.<lambda>"),
        (lambda inner: LintMiddleware(joins(inner)), f"{__name__}.joins.<locals>.middleware"),
        (lambda inner: generates(joins(inner)), f"{__name__}.joins.<locals>.middleware"),
    ],
)
def test_it_is_told_of_once_by_its_name(middleware, name, told):
    around = middleware(wrapped)
    for _ in range(2):
        Client(around).get("/", buffered=True)
    assert told() == [name]


def test_the_way_out_is_told(caplog, events):
    """The advice in the log works."""

    def outer(environ, start_response):
        result = joins(registers(partial(events.append, "callback")))(environ, start_response)
        events.append("returned")
        return result

    Exchange(outer)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "application = wsgi_after.AfterResponseMiddleware(application)" in record.getMessage()
    Exchange(AfterResponseMiddleware(outer)).finish()
    assert events == ["callback", "returned", "returned", "callback"]


# No false alarm


def generates(inner):
    """Closes at the end of the body, long after it has returned."""

    def middleware(environ, start_response):
        body = inner(environ, start_response)
        try:
            yield from list(body)
        finally:
            getattr(body, "close", int)()

    return middleware


def fails(environ, start_response):
    environ["wsgi.after"].append(int)
    raise ZeroDivisionError


def asks(environ, start_response):
    """Makes a request within the request, and reads its response."""
    Client(wrapped).get("/within", buffered=True)
    return hello(environ, start_response)


@pytest.mark.parametrize(
    "application",
    [
        lambda environ, start_response: wrapped(environ, start_response),
        generates(wrapped),
        LintMiddleware(wrapped),
        lambda *args: ClosingIterator(wrapped(*args)),
        AfterResponseMiddleware(joins(wrapped)),
        joins(registers(int, executor=Immediately())),
        joins(AfterResponseMiddleware(fails)),
        asks,
    ],
)
@pytest.mark.parametrize("client", [TestApp, Client])
def test_what_passes_the_response_on_or_has_nobody_wait_is_not_told_of(application, client, told):
    with suppress(ZeroDivisionError):
        response = client(application).get("/")
        getattr(response, "close", int)()
    assert told() == []


# What it costs


def test_only_the_first_requests_of_a_process_are_looked_at(told):
    for _ in range(100):
        Exchange(wrapped).finish()
    Exchange(joins(wrapped))
    assert told() == []


def test_nothing_is_kept_by_looking(told):
    """Not even by the frames, which go on."""
    assert is_freed(wrapped)
    assert is_freed(lambda environ, start_response: wrapped(environ, start_response))
    assert len(looks) == 98


class Odd:
    """A request whose attributes raise."""

    def __getattr__(self, name):
        raise RuntimeError


def test_a_frame_that_cannot_be_read_costs_no_callback(events, caplog):
    def end(body, request, callback):
        body.close()

    end(Exchange(registers(partial(events.append, "callback"))).result, Odd(), int)
    assert (events, caplog.records) == (["callback"], [])
