"""The validators that people use pass, around the middleware and inside it."""

from __future__ import annotations

import wsgiref.validate
from functools import partial

import pytest
import webtest
import webtest.lint
from conftest import Exchange, hello, make_environ
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.test import Client

from wsgi_after import AfterResponseMiddleware

VALIDATORS = [wsgiref.validate.validator, LintMiddleware, webtest.lint.middleware]


def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (chunk for chunk in (b"hel", b"lo"))


def empty(environ, start_response):
    headers = [
        ("Location", "http://localhost/"),
        ("Content-Type", "text/plain"),
        ("Content-Length", "0"),
    ]
    start_response("303 See Other", headers)
    return []


def writes(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"hel")
    return [b"lo"]


APPS = [(hello, b"hello"), (stream, b"hello"), (empty, b""), (writes, b"hello")]


@pytest.mark.parametrize("validator", VALIDATORS, ids=["wsgiref", "werkzeug", "webtest"])
@pytest.mark.parametrize(("app", "body"), APPS, ids=[app.__name__ for app, _ in APPS])
def test_a_validator_around_and_inside_the_middleware_has_nothing_to_say(
    validator, app, body, events
):
    def registering(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        return app(environ, start_response)

    application = validator(AfterResponseMiddleware(validator(registering)))
    exchange = Exchange(application, make_environ(QUERY_STRING="", SCRIPT_NAME=""))
    assert b"".join(exchange.written + exchange.finish()) == body
    assert events == ["ran"]


@pytest.mark.parametrize(("app", "body"), APPS, ids=[app.__name__ for app, _ in APPS])
def test_webtest_runs_the_callbacks_of_each_request(app, body, events):
    application = AfterResponseMiddleware(app)
    application.after_response(lambda environ: events.append(environ["PATH_INFO"]))
    client = webtest.TestApp(application)
    assert client.get("/first").body == body
    assert client.get("/second").body == body
    assert events == ["/first", "/second"]


@pytest.mark.parametrize(("app", "body"), APPS, ids=[app.__name__ for app, _ in APPS])
def test_werkzeugs_client_runs_them_when_the_response_is_closed(app, body, events):
    application = AfterResponseMiddleware(app)
    application.after_response(lambda environ: events.append("ran"))
    with Client(application).get("/") as response:
        assert (response.data, events) == (body, [])
    assert events == ["ran"]
