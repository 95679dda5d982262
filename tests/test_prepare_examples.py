"""The examples of docs/prepare.rst are run as they stand there."""

from __future__ import annotations

import asyncio
from importlib import import_module
from types import SimpleNamespace

import pytest
import werkzeug.http
from conftest import Exchange, hello, make_environ
from documents import blocks

from wsgi_after import AfterResponseMiddleware

# Pyramid 2 imports it, and setuptools warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources")


@pytest.fixture
def examples():
    """What the examples define, with the names that they take from their surroundings."""
    import flask

    forgotten = []

    async def forget_sessions(user):
        forgotten.append(user)

    names = {
        "__name__": "examples",
        "werkzeug": werkzeug,
        "flask": flask,
        "flask_app": flask.Flask("example"),
        "HttpResponse": import_module("django.http").HttpResponse,
        "Response": import_module("pyramid.response").Response,
        "forget_sessions": forget_sessions,
        "forgotten": forgotten,
    }
    for block in blocks("prepare.rst").values():
        exec(block, names)
    return SimpleNamespace(**names)


def plain(examples):
    return examples.wsgi_app


def flask(examples):
    examples.flask_app.add_url_rule("/", view_func=lambda: examples.flask.g.language)
    return examples.flask_app


def django(examples):
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.utils import override_settings
    from django.urls import path

    if not settings.configured:
        settings.configure()
    urls = type("Urls", (), {"urlpatterns": [path("", examples.django_view)]})

    def application(environ, start_response):
        with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=[], ALLOWED_HOSTS=["*"]):
            return WSGIHandler()(environ, start_response)

    return application


def pyramid(examples):
    from pyramid.config import Configurator

    config = Configurator()
    config.add_route("index", "/")
    config.add_view(examples.pyramid_view, route_name="index")
    return config.make_wsgi_app()


def answer(app, **headers):
    exchange = Exchange(
        AfterResponseMiddleware(app), make_environ(PATH_INFO="/", SCRIPT_NAME="", **headers)
    )
    body = b"".join(exchange.finish())
    return body, [value for name, value in exchange.started[0][1] if name == "Set-Cookie"]


@pytest.mark.parametrize("framework", [plain, flask, django, pyramid])
def test_the_language_example_sets_its_cookie_behind_any_framework(examples, framework):
    app = framework(examples)
    german = answer(app, HTTP_ACCEPT_LANGUAGE="de-AT,de")
    assert german == (b"de", ["lang=de; Path=/"])
    assert answer(app) == (b"en", ["lang=en; Path=/"])
    assert answer(app, HTTP_COOKIE="lang=fr") == (b"fr", [])


def test_the_helper_far_from_the_request_deletes_its_cookie(examples):
    def app(environ, start_response):
        asyncio.run(examples.log_out("alice"))
        return hello(environ, start_response)

    cookie = "session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/"
    assert answer(app) == (b"hello", [cookie])
    assert examples.forgotten == ["alice"]
