"""wsgi_after.django, without a server: Django's own handlers and clients call it."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any
from wsgiref.util import FileWrapper

import django
import pytest
from asgiref.sync import sync_to_async
from conftest import Exchange, File, is_freed, make_environ
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.http import FileResponse, HttpResponse, HttpResponseNotModified, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import override_settings
from django.urls import path

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response
from wsgi_after.django import after_response, close_again
from wsgi_after.testing import capture

ENTRY = "wsgi_after.django.AfterResponseMiddleware"
settings.configured or settings.configure(SECRET_KEY="x")  # which Django 4.2 wants for errors
django.setup()  # or it warns of what uses a database


@pytest.fixture
def handler() -> Iterator[Callable[..., Any]]:
    """Make Django's WSGI application of a view and its settings, in force to the test's end."""
    with ExitStack() as stack:

        def make(view: Callable[..., Any], *middleware: str, **extra: Any) -> WSGIHandler:
            urls = type("Urls", (), {"urlpatterns": [path("", view)]})
            named = {"MIDDLEWARE": middleware or (ENTRY,), "ALLOWED_HOSTS": ["*"], **extra}
            stack.enter_context(override_settings(ROOT_URLCONF=urls, **named))
            return WSGIHandler()

        yield make


@pytest.fixture
def finished(events: list[Any]) -> Iterator[None]:
    """Note Django's signal among the events."""

    def receiver(**kwargs: Any) -> None:
        events.append("request_finished")

    request_finished.connect(receiver)
    yield
    request_finished.disconnect(receiver)


def exchange(app: Any, **environ: Any) -> Exchange:
    return Exchange(app, make_environ(PATH_INFO="/", SCRIPT_NAME="", **environ))


def registers(*callbacks: Callable[..., object], **response: Any) -> Callable[..., HttpResponse]:
    """A view that registers these. They are called with the request if they take an argument."""

    def view(request: Any) -> HttpResponse:
        for callback in callbacks:
            after_response(request, callback, *[request] if signature(callback).parameters else [])
        return HttpResponse("hello", **response)

    return view


# When callbacks run, and what they know.


def chunks(events: list[Any]) -> Iterator[bytes]:
    try:
        yield b"content\n"
    finally:
        events.append("file closed")


RESPONSES = {
    "HttpResponse": lambda events: HttpResponse("content\n"),
    "StreamingHttpResponse": lambda events: StreamingHttpResponse(chunks(events)),
    "FileResponse": lambda events: FileResponse(File(events)),
}
FILE_WRAPPERS = {
    "without": {},
    "a class": {"wsgi.file_wrapper": FileWrapper},
    "a function": {"wsgi.file_wrapper": lambda file, size=0: file},
}


@pytest.mark.parametrize("file_wrapper", FILE_WRAPPERS)
@pytest.mark.parametrize("kind", RESPONSES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.usefixtures("finished")
def test_callbacks_run_when_the_response_is_closed(
    handler: Any, events: list[Any], kind: str, file_wrapper: str, wrapped: bool
) -> None:
    def view(request: Any) -> Any:
        after_response(request, events.append, "callback")
        return RESPONSES[kind](events)

    app = handler(view)
    request = exchange(
        AfterResponseMiddleware(app) if wrapped else app, **FILE_WRAPPERS[file_wrapper]
    )
    assert b"".join(request.result) == b"content\n"
    assert [event for event in events if event != "file closed"] == []
    request.result.close()
    request.result.close()
    closed = [] if kind == "HttpResponse" else ["file closed"]
    last = ["request_finished", "callback"] if wrapped else ["callback", "request_finished"]
    assert [event for event in events[: len(closed) + 2] if event] == [*closed, *last]
    assert events.count("callback") == 1


def test_all_ways_to_register_reach_one_list(handler: Any, events: list[Any]) -> None:
    def view(request: Any) -> HttpResponse:
        after_this_response(events.append, "first")
        after_response(request, events.append, "second")
        request.environ["wsgi.after"].append(lambda: events.append("third"))
        assert after_response(request, nested) is nested
        return HttpResponse("hello")

    def nested() -> None:
        after_this_response(events.append, "last")

    app = handler(view)
    for _ in range(2):
        exchange(app).finish()
    assert events == ["first", "second", "third", "last"] * 2


def test_a_callback_gets_any_arguments_and_one_that_fails_is_logged_and_the_others_run(
    handler: Any, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def view(request: Any) -> HttpResponse:
        after_response(request, lambda: 1 / 0)
        after_response(request, lambda *args, **kwargs: events.append((args, kwargs)), 1, fn=2)
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == [((1,), {"fn": 2})]
    [record] = [record for record in caplog.records if record.name == "wsgi_after"]
    assert record.getMessage().endswith("of GET / failed.")


def tell(events: list[Any], request: Any) -> None:
    after = request.environ["wsgi.after"]
    events.append((after.status, dict(after.headers or ()), after.error, after.completed))


def test_a_callback_can_know_status_and_headers(handler: Any, events: list[Any]) -> None:
    view = registers(partial(tell, events), status=201, headers={"X-Order": "7"})
    exchange(handler(view)).finish()
    headers = {"Content-Type": "text/html; charset=utf-8", "X-Order": "7"}
    assert events == [("201 Created", headers, None, None)]


def test_a_view_that_raises_has_its_callbacks_run(handler: Any, events: list[Any]) -> None:
    def view(request: Any) -> HttpResponse:
        after_response(request, tell, events, request)
        raise ValueError

    request = exchange(handler(view))
    request.finish()
    assert request.started[0][0] == "500 Internal Server Error"
    [(status, _, error, _)] = events
    assert (status, error) == ("500 Internal Server Error", None)


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_what_django_lets_out_goes_on_behind_the_callbacks(
    handler: Any, events: list[Any], error: type[BaseException]
) -> None:
    def view(request: Any) -> HttpResponse:
        after_response(request, tell, events, request)
        raise error

    with pytest.raises(error) as raised:
        exchange(handler(view, DEBUG_PROPAGATE_EXCEPTIONS=True))
    assert events == [(None, {}, raised.value, False)]


def test_a_response_that_a_middleware_before_the_entry_dropped_is_closed_with_a_warning(
    handler: Any, events: list[Any]
) -> None:
    answer_differently = f"{__name__}.not_modified"
    app = handler(registers(lambda: events.append("callback")), answer_differently, ENTRY)
    with pytest.warns(ResourceWarning, match="GET / was never closed"):
        exchange(app).finish()
        gc.collect()
    assert events == ["callback"]


def not_modified(get_response: Any) -> Any:
    """A middleware that answers with a response of its own, as Django's for conditions does."""

    def middleware(request: Any) -> HttpResponse:
        get_response(request)
        return HttpResponseNotModified()

    return middleware


def test_nothing_is_kept_that_django_does_not_keep(handler: Any) -> None:
    def view(request: Any) -> HttpResponse:
        kept.append(request.environ.get("wsgi.after"))
        if kept[-1] is not None:
            after_response(request, request.get_host)
        return HttpResponse("hello")

    kept: list[Any] = []
    root = {"PATH_INFO": "/", "SCRIPT_NAME": ""}
    without = is_freed(handler(view, "django.middleware.common.CommonMiddleware"), **root)
    assert is_freed(handler(view), **root) == without
    assert kept == [None, []]


# The list.


def test_an_environ_that_comes_again_gets_a_new_list(handler: Any, events: list[Any]) -> None:
    app = handler(registers(lambda: events.append("callback")))
    environ = make_environ(PATH_INFO="/", SCRIPT_NAME="")
    for _ in range(2):
        Exchange(app, environ).finish()
    assert events == ["callback", "callback"]


def test_a_list_that_somebody_else_put_there_is_used(handler: Any) -> None:
    theirs: list[Any] = []

    def view(request: Any) -> HttpResponse:
        after_response(request, int)
        after_this_response(str)
        return HttpResponse("hello")

    exchange(handler(view), **{"wsgi.after": theirs}).finish()
    assert theirs == [int, str]


def test_anything_but_a_list_is_refused(handler: Any) -> None:
    app = handler(HttpResponse, DEBUG_PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(TypeError, match="is tuple, where a list was expected"):
        exchange(app, **{"wsgi.after": ()})


def test_the_entry_may_be_there_twice(handler: Any, events: list[Any]) -> None:
    exchange(handler(registers(lambda: events.append("callback")), ENTRY, ENTRY)).finish()
    assert events == ["callback"]


def test_a_request_without_a_list_says_what_is_missing(handler: Any) -> None:
    def view(request: Any) -> None:
        after_response(request, int)

    app = handler(
        view, "django.middleware.common.CommonMiddleware", DEBUG_PROPAGATE_EXCEPTIONS=True
    )
    with pytest.raises(ImproperlyConfigured, match=ENTRY):
        exchange(app)
    with pytest.raises(ImproperlyConfigured, match="RequestFactory"):
        view(RequestFactory().get("/"))


def test_registering_is_refused_for_what_cannot_be_called_and_when_it_is_too_late(
    handler: Any,
) -> None:
    requests: list[Any] = []
    exchange(handler(lambda request: requests.append(request) or HttpResponse("hello"))).finish()
    with pytest.raises(TypeError, match="must be callable, not int"):
        after_response(requests[0], 1)  # type: ignore[type-var]
    with pytest.raises(RuntimeError, match="have run already"):
        after_response(requests[0], int)


# Response callbacks.


def prepared(handler: Any, prepare: Callable[[Any], Any]) -> Exchange:
    """A request whose view leaves a response callback."""

    def view(request: Any) -> HttpResponse:
        after_this_request(prepare)
        response = HttpResponse("hello", content_type="text/plain")
        response.set_cookie("kept", "k;v", httponly=True)
        response.set_cookie("dropped", "d")
        return response

    request = exchange(handler(view, f"{__name__}.seen", ENTRY))
    request.finish()
    return request


cookies_seen: dict[str, Any] = {}


def seen(get_response: Any) -> Any:
    """A middleware before ours, which notes the cookies that it sees."""

    def middleware(request: Any) -> HttpResponse:
        response = get_response(request)
        cookies_seen.clear()
        cookies_seen.update({name: cookie.value for name, cookie in response.cookies.items()})
        return response

    return middleware


def test_cookies_that_it_sets_arrive_in_the_cookies_of_django(handler: Any) -> None:
    def prepare(response: Any) -> None:
        response.set_cookie("lang", "de", max_age=60, secure=True, samesite="Lax")
        response.set_cookie("session", 'a "b"', partitioned=True)

    request = prepared(handler, prepare)
    assert cookies_seen == {"kept": "k;v", "dropped": "d", "lang": "de", "session": 'a "b"'}
    cookies = [value.strip() for name, value in request.started[0][1] if name == "Set-Cookie"]
    assert [cookie.partition(";")[0] for cookie in cookies] == [
        *('kept="k\\073v"', "dropped=d", "lang=de", 'session="a \\"b\\""')
    ]
    assert {"Max-Age=60", "SameSite=Lax", "Secure", "Path=/"} <= {*cookies[2].split("; ")}
    assert {"Partitioned", "Secure"} <= {*cookies[3].split("; ")}


def test_cookies_that_it_takes_away_are_gone(handler: Any) -> None:
    def prepare(response: Any) -> None:
        kept = [value for value in response.headers.getlist("Set-Cookie") if "kept" in value]
        response.headers.setlist("Set-Cookie", kept)

    prepared(handler, prepare)
    assert cookies_seen == {"kept": "k;v"}


def test_a_cookie_that_it_deletes_is_deleted(handler: Any) -> None:
    request = prepared(handler, lambda response: response.delete_cookie("dropped"))
    cookies = [value.strip() for name, value in request.started[0][1] if name == "Set-Cookie"]
    assert cookies_seen == {"kept": "k;v", "dropped": ""}
    assert "Max-Age=0" in cookies[1]


def test_status_and_headers_that_it_changes_are_sent(handler: Any) -> None:
    def prepare(response: Any) -> None:
        response.status = "418 I'm a teapot"
        del response.headers["Content-Type"]
        response.headers.add("Link", "</a>")
        response.headers.add("Link", "</b>")

    request = prepared(handler, prepare)
    status, headers = request.started[0]
    assert status == "418 I'm a teapot"
    assert [header for header in headers if header[0] != "Set-Cookie"] == [("Link", "</a>, </b>")]


def test_a_response_callback_that_changes_nothing_changes_nothing(handler: Any) -> None:
    with_one = prepared(handler, lambda response: None).started
    headers = [(name, value.strip()) for name, value in with_one[0][1]]
    assert headers == [
        ("Content-Type", "text/plain"),
        ("Set-Cookie", 'kept="k\\073v"; HttpOnly; Path=/'),
        ("Set-Cookie", "dropped=d; Path=/"),
    ]


def test_an_error_of_a_response_callback_is_one_of_the_app(handler: Any, events: list[Any]) -> None:
    def view(request: Any) -> HttpResponse:
        after_this_request(lambda response: 1 / 0)
        after_response(request, tell, events, request)
        return HttpResponse("hello")

    request = exchange(handler(view))
    request.finish()
    assert request.started[0][0] == "500 Internal Server Error"
    assert [type(error) for _, _, error, _ in events] == [ZeroDivisionError]


def test_where_the_application_is_wrapped_too_it_is_the_outer_one_that_prepares(
    handler: Any,
) -> None:
    def view(request: Any) -> HttpResponse:
        after_this_request(lambda response: response.set_cookie("lang", "de"))
        return HttpResponse("hello")

    request = exchange(AfterResponseMiddleware(handler(view, f"{__name__}.seen", ENTRY)))
    request.finish()
    assert cookies_seen == {}
    assert ("Set-Cookie", "lang=de; Path=/") in request.started[0][1]


# Its neighbours.


def test_a_response_from_the_cache_does_not_run_callbacks_again(
    handler: Any, events: list[Any]
) -> None:
    view = registers(lambda: events.append("callback"))  # which cannot be pickled
    cache = "django.middleware.cache"
    around = f"{cache}.UpdateCacheMiddleware", ENTRY, f"{cache}.FetchFromCacheMiddleware"
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    app = handler(view, *around, CACHES=caches)
    assert [exchange(app).finish() for _ in range(3)] == [[b"hello"]] * 3
    assert events == ["callback"]


def test_a_middleware_behind_it_may_register_too(handler: Any, events: list[Any]) -> None:
    app = handler(HttpResponse, ENTRY, f"{__name__}.registering")
    exchange(app, events=events).finish()
    assert events == ["callback"]


def registering(get_response: Any) -> Any:
    def middleware(request: Any) -> HttpResponse:
        after_response(request, request.environ["events"].append, "callback")
        return get_response(request)

    return middleware


def test_an_asynchronous_view_registers(handler: Any, events: list[Any]) -> None:
    async def view(request: Any) -> HttpResponse:
        await asyncio.sleep(0)
        after_this_response(events.append, "first")
        after_response(request, events.append, "second")
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == ["first", "second"]


def test_waitress_does_not_run_callbacks_in_the_thread_of_its_connections(
    handler: Any, databases: Any, events: list[Any]
) -> None:
    """But in a thread that lives only for them, and leaves no connection open."""
    databases(CONN_MAX_AGE=None)
    ran = threading.Event()

    def view(request: Any) -> FileResponse:
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


def test_asgi_is_refused_when_the_process_starts(handler: Any) -> None:
    handler(HttpResponse)
    with pytest.raises(ImproperlyConfigured, match=r"Serve the project's wsgi\.py"):
        ASGIHandler()


def test_asgi_behind_a_synchronous_middleware_is_refused_with_each_request(handler: Any) -> None:
    handler(HttpResponse, ENTRY, f"{__name__}.registering")
    with pytest.raises(ImproperlyConfigured, match=r"Serve the project's wsgi\.py"):
        asyncio.run(AsyncClient().get("/"))  # type: ignore[arg-type]


# Django's test client.


def test_callbacks_have_run_when_the_client_returns_unless_they_are_captured(
    handler: Any, events: list[Any]
) -> None:
    handler(registers(lambda: events.append("callback")))
    assert (Client().get("/").content, events) == (b"hello", ["callback"])
    with capture() as captured:
        Client().get("/")
    assert (len(captured.callbacks), len(events)) == (1, 1)
    captured.run()
    assert events == ["callback"] * 2


def test_a_streaming_response_in_the_client_runs_them_when_it_has_been_read(
    handler: Any, events: list[Any]
) -> None:
    def view(request: Any) -> StreamingHttpResponse:
        after_response(request, events.append, "callback")
        return StreamingHttpResponse(chunks(events))

    handler(view)
    response = Client().get("/")
    assert events == []
    assert response.getvalue() == b"content\n"
    assert events == ["file closed", "callback"]
    events.clear()
    Client().get("/").close()
    assert events == ["callback"]


# Databases.


@pytest.fixture
def databases(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Make two SQLite databases with the same options the ones of the project."""

    def make(**options: Any) -> None:
        named = {
            alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / alias, **options}
            for alias in ("default", "other")
        }
        monkeypatch.setitem(vars(connections), "settings", connections.configure_settings(named))
        for alias in named:
            connections[alias].cursor().execute("CREATE TABLE notes (text TEXT)")
        connections.close_all()

    forget_connections()
    yield make
    forget_connections()


def forget_connections() -> None:
    """In this thread, so that they are made anew, by the settings in force."""
    connections.close_all()
    for connection in connections.all(initialized_only=True):
        del connections[connection.alias]


def write(text: str) -> None:
    for connection in connections.all():
        connection.cursor().execute("INSERT INTO notes VALUES (%s)", [text])


def notes() -> list[Any]:
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
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize("opened", [True, False], ids=["opened by the view", "by the callback"])
def test_callbacks_write_and_leave_no_connection_open_that_django_would_close(
    handler: Any, databases: Any, atomic: bool, age: int | None, wrapped: bool, opened: bool
) -> None:
    databases(CONN_MAX_AGE=age, ATOMIC_REQUESTS=atomic)

    def view(request: Any) -> HttpResponse:
        if opened:
            write("view")
        after_response(request, write, "callback")
        after_response(request, after_this_response, write, "nested")
        return HttpResponse("hello")

    app = handler(view)
    exchange(AfterResponseMiddleware(app) if wrapped else app).finish()
    expected = ["view"] * opened + ["callback", "nested"]
    assert notes() == [expected, expected, [age != 0] * 2]


def test_the_plain_middleware_leaves_them_open(handler: Any, databases: Any) -> None:
    """Why ORM work wants the entry in MIDDLEWARE."""
    databases(CONN_MAX_AGE=0)

    def view(request: Any) -> HttpResponse:
        after_this_response(write, "callback")
        return HttpResponse("hello")

    app = handler(view, "django.middleware.common.CommonMiddleware")
    connection_created.disconnect(close_again)  # as where the entry never was
    exchange(AfterResponseMiddleware(app)).finish()
    assert notes() == [["callback"], ["callback"], [True, True]]


@pytest.mark.parametrize("age", [0, None])
def test_a_pool_thread_gets_usable_connections_and_keeps_none(
    handler: Any, databases: Any, age: int | None
) -> None:
    databases(CONN_MAX_AGE=age)
    seen: list[Any] = []

    def view(request: Any) -> HttpResponse:
        write("view")
        after_response(request, write, "callback")
        after_response(request, lambda: seen.append(connections["default"]))
        after_response(request, after_this_response, write, "nested")
        return HttpResponse("hello")

    def leave_a_broken_one() -> None:
        connection = connections["default"]
        connection.ensure_connection()
        connection.connection.close()
        connection.errors_occurred = True
        connection.is_usable = lambda: False  # SQLite's always is

    with ThreadPoolExecutor(1) as pool:
        pool.submit(leave_a_broken_one).result()
        exchange(AfterResponseMiddleware(handler(view), executor=pool)).finish()
    assert [connection.connection for connection in seen] == [None]
    assert notes() == [["view", "callback", "nested"]] * 2 + [[age is None] * 2]


def writes(request: Any) -> HttpResponse:
    write("view")
    return HttpResponse("hello")


async def writes_asynchronously(request: Any) -> HttpResponse:
    await sync_to_async(write)("view")
    return HttpResponse("hello")


@pytest.mark.parametrize("view", [writes, writes_asynchronously])
def test_a_request_without_callbacks_gives_an_executor_no_job(
    handler: Any, databases: Any, view: Any, events: list[Any]
) -> None:
    """Though its view has opened a connection."""
    databases(CONN_MAX_AGE=0)
    executor = SimpleNamespace(submit=lambda *args: events.append(args))
    exchange(AfterResponseMiddleware(handler(view), executor=executor)).finish()
    assert (events, notes()) == ([], [["view"]] * 2 + [[False] * 2])


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
def test_a_connection_that_broke_in_the_view_is_replaced(
    handler: Any, databases: Any, wrapped: bool
) -> None:
    databases(CONN_MAX_AGE=None)

    def view(request: Any) -> HttpResponse:
        after_response(request, write, "callback")
        for connection in connections.all():
            connection.ensure_connection()
        connections["default"].connection.close()
        connections["default"].errors_occurred = True
        connections["default"].is_usable = lambda: False  # SQLite's always is
        return HttpResponse("hello")

    app = handler(view)
    exchange(AfterResponseMiddleware(app) if wrapped else app).finish()
    assert notes()[:2] == [["callback"]] * 2


@pytest.mark.parametrize("commits", [True, False])
def test_on_commit_registers_what_runs_after_the_response(
    handler: Any, databases: Any, events: list[Any], commits: bool
) -> None:
    databases(ATOMIC_REQUESTS=True)

    def view(request: Any) -> HttpResponse:
        transaction.on_commit(lambda: after_response(request, write, "callback"))
        transaction.on_commit(lambda: events.append("commit"))
        if not commits:
            raise ValueError
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == ["commit"] * commits
    assert notes()[0] == ["callback"] * commits


def test_a_callback_has_transactions_of_its_own(
    handler: Any, databases: Any, events: list[Any]
) -> None:
    databases(ATOMIC_REQUESTS=True)

    def callback() -> None:
        events.append(connections["default"].in_atomic_block)
        with transaction.atomic():
            transaction.on_commit(lambda: events.append(notes()[0]))
            write("callback")

    exchange(handler(registers(callback))).finish()
    assert events == [False, ["callback"]]


def test_what_a_finalizer_opens_is_closed(handler: Any, databases: Any) -> None:
    databases(CONN_MAX_AGE=0)
    with pytest.warns(ResourceWarning, match="GET / was never closed"):
        exchange(handler(registers(lambda: write("callback"))))
        gc.collect()
    assert notes() == [["callback"]] * 2 + [[False] * 2]
