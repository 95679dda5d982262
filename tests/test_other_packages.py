"""The recipes of docs/observability.rst and docs/flask.rst that involve other packages."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from wsgiref.util import FileWrapper

import flask
import pytest
import sentry_sdk
import structlog
from commands import ask, serving
from conftest import Exchange, registers, served
from documents import blocks, executed
from prometheus_client import REGISTRY
from werkzeug.test import Client

from wsgi_after import AfterResponseMiddleware

PAGE = blocks("observability.rst")


def test_prometheus_has_durations_and_failures():
    measured = executed(PAGE["prometheus.py"])["measured"]
    with served(measured(registers(lambda: None, lambda: 1 / 0))) as port:
        ask(port, "/")
    assert REGISTRY.get_sample_value("callback_seconds_count") == 2
    failed = REGISTRY.get_sample_value("callback_failures_total", {"error": "ZeroDivisionError"})
    assert failed == 1


def test_the_access_log_has_the_number_of_bytes(caplog, events):
    class Body(list):
        def close(self):
            events.append("closed")

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Body([b"four", b"more"])

    caplog.set_level(logging.INFO, "access")
    with served(executed(PAGE["access_log.py"])["with_access_log"](app)) as port:
        assert ask(port, "/report") == (200, "fourmore")
    assert (caplog.messages, events) == (["GET /report 200 OK 8"], ["closed"])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_copy_of_the_context_brings_structlog_and_sentry_along(pooled, events):
    def send_mail(address):
        scope = sentry_sdk.get_isolation_scope()
        events.append([address, structlog.contextvars.get_contextvars(), scope._tags])

    order = executed(PAGE["in_context.py"], send_mail=send_mail)["order"]

    def app(environ, start_response):
        def request():
            structlog.contextvars.bind_contextvars(request_id="7")
            with sentry_sdk.isolation_scope() as scope:
                scope.set_tag("request_id", "7")
                return order(environ, start_response)

        return copy_context().run(request)  # the framework's context, which it then leaves

    with ThreadPoolExecutor() as pool:
        executor = pool if pooled else None
        Exchange(AfterResponseMiddleware(app, executor=executor)).finish()
    assert events == [["ada@example.com", {"request_id": "7"}, {"request_id": "7"}]]


def test_a_file_is_deleted_when_it_has_been_sent(tmp_path):
    """On gunicorn, which sends it by sendfile: there, werkzeug's call_on_close is never called."""
    page = blocks("flask.rst")
    (tmp_path / "download.py").write_text(page["download.py"], encoding="utf-8")
    with serving("gunicorn --bind 127.0.0.1:8000 download:app", tmp_path) as port:
        path, _, rest = ask(port, "/export")[1].partition("\n")
        assert (ask(port, f"/is-there?path={path}"), rest) == ((200, "False"), "a report")


def test_werkzeugs_call_on_close_is_not_called_where_the_server_sends_the_file(tmp_path, events):
    (tmp_path / "file").write_text("body")
    app = flask.Flask(__name__)

    @app.get("/")
    def view():
        response = flask.send_file(tmp_path / "file")
        response.call_on_close(lambda: events.append("called"))
        return response

    environ = {"wsgi.file_wrapper": FileWrapper}
    Client(app).get("/", environ_overrides=environ).close()
    assert events == []
