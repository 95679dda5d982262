"""The examples of docs/prepare.rst, run unchanged behind each framework."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from importlib import import_module

import flask
import pytest
import werkzeug.http
from conftest import Exchange, django_app, hello, make_environ
from documents import blocks
from pyramid.config import Configurator

from wsgi_after import AfterResponseMiddleware

# Pyramid 2 imports pkg_resources, and setuptools warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources")


@pytest.fixture
def examples():
    """The names that the examples define, and those that they need from outside."""

    async def forget_sessions(user):
        names["forgotten"] = user

    names = {
        "__name__": "examples",
        "werkzeug": werkzeug,
        "flask": flask,
        "flask_app": flask.Flask("example"),
        "HttpResponse": import_module("django.http").HttpResponse,
        "Response": import_module("pyramid.response").Response,
        "forget_sessions": forget_sessions,
    }
    for block in blocks("prepare.rst").values():
        exec(block, names)
    return names


def flask_app(examples):
    examples["flask_app"].add_url_rule("/", view_func=lambda: flask.g.language)
    return examples["flask_app"]


def pyramid_app(examples):
    config = Configurator()
    config.add_route("index", "/")
    config.add_view(examples["pyramid_view"], route_name="index")
    return config.make_wsgi_app()


FRAMEWORKS = {
    "none": lambda examples: nullcontext(examples["wsgi_app"]),
    "Flask": lambda examples: nullcontext(flask_app(examples)),
    "Django": lambda examples: django_app(examples["django_view"]),
    "Pyramid": lambda examples: nullcontext(pyramid_app(examples)),
}


def answer(app, path="/", **headers):
    """The body and the cookies."""
    environ = make_environ(PATH_INFO=path, SCRIPT_NAME="", **headers)
    exchange = Exchange(AfterResponseMiddleware(app), environ)
    body = b"".join(exchange.finish())
    return body, [value for name, value in exchange.started[0][1] if name == "Set-Cookie"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_language_example_sets_its_cookie_behind_any_framework(examples, framework):
    with FRAMEWORKS[framework](examples) as app:
        german = answer(app, HTTP_ACCEPT_LANGUAGE="de-AT,de")
        english, chosen = answer(app), answer(app, HTTP_COOKIE="lang=fr")
    assert german == (b"de", ["lang=de; Path=/"])
    assert english == (b"en", ["lang=en; Path=/"])
    assert chosen == (b"fr", [])


def test_the_language_example_sets_its_cookie_on_an_error_page_of_flask(examples):
    _, cookies = answer(flask_app(examples), "/missing", HTTP_ACCEPT_LANGUAGE="de-AT,de")
    assert cookies == ["lang=de; Path=/"]


def test_the_helper_far_from_the_request_deletes_its_cookie(examples):
    def app(environ, start_response):
        asyncio.run(examples["log_out"]("alice"))
        return hello(environ, start_response)

    cookie = "session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/"
    assert answer(app) == (b"hello", [cookie])
    assert examples["forgotten"] == "alice"
