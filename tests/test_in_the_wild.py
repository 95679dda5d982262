"""What public projects wrote by hand, done with this package in the shape of their code.

Each test has the frameworks of the original. Three lines replace its code, without the queues,
thread-locals and signal handlers that it needed.
"""

from __future__ import annotations

import celery
import flask
import pytest
from conftest import Exchange, hello, make_environ
from pyramid.config import Configurator
from pyramid.response import Response as PyramidResponse
from webtest import TestApp
from werkzeug.wrappers import Request, Response

from wsgi_after import (
    AfterResponseMiddleware,
    after_this_response,
    after_this_response_or_now,
    current_list,
)


def flask_app(view, status=200):
    app = flask.Flask(__name__)
    app.add_url_rule("/", view_func=lambda: (view() or "body", status))
    app.wsgi_app = AfterResponseMiddleware(app.wsgi_app)
    return TestApp(app)


def pyramid_app(view, *includes):
    with Configurator() as config:
        for name in ["wsgi_after.pyramid", *includes]:
            config.include(name)
        config.add_route("index", "/")
        config.add_view(view, route_name="index")
    return TestApp(config.make_wsgi_app())


def test_frappe_counts_records_runs_what_the_request_added_and_destroys_at_last(events):
    """Frappe gives four functions to a ClosingIterator: if one fails, the rest are lost."""

    @Request.application
    def app(request):
        request.environ["wsgi.after"](events.append, "first")
        request.environ["wsgi.after"](lambda: 1 / 0)
        request.environ["wsgi.after"](events.append, "last")
        return Response("body")

    application = AfterResponseMiddleware(app)
    application.after_response(lambda environ: events.append("rate limit"))
    application.after_response(lambda environ: environ["wsgi.after"](events.append, "destroy"))

    Exchange(application).finish()
    assert events == ["rate limit", "first", "last", "destroy"]


@pytest.mark.parametrize(("status", "done"), [(200, [1, 2]), (400, []), (500, [])])
def test_osf_runs_a_task_once_per_request_if_that_succeeded(status, done, events):
    """OSF hashes the repr() of the arguments, and drops its queue from status 500 on, not 400."""

    def run_postcommit(fn):
        after = current_list()
        return lambda *args: after.on_success(after.once, fn, *args)

    def view():
        for node in (1, 1, 2):
            run_postcommit(events.append)(node)

    flask_app(view, status).get("/", status=status)
    assert events == done


@pytest.mark.parametrize(("status", "done"), [(200, [["old", "new"]]), (412, [])])
def test_kinto_tells_its_subscribers_once_what_a_batch_has_changed(status, done, events):
    """Kinto groups the changes in a dict of the request, and reports them after the commit."""

    def view(request):
        impacted = []
        for record in ("old", "new"):
            impacted.append(record)
            request.after.on_success(request.after.once, events.append, impacted)
        return PyramidResponse(status=status)

    pyramid_app(view).get("/", status=status)
    assert events == done


class SentLater(celery.Task):
    """A task that is sent after a request's response, if that is a success; elsewhere at once.

    If one request sends it twice with the same arguments, it goes out once.
    """

    def apply_async(self, args=None, kwargs=None, **options):
        after, send = current_list(), super().apply_async
        if after is None:
            return send(args, kwargs, **options)
        return after.on_success(after.once, send, args, kwargs, **options)


@pytest.fixture
def task(events):
    app = celery.Celery("tasks", task_cls=SentLater, set_as_current=False, broker="memory://")
    app.conf.task_always_eager = True

    @app.task
    def note(*args):
        events.append(args)

    return note


@pytest.mark.parametrize(("status", "done"), [(303, [("ada",)]), (500, [])])
def test_warehouse_sends_a_task_when_the_transaction_of_its_request_is_over(
    status, done, task, events
):
    """Warehouse's task class finds Pyramid's threadlocal request, and hooks its transaction."""

    def view(request):
        request.tm.get().addAfterCommitHook(lambda committed: events.append("over"))
        task.delay("ada")
        return PyramidResponse(status=status)

    pyramid_app(view, "pyramid_tm").get("/", status=status)
    assert events == ["over", *done]


@pytest.mark.parametrize(("status", "done"), [("200 OK", [(1,), (2,)]), ("500 Error", [])])
def test_django_post_request_task_drops_doubles_and_what_an_error_makes_void(
    status, done, task, events
):
    """The project connects three signals of Django to a queue of the thread."""

    def app(environ, start_response):
        for number in (1, 1, 2):
            task.delay(number)
        start_response(status, [])
        return []

    Exchange(AfterResponseMiddleware(app)).finish()
    task.delay(3)  # at once, outside a request
    assert events == [*done, (3,)]


@pytest.mark.parametrize(
    ("in_request", "order"), [(True, ["saved", "mail to ada"]), (False, ["mail to ada", "saved"])]
)
def test_indico_queues_a_mail_in_a_request_and_sends_it_at_once_in_a_script(
    in_request, order, events
):
    """Indico queues the mails of a request until the request has committed."""

    def send_email(address="ada"):
        after_this_response_or_now(events.append, f"mail to {address}")
        events.append("saved")

    if in_request:
        flask_app(send_email).get("/")
    else:
        send_email()
    assert events == order


def test_the_blue_alliance_sends_its_traces_behind_what_views_have_deferred(events):
    """The project's middleware is a ClosingIterator; code below the view has no environ."""

    def clear_cache():
        after_this_response(events.append, "cleared")
        after_this_response(events.append, "traces sent")
        events.append("view")

    flask_app(clear_cache).get("/")
    assert events == ["view", "cleared", "traces sent"]


def test_a_sample_of_google_cloud_defers_each_call_of_a_decorated_function(events):
    """The sample has one list for the whole application: a request runs what others deferred."""

    def app(environ, start_response):
        after_this_response(events.append, environ["PATH_INFO"])
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    first, second = (Exchange(application, make_environ(PATH_INFO=path)) for path in "12")
    second.finish()
    assert events == ["2"]
    first.finish()
    assert events == ["2", "1"]
