"""docs/why.rst: when the alternatives run their callbacks, and which they lose."""

from __future__ import annotations

import flask
import pytest
from conftest import make_environ
from django.conf import settings
from django.core.signals import request_finished
from django.http import HttpResponse
from flask_executor import Executor
from werkzeug.wrappers import Response


def serve(app, events):
    """Serve one request, noting when headers and body go out, and when the body is closed."""

    def start_response(*args):
        events.append("headers")

    body = app(make_environ(PATH_INFO="/"), start_response)
    events.extend("body" for _ in body)
    events.append("close")
    getattr(body, "close", lambda: None)()


def test_flask_runs_its_functions_before_the_headers_and_before_the_body(events):
    app = flask.Flask(__name__)
    app.after_request(lambda response: events.append("after_request") or response)
    app.teardown_request(lambda error: events.append("teardown_request"))
    app.add_url_rule("/", view_func=lambda: "hello")
    serve(app, events)
    assert events == ["after_request", "headers", "teardown_request", "body", "close"]


def test_flask_executor_runs_at_once_and_its_future_keeps_the_exception(events):
    app = flask.Flask(__name__)
    executor, futures = Executor(app), []

    def view():
        futures.append(executor.submit(lambda: events.append("submitted") or 1 / 0))
        assert isinstance(futures[0].exception(), ZeroDivisionError)
        return "hello"

    app.add_url_rule("/", view_func=view)
    serve(app, events)
    executor.shutdown()
    assert events == ["submitted", "headers", "body", "close"]


@pytest.mark.filterwarnings("ignore:.*pkg_resources")  # Pyramid imports it
def test_pyramid_runs_its_callbacks_before_any_byte(events):
    import pyramid.config
    import pyramid.response

    def view(request):
        request.add_response_callback(lambda request, response: events.append("response"))
        request.add_finished_callback(lambda request: events.append("finished"))
        return pyramid.response.Response("hello")

    with pyramid.config.Configurator() as config:
        config.add_route("index", "/")
        config.add_view(view, route_name="index")
        serve(config.make_wsgi_app(), events)
    assert events == ["response", "finished", "headers", "body", "close"]


def test_werkzeug_runs_them_on_close_and_loses_the_rest_when_one_raises(events):
    response = Response("hello")
    response.call_on_close(lambda: events.append("first"))
    response.call_on_close(lambda: 1 / 0)
    response.call_on_close(lambda: events.append("lost"))
    with pytest.raises(ZeroDivisionError):
        serve(response, events)
    assert events == ["headers", "body", "close", "first"]


def test_django_sends_its_signal_on_close_and_loses_the_rest_when_one_raises(events):
    receivers = [
        lambda **kwargs: events.append("first"),
        lambda **kwargs: 1 / 0,
        lambda **kwargs: events.append("lost"),
    ]
    for receiver in receivers:
        request_finished.connect(receiver)
    settings.configured or settings.configure()
    response = HttpResponse("hello")
    with pytest.raises(ZeroDivisionError):
        serve(lambda *args: response, events)
    for receiver in receivers:
        request_finished.disconnect(receiver)
    assert events == ["body", "close", "first"]
