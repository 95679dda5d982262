"""wsgi_after.django, without a server: Django's own handlers and clients call it."""

from __future__ import annotations

import asyncio
import gc
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from conftest import hello
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import OperationalError, close_old_connections, connections, transaction
from django.db.backends.signals import connection_created
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseNotModified,
    StreamingHttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from flask import Flask

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response
from wsgi_after._frameworks.django_cleanup import close_again
from wsgi_after.django import AfterResponseMiddleware as EntryOfMiddleware
from wsgi_after.django import after_response
from wsgi_after.testing import capture

from .conftest import exchange

ENTRY = "wsgi_after.django.AfterResponseMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"  # does nothing here
WRAPPED = pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])


def wrap(app, wrapped):
    return AfterResponseMiddleware(app) if wrapped else app


def registers(*callbacks):
    """A view that registers these callbacks."""

    def view(request):
        for callback in callbacks:
            after_response(request, callback)
        return HttpResponse("hello")

    return view


# Middlewares, by name in MIDDLEWARE.


def not_modified(get_response):
    """Answers with its own response, like Django's middleware for conditional requests."""
    return lambda request: get_response(request) and HttpResponseNotModified()


cookies_seen = {}


def seen(get_response):
    """Records the cookies that it sees."""

    def middleware(request):
        response = get_response(request)
        cookies_seen.clear()
        cookies_seen.update({name: cookie.value for name, cookie in response.cookies.items()})
        return response

    return middleware


# The entry.


def test_a_response_that_a_middleware_before_the_entry_dropped_is_closed_with_a_warning(
    handler, events
):
    answer_differently = f"{__name__}.not_modified"
    app = handler(registers(lambda: events.append("callback")), answer_differently, ENTRY)
    with pytest.warns(ResourceWarning, match="GET / was never closed"):
        exchange(app).finish()
        gc.collect()
    assert events == ["callback"]


def test_the_entry_may_be_there_twice(handler, events):
    exchange(handler(registers(lambda: events.append("callback")), ENTRY, ENTRY)).finish()
    assert events == ["callback"]


def test_an_asynchronous_view_registers(handler, events):
    async def view(request):
        await asyncio.sleep(0)
        after_this_response(events.append, "first")
        after_response(request, events.append, "second")
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == ["first", "second"]


def test_a_request_without_a_list_says_what_is_missing(handler):
    app = handler(registers(int), COMMON, DEBUG_PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(ImproperlyConfigured, match=ENTRY):
        exchange(app)
    for made_by_hand in (RequestFactory().get("/"), HttpRequest()):
        with pytest.raises(ImproperlyConfigured, match=f"{ENTRY}.*RequestFactory"):
            after_response(made_by_hand, int)


def test_asgi_is_refused_when_the_process_starts_or_with_each_request(handler):
    """The latter if the entry stands before a synchronous middleware."""
    handler(HttpResponse)
    with pytest.raises(ImproperlyConfigured, match=r"Serve the project's wsgi\.py"):
        ASGIHandler()
    handler(HttpResponse, ENTRY, f"{__name__}.not_modified")
    with pytest.raises(ImproperlyConfigured, match=r"Serve the project's wsgi\.py"):
        asyncio.run(AsyncClient().get("/"))


def test_in_djangos_client_they_have_run_when_the_response_has_been_read(handler, events):
    def view(request):
        after_response(request, events.append, "callback")
        return (
            StreamingHttpResponse(iter([b"hello"])) if "stream" in request.GET else HttpResponse()
        )

    handler(view)
    Client().get("/")
    assert events.pop() == "callback"
    response = Client().get("/?stream")
    assert events == []
    assert (response.getvalue(), events.pop()) == (b"hello", "callback")
    Client().get("/?stream").close()
    assert events == ["callback"]


# Response callbacks.


def sets(response):
    response.set_cookie("lang", "de", max_age=60, secure=True, samesite="Lax")
    response.set_cookie("session", 'a "b"', partitioned=True)


def takes_away(response):
    kept = [value for value in response.headers.getlist("Set-Cookie") if "kept" in value]
    response.headers.setlist("Set-Cookie", kept)


def changes_the_rest(response):
    response.status = "418 I'm a teapot"
    del response.headers["Content-Type"]
    response.headers.add("Link", "</a>")
    response.headers.add("Link", "</b>")


OK, TEXT = "200 OK", ("Content-Type", "text/plain")
KEPT, DROPPED = 'kept="k\\073v" HttpOnly Path=/', "dropped=d Path=/"
LANG = "lang=de Max-Age=60 Path=/ SameSite=Lax Secure"
SESSION = 'session="a \\"b\\"" Partitioned Path=/ Secure'
TWO = {"kept": "k;v", "dropped": "d"}


@pytest.mark.parametrize(
    ("prepare", "status", "headers", "cookies", "seen_before"),
    [
        (lambda response: None, OK, [TEXT], [KEPT, DROPPED], TWO),
        (
            sets,
            OK,
            [TEXT],
            [KEPT, DROPPED, LANG, SESSION],
            {**TWO, "lang": "de", "session": 'a "b"'},
        ),
        (takes_away, OK, [TEXT], [KEPT], {"kept": "k;v"}),
        (
            lambda response: response.delete_cookie("dropped"),
            OK,
            [TEXT],
            [KEPT, "dropped= Max-Age=0 Path=/"],
            {**TWO, "dropped": ""},
        ),
        (changes_the_rest, "418 I'm a teapot", [("Link", "</a>, </b>")], [KEPT, DROPPED], TWO),
    ],
    ids=["nothing", "sets", "takes away", "deletes", "the rest"],
)
def test_a_response_callback_changes_djangos_response(
    handler, prepare, status, headers, cookies, seen_before
):
    """A middleware before the entry sees the changed cookies too."""

    def view(request):
        after_this_request(prepare)
        response = HttpResponse("hello", content_type="text/plain")
        response.set_cookie("kept", "k;v", httponly=True)
        response.set_cookie("dropped", "d")
        return response

    request = exchange(handler(view, f"{__name__}.seen", ENTRY))
    request.finish()
    [(got, sent)] = request.started
    assert (got, [header for header in sent if header[0] != "Set-Cookie"]) == (status, headers)
    lines = [value.strip().split("; ") for name, value in sent if name == "Set-Cookie"]
    assert [
        " ".join([pair, *sorted(each for each in attributes if not each.startswith("expires"))])
        for pair, *attributes in lines
    ] == cookies
    assert cookies_seen == seen_before


def test_where_the_application_is_wrapped_too_it_is_the_outer_one_that_prepares(handler):
    def view(request):
        after_this_request(lambda response: response.set_cookie("lang", "de"))
        return HttpResponse("hello")

    request = exchange(wrap(handler(view, f"{__name__}.seen", ENTRY), True))
    request.finish()
    assert cookies_seen == {}
    assert ("Set-Cookie", "lang=de; Path=/") in request.started[0][1]


def test_an_error_of_a_response_callback_is_one_of_the_app(handler, events):
    def view(request):
        after_this_request(lambda response: 1 / 0)
        after_response(request, lambda: events.append(request.environ["wsgi.after"].error))
        return HttpResponse("hello")

    request = exchange(handler(view))
    request.finish()
    assert request.started[0][0] == "500 Internal Server Error"
    assert [type(error) for error in events] == [ZeroDivisionError]


# Databases.


@pytest.fixture
def databases(sqlite):
    """Give the project two SQLite databases with these options."""

    def make(**options):
        sqlite("default", "other", **options)
        for each in connections.all():
            each.cursor().execute("CREATE TABLE notes (text TEXT)")
        connections.close_all()

    return make


def write(text):
    for connection in connections.all():
        connection.cursor().execute("INSERT INTO notes VALUES (%s)", [text])


def notes():
    """What was written, by database, and whether the connections had been left open."""
    left = [connection.connection is not None for connection in connections.all()]
    found = []
    for connection in connections.all():
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT text FROM notes ORDER BY rowid")
            found.append([text for (text,) in cursor.fetchall()])
    connections.close_all()
    return [*found, left]


@pytest.mark.parametrize("atomic", [False, True], ids=["autocommit", "ATOMIC_REQUESTS"])
@pytest.mark.parametrize("age", [0, 60, None])
@WRAPPED
@pytest.mark.parametrize("opened", [True, False], ids=["opened by the view", "by the callback"])
def test_callbacks_write_and_leave_nothing_open(handler, databases, atomic, age, wrapped, opened):
    databases(CONN_MAX_AGE=age, ATOMIC_REQUESTS=atomic)

    def view(request):
        if opened:
            write("view")
        after_response(request, write, "callback")
        after_response(request, after_this_response, write, "nested")
        return HttpResponse("hello")

    app = handler(view)
    exchange(wrap(app, wrapped)).finish()
    expected = ["view"] * opened + ["callback", "nested"]
    assert notes() == [expected, expected, [age != 0] * 2]


def test_the_plain_middleware_leaves_them_open(handler, databases):
    """So callbacks that use the ORM need the entry in MIDDLEWARE."""
    databases(CONN_MAX_AGE=0)

    def view(request):
        after_this_response(write, "callback")
        return HttpResponse("hello")

    app = handler(view, COMMON)
    connection_created.disconnect(close_again)  # as if the entry had never been there
    exchange(wrap(app, True)).finish()
    assert notes() == [["callback"], ["callback"], [True, True]]


def break_one():
    connection = connections["default"]
    connection.ensure_connection()
    connection.connection.close()
    connection.errors_occurred = True
    connection.is_usable = lambda: False  # SQLite's always is


@pytest.mark.parametrize("age", [0, None])
def test_a_pool_thread_gets_usable_connections_and_keeps_none(handler, databases, age):
    databases(CONN_MAX_AGE=age)
    seen = []

    def view(request):
        write("view")
        after_response(request, write, "callback")
        after_response(request, lambda: seen.append(connections["default"]))
        after_response(request, after_this_response, write, "nested")
        return HttpResponse("hello")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(break_one).result()
        exchange(AfterResponseMiddleware(handler(view), executor=pool)).finish()
    assert [connection.connection for connection in seen] == [None]
    assert notes() == [["view", "callback", "nested"]] * 2 + [[age is None] * 2]


@WRAPPED
def test_a_connection_that_broke_in_the_view_is_replaced(handler, databases, wrapped):
    databases(CONN_MAX_AGE=None)

    def view(request):
        after_response(request, write, "callback")
        break_one()
        return HttpResponse("hello")

    exchange(wrap(handler(view), wrapped)).finish()
    assert notes()[:2] == [["callback"]] * 2


def writes(request):
    write("view")
    return HttpResponse("hello")


@pytest.mark.parametrize("view", [writes, sync_to_async(writes)])
def test_a_request_without_callbacks_gives_an_executor_no_job(handler, databases, view, events):
    """Even though its view has opened a connection."""
    databases(CONN_MAX_AGE=0)
    executor = SimpleNamespace(submit=lambda *args: events.append(args))
    exchange(AfterResponseMiddleware(handler(view), executor=executor)).finish()
    assert (events, notes()) == ([], [["view"]] * 2 + [[False] * 2])


def test_waitress_runs_no_callbacks_in_its_io_thread(handler, databases, events):
    """They run in a thread that lives only for them, and leaves no connection open."""
    databases(CONN_MAX_AGE=None)
    ran = threading.Event()

    def view(request):
        after_response(request, write, "callback")
        after_response(request, lambda: events.append(connections["default"]))
        after_response(request, lambda: events.append(threading.current_thread()))
        after_response(request, ran.set)
        return FileResponse(io.BytesIO(b"content"))

    request = exchange(handler(view), **{"waitress.client_disconnected": None})
    with ThreadPoolExecutor(1) as io_thread:
        io_thread.submit(request.result.close).result()
    assert ran.wait(30)
    connection, thread = events
    thread.join()
    assert (connection.connection, thread.name) == (None, "wsgi_after")
    assert notes() == [["callback"]] * 2 + [[False] * 2]


@contextmanager
def transaction_of_a_test():
    """What a ``TestCase`` keeps open, while Django's test client closes no connections."""
    signals = request_started, request_finished
    for signal in signals:
        signal.disconnect(close_old_connections)
    try:
        with transaction.atomic():
            yield
    finally:
        for signal in signals:
            signal.connect(close_old_connections)


@pytest.mark.parametrize("set_up", ["entry", "both", "an executor that does not wait", "captured"])
def test_the_transaction_of_a_test_goes_on_when_its_view_had_an_error(handler, databases, set_up):
    databases(CONN_MAX_AGE=0)

    def view(request):
        after_response(request, write, "callback")
        with pytest.raises(OperationalError), transaction.atomic():
            connections["default"].cursor().execute("SELECT nothing")
        return HttpResponse("hello")

    executor = SimpleNamespace(submit=lambda fn, *args: fn(*args))
    app = handler(view)
    if set_up != "entry":
        app = AfterResponseMiddleware(app, executor=None if set_up == "both" else executor)
    with transaction_of_a_test():
        write("test")
        if set_up == "captured":
            with capture() as captured:
                exchange(app).finish()
            captured.run()
        else:
            exchange(app).finish()
        write("test again")
    assert notes()[0] == ["test", "callback", "test again"]


def test_a_connection_that_a_test_shares_with_a_pool_stays_open(handler, databases):
    databases(CONN_MAX_AGE=0)
    shared = connections["default"]

    def share():
        connections["default"] = shared

    def view(request):
        after_response(request, lambda: shared.cursor().execute("INSERT INTO notes VALUES (1)"))
        return HttpResponse("hello")

    with transaction_of_a_test(), ThreadPoolExecutor(1, initializer=share) as pool:
        write("test")
        shared.inc_thread_sharing()
        exchange(AfterResponseMiddleware(handler(view), executor=pool)).finish()
        pool.shutdown()
        shared.dec_thread_sharing()
        write("test again")
    assert notes()[0] == ["test", "1", "test again"]


def test_a_callback_has_transactions_of_its_own(handler, databases, events):
    databases(ATOMIC_REQUESTS=True)

    def callback():
        events.append(connections["default"].in_atomic_block)
        with transaction.atomic():
            transaction.on_commit(lambda: events.append(notes()[0]))
            write("callback")

    exchange(handler(registers(callback))).finish()
    assert events == [False, ["callback"]]


def test_what_a_finalizer_opens_is_closed(handler, databases):
    databases(CONN_MAX_AGE=0)
    with pytest.warns(ResourceWarning, match="GET / was never closed"):
        exchange(handler(registers(lambda: write("callback"))))
        gc.collect()
    assert notes() == [["callback"]] * 2 + [[False] * 2]


# Errors for use in the wrong place.


@pytest.mark.parametrize("more", [[], [COMMON]])
def test_the_core_class_in_middleware_names_the_right_one(handler, more):
    with pytest.raises(TypeError, match=rf"In MIDDLEWARE, write {re.escape(ENTRY)}\."):
        handler(HttpResponse, "wsgi_after.AfterResponseMiddleware", *more)


@pytest.mark.parametrize("application", [WSGIHandler, Flask, lambda _: hello])
def test_the_entry_around_a_wsgi_application_names_the_right_class(handler, application):
    handler(HttpResponse)
    with pytest.raises(ImproperlyConfigured, match=r"use wsgi_after\.AfterResponseMiddleware\."):
        EntryOfMiddleware(application("shop") if application is not WSGIHandler else WSGIHandler())


def test_the_entry_takes_what_does_not_tell_its_arguments(events):
    class Handler:
        __signature__ = "unknown"

        def __call__(self, request):
            return HttpResponse("hello")

    request = RequestFactory().get("/")
    response = EntryOfMiddleware(Handler())(request)
    after_response(request, events.append, "callback")
    response.close()
    assert events == ["callback"]


@pytest.mark.parametrize("arguments", [(print, 3), ("a text", print)])
def test_a_forgotten_request_is_named(arguments):
    with pytest.raises(TypeError, match=r"the request first, .* not (builtin_f|str: 'a te)"):
        after_response(*arguments)
