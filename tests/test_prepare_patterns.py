"""Patterns that people use elsewhere, run with nothing but the import changed.

Each application here takes the function that it would have imported, so that the same code runs
with the recipe it was written for and with ours.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

import flask
import pytest
from conftest import Exchange, hello, make_environ
from werkzeug.sansio.response import Response

import wsgi_after
from wsgi_after import AfterResponseMiddleware


def get(application, path="/", **extra):
    exchange = Exchange(application, make_environ(PATH_INFO=path, SCRIPT_NAME="", **extra))
    body = b"".join(exchange.result)
    if hasattr(exchange.result, "close"):  # a recipe may return the list of the app
        exchange.result.close()
    return exchange.started[0][0], exchange.started[0][1], body


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


def log_app(application):
    """The application has ``after_response``, as in the well-known recipe."""
    log = logging.getLogger("access")

    @application.after_response
    def log_request(environ):
        after = environ["wsgi.after"]
        log.info("%s %s %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], after.status)

    return application


def test_the_log_after_the_request_has_the_path_and_the_status_that_was_sent(caplog):
    """That is the status after response callbacks, in order behind the response."""
    app = language_app(lambda app: wsgi_after.after_this_request)

    @app.route("/teapot")
    def teapot():
        @wsgi_after.after_this_request
        def change(response):
            response.status_code = 418

        return "tea"

    caplog.set_level(logging.INFO, "access")
    application = log_app(AfterResponseMiddleware(app))
    for path in ["/", "/missing", "/teapot"]:
        get(application, path)
    assert [record.getMessage() for record in caplog.records if record.name == "access"] == [
        "GET / 200 OK",
        "GET /missing 404 NOT FOUND",
        "GET /teapot 418 I'M A TEAPOT",
    ]


def test_a_view_logs_its_own_request_after_the_response(caplog):
    """The other shape of it: from deep in the request, with what the code knows there."""

    @AfterResponseMiddleware
    def application(environ, start_response):
        after = environ["wsgi.after"]

        @wsgi_after.after_this_response
        def log():
            logging.getLogger("access").info("%s %s", environ["PATH_INFO"], after.status)

        return hello(environ, start_response)

    caplog.set_level(logging.INFO, "access")
    get(application, "/deep")
    assert caplog.messages == ["/deep 200 OK"]
