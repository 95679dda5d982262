"""Common WSGI validators and test clients: they accept the middleware, and callbacks run."""

from __future__ import annotations

import wsgiref.validate
from functools import partial

import pytest
import webtest
import webtest.lint
from conftest import Exchange, hello, make_environ, registers
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.test import Client

from wsgi_after import after_this_request


def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (chunk for chunk in (b"hel", b"lo"))


def empty(environ, start_response):
    headers = {"Location": "http://localhost/", "Content-Type": "text/plain", "Content-Length": "0"}
    start_response("303 See Other", [*headers.items()])
    return []


def writes(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"hel")
    return [b"lo"]


def changed(environ, start_response):
    after_this_request(lambda response: response.set_cookie("a", "1"))
    return hello(environ, start_response)


APPS = {hello: b"hello", stream: b"hello", empty: b"", writes: b"hello", changed: b"hello"}
each_app = pytest.mark.parametrize(
    ("app", "body"), APPS.items(), ids=[app.__name__ for app in APPS]
)


@pytest.mark.parametrize(
    "validator", [wsgiref.validate.validator, LintMiddleware, webtest.lint.middleware]
)
@each_app
def test_a_validator_around_and_inside_the_middleware_has_nothing_to_say(
    validator, app, body, events
):
    application = validator(registers(partial(events.append, "ran"), app=validator(app)))
    exchange = Exchange(application, make_environ(QUERY_STRING="", SCRIPT_NAME=""))
    assert b"".join(exchange.written + exchange.finish()) == body
    assert events == ["ran"]


@each_app
def test_test_clients_run_the_callbacks_of_each_request(app, body, events):
    """WebTest closes a response by itself; werkzeug's client leaves that to the test."""
    application = registers(partial(events.append, "ran"), app=app)
    client = webtest.TestApp(application)
    assert (client.get("/first").body, client.get("/second").body) == (body, body)
    assert events == ["ran", "ran"]
    with Client(application).get("/") as response:
        assert (response.data, len(events)) == (body, 2)
    assert len(events) == 3
