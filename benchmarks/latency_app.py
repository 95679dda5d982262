"""The apps of :mod:`benchmarks.latency`: ``/WAY/RESPONSE``, each way to run 50 ms of work."""

import time

import flask
from flask import request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

WORK = 0.05  # seconds
BODY = b"Hello, world!\n"


def work():
    """Work that the response does not need, such as sending a mail."""
    time.sleep(WORK)


def respond(response):
    """``sized`` has a Content-Length; ``stream``, a generator, has none."""
    body = BODY if response == "sized" else iter([BODY, BODY])
    return flask.Response(body, content_type="text/plain")


def make_app(view=None):
    """A Flask app whose view calls ``view`` before it responds."""
    app = flask.Flask(__name__)

    @app.route("/<response>")
    def hello(response):
        if view is not None:
            view()
        return respond(response)

    return app


def register():
    """Register the work for after the response."""
    request.environ["wsgi.after"].append(work)


def after_request_app():
    """With Flask's hook of that name, which runs before the response is sent."""
    app = make_app()

    @app.after_request
    def work_first(response):
        work()
        return response

    return app


WAYS = {
    "none": make_app(),
    "view": make_app(work),
    "after_request": after_request_app(),
    "callback": AfterResponseMiddleware(make_app(register)),
    "executor": AfterResponseMiddleware(make_app(register), executor=BoundedThreadPoolExecutor()),
}

# The server gets what the app returns: the dispatcher wraps nothing.
application = DispatcherMiddleware(make_app(), {f"/{way}": app for way, app in WAYS.items()})
