"""What people try first, with the packages they have: it works, or its error says what to do."""

from __future__ import annotations

import io
import logging
import pickle
import re
import threading

import pytest
import transaction
from commands import ask, serving
from conftest import Exchange, make_environ, registers, served
from django.db.transaction import atomic, on_commit
from django.http import HttpResponse
from django.test import Client, TestCase
from documents import blocks
from flask import Flask, Request, g, request, session
from flask_executor import Executor
from flask_login import LoginManager, UserMixin, current_user, login_user
from pyramid.config import Configurator
from pyramid.response import Response
from sqlalchemy import func, select
from webtest import TestApp

from wsgi_after import CallbackList
from wsgi_after.django import after_response
from wsgi_after.executor import BoundedThreadPoolExecutor
from wsgi_after.flask import AfterResponse, AfterResponseClient, after_this_response
from wsgi_after.testing import capture, wait_for_callbacks

from .conftest import exchange, flask_app
from .models import Row, with_a_user, with_dbsession

HOOKS = blocks("hand-off.rst")["gunicorn.conf.py"]


def serve(app, view, **options):
    """Serve one request with a view of the app."""
    app.add_url_rule("/", view_func=lambda: view() or "hello", endpoint="view", methods=["POST"])
    assert app.test_client().post("/", **options).status_code == 200


@pytest.fixture
def told(caplog):
    """The last line that is logged for each failure, which is a note if there is one."""
    formatter = logging.Formatter()
    return lambda: [formatter.format(record).splitlines()[-1] for record in caplog.records]


# Flask: app.after_response where the context of a request is pushed.


def test_another_app_can_be_set_up_while_the_context_of_an_app_is_pushed(events):
    """As in a test with pytest-flask, whose fixture pushes one, and in a view that makes an app."""
    first = flask_app("first")

    def make_second():
        second = flask_app(f"second {len(events)}")
        second.after_response(lambda: events.append(request.path))
        second.test_client().get("/missing")

    with first.test_request_context():
        make_second()
        first.after_response(lambda: events.append("first"))
    serve(first, make_second)
    assert events == ["/missing", "/missing", "first"]


# Flask: teardown functions run again after each callback.


def test_a_gauge_of_requests_counts_each_once_as_the_page_says(events):
    app, running = flask_app(), []

    @app.before_request
    def count_up():
        g.counted = True
        running.append(request)

    @app.teardown_request
    def count_down(error):
        if g.pop("counted", False):
            running.pop()
        events.append(len(running))

    serve(app, lambda: [after_this_response(print, end="") for _ in range(2)] and None)
    assert events == [0, 0, 0]


# Flask-Login.


@pytest.fixture
def shop():
    """An app with one user: the view logs the user in, and counts the visit."""
    app = flask_app()
    db, visit = with_a_user(app)

    def view(callbacks, prepare):
        visit()
        for fn in [*callbacks, *([prepare()] if prepare else [])]:
            after_this_response(fn)

    yield lambda *callbacks, prepare=None: serve(app, lambda: view(callbacks, prepare))
    with app.app_context():
        db.engine.dispose()


def test_each_callback_finds_current_user_loaded_anew(shop, events):
    """The view has committed, and its database session has ended, like that of each callback."""
    shop(*[lambda: events.append(current_user.visits)] * 2)
    assert events == [1, 1]


def test_a_user_of_no_database_stays_the_one_of_the_view(events):
    app, user = flask_app(), UserMixin()
    user.id = "ada"
    LoginManager(app).user_loader(lambda id: UserMixin())

    def view():
        login_user(user)
        after_this_response(lambda: events.append(current_user._get_current_object() is user))

    serve(app, view)
    assert events == [True]


@pytest.mark.parametrize("use", ["an object of the view", "current_user without its id"])
def test_a_detached_object_is_explained(shop, told, use):
    def view_and_callback():
        if use == "an object of the view":
            user = current_user._get_current_object()
            return lambda: user.visits
        del session["_user_id"]  # as for a user from a token, whom no session knows
        return lambda: current_user.visits

    shop(prepare=view_and_callback)
    assert told() == [
        "A database session that ended with the view had loaded this object. Pass its id to the "
        "callback, and load it there."
    ]


# Flask: a body that is read after the response.

UPLOAD = (
    "RuntimeError: An uploaded file was used after the response, when Flask had closed it. Save or "
    "read it in the view, and pass the path or the bytes to the callback."
)
BODY = (
    "RuntimeError: The body of the request was read after the response, in another thread than "
    "that of the request, while the server may read the next request there. Read it in the view, "
    "by request.get_data(), request.get_json() or request.form: then the callback finds it, too."
)
BLAMED = (
    "The client may have sent everything. If the view did not read the body, it was read after the "
    "response, when the server had dropped it. Read it in the view, by request.get_data(), "
    "request.get_json() or request.form: then the callback finds it, too."
)


@pytest.mark.parametrize(
    "use",
    [
        lambda file: file.read(),
        lambda file: file.save(io.BytesIO()),
        lambda file: [*file],
        lambda file: file.seek(0),
        lambda file: request.files["file"].readline(),
    ],
    ids=["read", "save", "iterate", "seek", "look up"],
)
def test_a_closed_upload_says_what_to_do(use, told):
    def view():
        after_this_response(use, request.files["file"])
        after_this_response(use, request.files["file"])

    serve(flask_app(), view, data={"file": (io.BytesIO(b"content"), "name.txt")})
    assert told() == [UPLOAD, UPLOAD]


def test_an_upload_that_is_not_closed_can_be_read(events):
    def view():
        file = request.files["file"]
        after_this_response(lambda: events.append(file.read()))

    class StaysOpen(io.BytesIO):
        def close(self):
            """Leave that to the app."""

    class KeepsUploads(Request):
        def _get_file_stream(self, *args, **kwargs):
            return StaysOpen()

    app = flask_app()
    app.request_class = KeepsUploads
    serve(app, view, data={"file": (io.BytesIO(b"content"), "name.txt")})
    assert events == [b"content"]


def test_an_upload_that_flask_has_closed_still_has_its_name(events):
    def view():
        after_this_response(lambda: events.append(request.files["file"].filename))

    serve(flask_app(), view, data={"file": (io.BytesIO(b"content"), "name.txt")})
    assert events == ["name.txt"]


@pytest.mark.parametrize(
    ("read", "sent"),
    [
        (lambda: request.get_data(), {"data": b"1"}),
        (lambda: request.get_json(), {"json": 1}),
        (lambda: request.form["name"], {"data": {"name": "ada"}}),
        (lambda: request.files["file"], {"data": {"file": (io.BytesIO(b"1"), "name.txt")}}),
    ],
    ids=["data", "JSON", "form", "file"],
)
def test_a_pool_does_not_read_what_the_view_has_left(read, sent, told):
    with BoundedThreadPoolExecutor() as pool:
        serve(flask_app(executor=pool), lambda: after_this_response(read) and None, **sent)
    assert told() == [BODY]


@pytest.mark.parametrize(
    ("read", "sent", "found"),
    [(Request.get_json, {"json": {"id": 7}}, {"id": 7}), (Request.get_data, {}, b"")],
    ids=["what the view has read", "an empty body"],
)
def test_a_pool_finds(read, sent, found, events):
    def view():
        if sent:
            read(request)
        after_this_response(lambda: events.append(read(request)))

    with BoundedThreadPoolExecutor() as pool:
        serve(flask_app(executor=pool), view, **sent)
    assert events == [found]


def test_the_client_is_not_blamed_for_a_body_that_the_server_dropped(told):
    body = io.BytesIO(b'{"id": 7}')

    def view():
        after_this_response(body.close)  # as a server does
        after_this_response(request.get_json)

    serve(flask_app(), view, input_stream=body, content_length=9, content_type="application/json")
    assert told() == [BLAMED]


# Flask-Executor.


@pytest.mark.parametrize("early", [True, False], ids=["Executor(app)", "init_app"])
def test_flask_executor_runs_the_callbacks_in_its_pool(early, events, told):
    app = Flask("shop")
    executor = Executor(app) if early else Executor()
    AfterResponse(app, executor=executor)
    executor.init_app(app)
    app.test_client_class = AfterResponseClient

    def note(what):
        events.append((what, threading.current_thread() is threading.main_thread()))

    def view():
        g.name = "ada"
        after_this_response(lambda: note(f"{g.name} {request.path}"))
        request.environ["wsgi.after"](note, "plain")

    serve(app, view)
    executor.shutdown()
    assert events == [("ada /", False), ("plain", False)]
    assert told() == []


# Django: on_commit in a TestCase.


TOO_LATE = (
    "after_response() was called within a transaction, when the response had been closed and the "
    "callbacks of its request had run. The usual cause is captureOnCommitCallbacks(execute=True) "
    "in a TestCase: it calls what on_commit() was given only then, while a real commit comes "
    "before the end of the response. Use after_commit(request, fn, ...) of wsgi_after.django: it "
    "waits for both, whichever comes last."
)


def test_after_response_in_on_commit_of_a_test_case_names_the_cause(handler, sqlite):
    sqlite("default")

    def view(request):
        on_commit(lambda: after_response(request, print))
        return HttpResponse("hello")

    handler(view)
    captured = TestCase.captureOnCommitCallbacks(execute=True)
    with pytest.raises(RuntimeError) as raised, atomic(), captured:
        Client().get("/")
    assert str(raised.value) == TOO_LATE


def test_so_it_does_in_any_transaction_that_is_open_when_the_request_is_over(handler, sqlite):
    sqlite("shop")
    requests = []
    app = handler(lambda request: requests.append(request) or HttpResponse("hello"))
    exchange(app).finish()
    with atomic("shop"), pytest.raises(RuntimeError) as raised:
        after_response(requests[0], print)
    assert str(raised.value) == TOO_LATE


# Pyramid: request.dbsession in a callback.


@pytest.fixture
def stored_by(sessions):
    """Serve a request with this callback; return how many rows are stored."""

    def stored_by(callback, *, explicit=False, **environ):
        def view(request):
            request.dbsession.scalar(select(func.count(Row.id)))
            request.after(callback, request)
            return Response("hello")

        settings = {"tm.manager_hook": "pyramid_tm.explicit_manager"} if explicit else {}
        with Configurator(settings=settings) as config:
            with_dbsession(config, sessions)
            config.include("wsgi_after.pyramid")
            config.add_route("index", "/")
            config.add_view(view, route_name="index")
            TestApp(config.make_wsgi_app()).get("/", extra_environ=environ)
        transaction.abort()  # as the next request of the thread does
        with sessions() as session:
            return session.scalar(select(func.count(Row.id))) or 0

    return stored_by


def add(request):
    request.dbsession.add(Row())


def add_and_fail(request):
    add(request)
    request.dbsession.flush()
    raise LookupError("on purpose")


def add_in_a_transaction(request):
    with request.tm:
        add(request)


@pytest.mark.parametrize(
    ("callback", "explicit", "stored", "said"),
    [
        (add, False, 1, []),
        (add_and_fail, False, 0, ["LookupError: on purpose"]),
        (add_in_a_transaction, False, 1, []),
        (add_in_a_transaction, True, 1, []),
        (
            add,
            True,
            0,
            [
                "The transaction of the request is over when its callbacks run. Begin one of the "
                "callback's own: with request.tm: ..."
            ],
        ),
    ],
)
def test_a_row_on_request_dbsession_is_stored_or_told(
    callback, explicit, stored, said, stored_by, told
):
    assert stored_by(callback, explicit=explicit) == stored
    assert told() == said


def test_a_transaction_that_a_test_has_begun_around_the_request_stays_its_own(stored_by):
    """As in the tests of Pyramid's cookiecutter: everything is rolled back at the end."""
    manager = transaction.TransactionManager()
    manager.begin()
    rows = stored_by(add, **{"tm.active": True, "tm.manager": manager})
    manager.abort()
    assert rows == 0


# gunicorn: a worker that ends has a pool.

POOL = """
import time
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        time.sleep(60)
    environ["wsgi.after"](mail, environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "0")])
    return []

def mail(path):
    time.sleep(3600)

pool = BoundedThreadPoolExecutor(max_workers=1)
application = AfterResponseMiddleware(app, executor=pool)
"""


@pytest.mark.servers
def test_a_worker_that_hangs_names_the_requests_whose_mails_are_lost(tmp_path):
    (tmp_path / "pool.py").write_text(POOL, encoding="utf-8")
    (tmp_path / "gunicorn.conf.py").write_text(HOOKS, encoding="utf-8")
    command = "gunicorn --bind 127.0.0.1:8000 --timeout 2 pool:application"
    with serving(command, tmp_path) as port:
        for path in ("/hour", "/1", "/2", "/hang"):
            ask(port, path)
        log = (tmp_path / "log").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^The callbacks of (.*) are lost:", log) == ["GET /1", "GET /2"]


# A live server in a test.


@pytest.mark.parametrize("in_pool", [False, True], ids=["close()", "pool"])
def test_a_test_waits_until_a_live_server_has_run_the_callbacks(in_pool, events):
    pool, gate = BoundedThreadPoolExecutor(), threading.Event()
    callbacks = [lambda: gate.wait(60), lambda: events.append("ran")]
    executor = {"executor": pool} if in_pool else {}
    with served(registers(*callbacks, **executor)) as port:
        ask(port, "/")
        with pytest.raises(TimeoutError, match=r"^After 0 seconds, the callbacks of 1 requests"):
            wait_for_callbacks(0)
        events.append("not yet")
        threading.Timer(0.5, gate.set).start()
        wait_for_callbacks()
        assert events == ["not yet", "ran"]


def test_nothing_is_waited_for_that_is_not_to_come():
    """Requests that a capture() has, that went to another process, and a list made by hand."""

    class Sends:
        def submit(self, *job):
            pickle.dumps(job)

    by_hand = CallbackList([print])
    with capture() as captured:
        Exchange(registers(print)).finish()
    Exchange(registers(print, executor=Sends())).finish()
    wait_for_callbacks(0)
    assert (len(by_hand), len(captured)) == (1, 1)


def test_a_response_that_nobody_closes_is_waited_for_and_named():
    exchange = Exchange(registers(print))
    with pytest.raises(TimeoutError, match=r"\[\[<built-in function print>\]\]"):
        wait_for_callbacks(0)
    exchange.finish()
    wait_for_callbacks(0)


def dropped_in_a_cycle(callback):
    """A response that nobody closes, for the garbage collector to find."""
    cycle = [Exchange(registers(callback))]
    cycle.append(cycle)


@pytest.mark.filterwarnings("ignore:The response of:ResourceWarning")
def test_what_nobody_will_close_runs_first(events):
    dropped_in_a_cycle(lambda: events.append("ran"))
    wait_for_callbacks(0)
    assert events == ["ran"]


@pytest.mark.filterwarnings("ignore:The response of:ResourceWarning")
def test_what_ends_the_test_run_goes_through():
    def interrupt():
        raise KeyboardInterrupt

    dropped_in_a_cycle(interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait_for_callbacks(0)


def test_a_callback_cannot_wait_for_itself(events):
    def wait():
        with pytest.raises(RuntimeError, match=r"would wait for itself\. Call it in the test"):
            wait_for_callbacks()
        events.append("refused")

    Exchange(registers(wait), make_environ()).finish()
    assert events == ["refused"]
