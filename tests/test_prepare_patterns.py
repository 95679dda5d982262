"""Code that people use elsewhere, run with nothing but the import changed; docs/prepare.rst.

Each application here takes the function that it would have imported, so that the same code runs
with the recipe it was written for and with ours. The examples of the page are run as they stand.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from importlib import import_module
from types import SimpleNamespace

import flask
import pytest
import werkzeug.http
from conftest import Exchange, hello, make_environ
from documents import blocks
from werkzeug.sansio.response import Response

import wsgi_after
from wsgi_after import AfterResponseMiddleware


def get(application, path="/", **extra):
    """The status, the headers and the body of one request."""
    exchange = Exchange(application, make_environ(PATH_INFO=path, SCRIPT_NAME="", **extra))
    body = b"".join(exchange.result)
    if hasattr(exchange.result, "close"):  # a recipe may return the list of the app
        exchange.result.close()
    return *exchange.started[0][:2], body


# The deferred callback on Flask's g


def deferred_on_g(app):
    """The recipe: callbacks wait on ``g`` until the response is there."""

    def after_this_request(fn):
        flask.g.setdefault("deferred", []).append(fn)
        return fn

    @app.after_request
    def run_deferred(response):
        for fn in flask.g.get("deferred", ()):
            fn(response)
        return response

    return after_this_request


def flasks_own(app):
    return flask.after_this_request


def ours(app):
    app.wsgi_app = AfterResponseMiddleware(app.wsgi_app)
    return wsgi_after.after_this_request


def language_app(implementation):
    """A hook that has no response yet asks for a cookie in it."""
    app = flask.Flask("example")
    after_this_request = implementation(app)

    @app.before_request
    def choose_language():
        language = flask.request.cookies.get("user_lang")
        if language is None:
            language = flask.request.accept_languages.best_match(["en", "de"], "en")

            @after_this_request
            def remember_language(response):
                response.set_cookie("user_lang", language)
                response.headers.add("X-First", "1")
                return response

            @after_this_request
            def second(response):
                response.headers.add("X-Second", response.headers["X-First"])
                return response

        flask.g.language = language

    @app.route("/")
    def view():
        response = flask.make_response(flask.g.language)
        response.set_cookie("view", "1")
        return response

    @app.route("/fails")
    def fails():
        flask.abort(404)

    return app


@pytest.mark.parametrize("path", ["/", "/fails", "/missing"])
@pytest.mark.parametrize("cookie", ["", "user_lang=fr"])
@pytest.mark.parametrize("recipe", [deferred_on_g, flasks_own])
def test_the_deferred_callback_on_flasks_g_gives_the_same_response(recipe, cookie, path):
    extra = {"HTTP_ACCEPT_LANGUAGE": "de-AT, de", "HTTP_COOKIE": cookie}
    theirs = get(language_app(recipe), path, **extra)
    assert get(language_app(ours), path, **extra) == theirs
    assert ("X-Second", "1") in theirs[1] or cookie


# The context variable of aiohttp, with functions run as the response is prepared


def contextvar_recipe(app):
    """The recipe: a list in a context variable, run in order as the response is prepared."""
    waiting = ContextVar("waiting")

    def after_this_request(fn):
        waiting.get().append(fn)
        return fn

    def application(environ, start_response):
        waiting.set([])

        def prepare(status, headers, *exc_info):
            response = Response(status, headers)
            for fn in waiting.get():
                fn(response)
            return start_response(response.status, response.headers.to_wsgi_list(), *exc_info)

        return app(environ, prepare)

    return application, after_this_request


def our_context(app):
    return AfterResponseMiddleware(app), wsgi_after.after_this_request


USER: ContextVar[str] = ContextVar("user")


def session_app(implementation):
    """Helpers far from the request, which see it only by way of context variables."""

    def forget_session():
        user = USER.get()

        @after_this_request
        def forget(response):
            response.delete_cookie("session")
            response.headers.add("X-Trace", f"forgot {user}")

    def audit(word):
        after_this_request(lambda response: response.headers.add("X-Trace", word))

    def app(environ, start_response):
        USER.set(environ["PATH_INFO"][1:])
        audit("first")
        forget_session()
        audit("last")
        return hello(environ, start_response)

    application, after_this_request = implementation(app)
    return application


def test_the_context_variable_pattern_gives_the_same_response_in_the_same_order():
    theirs, mine = (get(session_app(kind), "/alice") for kind in (contextvar_recipe, our_context))
    assert mine == theirs
    trace = [value for name, value in mine[1] if name == "X-Trace"]
    assert trace == ["first", "forgot alice", "last"]


# Logging after the request, with status and path at hand


def test_the_log_after_the_request_has_the_path_and_the_status_that_was_sent(caplog):
    """``after_response`` as in the well-known recipe, and the same from deep in the request.

    The status is that after response callbacks.
    """
    app, log = flask.Flask("example"), logging.getLogger("access")

    @app.route("/teapot")
    def teapot():
        after = flask.request.environ["wsgi.after"]

        @wsgi_after.after_this_request
        def change(response):
            response.status_code = 418

        @wsgi_after.after_this_response
        def log_here():
            log.info("deep: %s", after.status)

        return "tea"

    application = AfterResponseMiddleware(app)

    @application.after_response
    def log_request(environ):
        after = environ["wsgi.after"]
        log.info("%s %s %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], after.status)

    caplog.set_level(logging.INFO, "access")
    for path in ["/missing", "/teapot"]:
        get(application, path)
    assert [record.getMessage() for record in caplog.records if record.name == "access"] == [
        "GET /missing 404 NOT FOUND",
        "GET /teapot 418 I'M A TEAPOT",
        "deep: 418 I'M A TEAPOT",
    ]


# The examples of docs/prepare.rst


@pytest.fixture
def examples():
    """What the examples define, with the names that they take from their surroundings."""
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


def plain_app(examples):
    return examples.wsgi_app


def flask_app(examples):
    examples.flask_app.add_url_rule("/", view_func=lambda: flask.g.language)
    return examples.flask_app


def django_app(examples):
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.utils import override_settings
    from django.urls import path

    if not settings.configured:
        settings.configure()
    urls = type("Urls", (), {"urlpatterns": [path("", examples.django_view)]})
    with_urls = override_settings(ROOT_URLCONF=urls, MIDDLEWARE=[], ALLOWED_HOSTS=["*"])
    return lambda environ, start_response: with_urls(WSGIHandler())(environ, start_response)


def pyramid_app(examples):
    from pyramid.config import Configurator

    config = Configurator()
    config.add_route("index", "/")
    config.add_view(examples.pyramid_view, route_name="index")
    return config.make_wsgi_app()


def answer(app, **headers):
    """The body and the cookies."""
    _, sent, body = get(AfterResponseMiddleware(app), **headers)
    return body, [value for name, value in sent if name == "Set-Cookie"]


# Pyramid 2 imports pkg_resources, and setuptools warns.
@pytest.mark.filterwarnings("ignore:.*pkg_resources")
@pytest.mark.parametrize("framework", [plain_app, flask_app, django_app, pyramid_app])
def test_the_language_example_sets_its_cookie_behind_any_framework(examples, framework):
    app = framework(examples)
    german = answer(app, HTTP_ACCEPT_LANGUAGE="de-AT,de")
    assert german == (b"de", ["lang=de; Path=/"])
    assert answer(app) == (b"en", ["lang=en; Path=/"])
    assert answer(app, HTTP_COOKIE="lang=fr") == (b"fr", [])


@pytest.mark.filterwarnings("ignore:.*pkg_resources")
def test_the_helper_far_from_the_request_deletes_its_cookie(examples):
    def app(environ, start_response):
        asyncio.run(examples.log_out("alice"))
        return hello(environ, start_response)

    cookie = "session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/"
    assert answer(app) == (b"hello", [cookie])
    assert examples.forgotten == ["alice"]
