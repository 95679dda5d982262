"""``config.include("wsgi_after.pyramid")``, and the filter of PasteDeploy."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from itertools import count
from pathlib import Path
from threading import current_thread
from typing import Any
from wsgiref.util import FileWrapper

import pyramid_retry
import pytest
import transaction
from conftest import Exchange, hello, make_environ, messages
from paste.deploy import loadapp
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.request import Request
from pyramid.response import FileResponse, Response
from pyramid.threadlocal import get_current_registry, get_current_request
from webtest import TestApp

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_response
from wsgi_after import pyramid as wsgi_after_pyramid
from wsgi_after.testing import capture

View = Callable[[Request], Any]


def make_app(view: View, *includes: str, before: Any = None, **settings: Any) -> Any:
    """A Pyramid app with a view at every path."""
    with Configurator(settings=settings) as config:
        for name in includes or ("wsgi_after.pyramid",):
            config.include(name)
        config.add_route("all", "/*path")
        config.add_view(view, route_name="all")
        if before is not None:
            before(config)
        return config.make_wsgi_app()


def registers(*callbacks: Callable[..., object]) -> View:
    """A view that registers these. They are called with the request if they take an argument."""

    def view(request: Request) -> Response:
        for callback in callbacks:
            wants_it = signature(callback).parameters
            request.after.append(partial(callback, request) if wants_it else callback)
        return Response("body")

    return view


# request.after


def test_it_is_the_list_of_the_request_and_runs_when_the_response_is_closed(
    events: list[Any],
) -> None:
    def view(request: Request) -> Response:
        request.after(events.append, 1)
        after_this_response(events.append, 2)
        same = request.after is request.environ["wsgi.after"]
        events.append((same, type(request.after), len(request.after)))
        return Response("body")

    exchange = Exchange(make_app(view))
    assert events == [(True, CallbackList, 2)]
    assert (exchange.finish(), events[1:]) == ([b"body"], [1, 2])


def test_each_request_has_its_own(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        request.after(events.append, request.path)
        return Response()

    application = make_app(view)
    first = Exchange(application, make_environ(PATH_INFO="/1"))
    second = Exchange(application, make_environ(PATH_INFO="/2"))
    second.finish()
    first.finish()
    assert events == ["/2", "/1"]


def test_a_callback_knows_the_response(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        after = request.after
        after(lambda: events.append((after.status, after.completed, after.error)))
        return HTTPFound("/elsewhere")

    Exchange(make_app(view)).finish()
    assert events == [("302 Found", True, None)]


def test_a_response_callback_changes_the_response() -> None:
    def view(request: Request) -> Response:
        request.after.on_prepare(lambda response: response.headers.set("X-Prepared", "yes"))
        return Response("body")

    assert TestApp(make_app(view)).get("/").headers["X-Prepared"] == "yes"


def test_a_view_that_raises_has_its_callbacks_run(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        request.after(lambda: events.append(get_current_request() is request))
        events.append(request.after)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Exchange(make_app(view))
    assert events == [[], True]


def test_an_exception_view_answers_and_the_callbacks_of_both_run(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        request.after(events.append, "view")
        raise ZeroDivisionError

    def failed(error: Exception, request: Request) -> Response:
        request.after(lambda: events.append(get_current_request() is request))
        return Response("sorry", status=500)

    application = make_app(
        view, before=lambda config: config.add_exception_view(failed, context=ZeroDivisionError)
    )
    exchange = Exchange(application)
    assert (exchange.finish(), exchange.started[0][0]) == ([b"sorry"], "500 Internal Server Error")
    assert events == ["view", True]


def test_a_failing_callback_is_logged_by_its_own_name(
    caplog: pytest.LogCaptureFixture, events: list[Any]
) -> None:
    def failing() -> None:
        raise ZeroDivisionError

    def other() -> None:
        events.append(get_current_request() is None)

    Exchange(make_app(registers(failing, other))).finish()
    [error] = messages(caplog, logging.ERROR)
    assert f"{__name__}.{failing.__qualname__} of GET /path failed" in error
    assert (events, get_current_request()) == ([False], None)


def test_a_file_is_sent_then_the_callbacks_run(tmp_path: Path, events: list[Any]) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"content\n" * 100_000)

    def view(request: Request) -> Response:
        request.after(events.append, "callback")
        return FileResponse(str(path), request=request, content_type="text/plain")

    for extra in ({}, {"wsgi.file_wrapper": FileWrapper}):
        exchange = Exchange(make_app(view), make_environ(**extra))
        assert events == []
        assert (b"".join(exchange.finish()), events.pop()) == (path.read_bytes(), "callback")


def test_a_stream_registers_callbacks_too(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        def stream() -> Iterator[bytes]:
            request.after(events.append, "by the stream")
            yield b"chunk"

        request.after(lambda: events.append("by the view"))
        return Response(app_iter=stream())

    assert Exchange(make_app(view)).finish() == [b"chunk"]
    assert events == ["by the view", "by the stream"]


def test_a_tween_can_register_and_is_built_once(events: list[Any]) -> None:
    def tween(handler: View, registry: Any) -> View:
        def registering(request: Request) -> Response:
            request.after(lambda: events.append(get_current_request() is request))
            return Response("by the tween")

        events.append("built")
        return registering

    sys.modules[__name__].tween = tween  # type: ignore[attr-defined]
    add = make_app(registers(), before=lambda config: config.add_tween(f"{__name__}.tween"))
    Exchange(add).finish()
    assert events == ["built", True]


def test_a_request_made_by_hand_has_no_list() -> None:
    with pytest.raises(RuntimeError, match="made by hand"):
        wsgi_after_pyramid.after(Request.blank("/"))


# Subrequests


def blank(request: Request) -> Request:
    return Request.blank("/inner")


def copied(request: Request) -> Request:
    inner = request.copy()
    inner.path_info = "/inner"
    return inner


@pytest.mark.parametrize("make", [blank, copied])
def test_a_subrequest_registers_for_the_request_around_it(
    make: Callable[[Request], Request], events: list[Any]
) -> None:
    def view(request: Request) -> Response:
        def note(place: str) -> None:
            events.append((place, get_current_request().path))

        if request.path == "/inner":
            request.after(note, "inner")
            return Response("inner")
        request.after(note, "first")
        response = request.invoke_subrequest(make(request))
        request.after(note, "last")
        return response

    exchange = Exchange(make_app(view))
    assert events == []
    assert exchange.finish() == [b"inner"]
    assert events == [("first", "/path"), ("inner", "/path"), ("last", "/path")]


# Threadlocals


class OtherThread(ThreadPoolExecutor):
    """One that is waited for."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(*args, **kwargs)
        future.exception(10)
        return future


@pytest.fixture
def pool() -> Iterator[OtherThread]:
    with OtherThread(1, thread_name_prefix="pool") as executor:
        yield executor


@pytest.mark.parametrize("where", ["inline", "pool"])
def test_a_callback_has_the_threadlocals_of_its_request(
    where: str, pool: OtherThread, events: list[Any]
) -> None:
    def callback(request: Request) -> None:
        events.append(current_thread().name.startswith("pool"))
        events.append(get_current_request() is request)
        events.append(get_current_registry() is request.registry)
        after_this_response(nested, request)

    def nested(request: Request) -> None:
        events.append(get_current_request() is request)

    def view(request: Request) -> Response:
        request.environ["wsgi.after"].append(partial(callback, request))
        return Response()

    executor = {"inline": None, "pool": pool}[where]
    Exchange(make_app(view, **{"wsgi_after.executor": executor})).finish()
    assert events == [where == "pool", True, True, True]
    assert get_current_request() is None


def test_a_running_callback_cancels_another(events: list[Any]) -> None:
    cancelled, kept = partial(events.append, "cancelled"), partial(events.append, "kept")

    def cancel(request: Request) -> None:
        request.after.remove(cancelled)
        events.append(request.after == [kept])

    Exchange(make_app(registers(cancel, cancelled, kept))).finish()
    assert events == [True, "kept"]


def test_a_bound_callback_equals_its_original_and_pickles_as_it() -> None:
    request = Request.blank("/")
    first, second = (wsgi_after_pyramid.InThreadlocals.of(print, request) for _ in range(2))
    assert ({first, second}, first == print, first == len) == ({first}, True, False)
    assert pickle.loads(pickle.dumps(first)).func is print


def test_called_by_itself_it_needs_no_list(events: list[Any]) -> None:
    request = Request.blank("/")
    request.registry = None
    wsgi_after_pyramid.InThreadlocals.of(
        lambda: events.append(get_current_request() is request), request
    )()
    assert events == [True]


# Wrapped as well


@pytest.mark.parametrize("inner", [False, True])
def test_the_outer_list_and_the_innermost_executor_are_used(
    events: list[Any], pool: OtherThread, inner: bool
) -> None:
    def view(request: Request) -> Response:
        request.after(lambda: events.append((current_thread().name[:4], get_current_request())))
        return Response()

    setting = {"wsgi_after.executor": pool if inner else "none"}
    with OtherThread(1, thread_name_prefix="outer") as outer:
        application = AfterResponseMiddleware(make_app(view, **setting), executor=outer)
        application.after_response(lambda environ: events.append(get_current_request()))
        exchange = Exchange(application)
        [bound] = exchange.environ["wsgi.after"][1:]
        exchange.finish()
    assert events == [None, ("pool" if inner else "oute", bound.request)]


def test_a_function_registered_outside_and_inside_is_bound_inside_only(events: list[Any]) -> None:
    def callback() -> None:
        events.append(get_current_request() is not None)

    application = make_app(registers(callback))

    def outer(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.after"].append(callback)
        return application(environ, start_response)

    Exchange(AfterResponseMiddleware(outer)).finish()
    assert events == [False, True]


def test_a_plain_list_that_is_there_is_used(events: list[Any]) -> None:
    callbacks: list[Any] = []
    view = registers(lambda request: events.append(get_current_request() is request))
    make_app(view)(make_environ(**{"wsgi.after": callbacks}), lambda *args: None)
    assert events == []
    callbacks.pop()()
    assert events == [True]


def test_an_app_within_an_app_keeps_its_own_threadlocals(events: list[Any]) -> None:
    def note(request: Request) -> None:
        events.append(get_current_request() is request)

    inner = make_app(registers(note))

    def outer_view(request: Request) -> Response:
        request.after(note, request)
        return request.get_response(inner)

    assert Exchange(make_app(outer_view)).finish() == [b"body"]
    assert events == [True, True]


# pyramid_retry and pyramid_tm


RETRY = [
    ("wsgi_after.pyramid", "pyramid_retry"),
    ("pyramid_retry", "wsgi_after.pyramid"),
]


@pytest.mark.parametrize("includes", RETRY)
def test_of_a_request_that_is_tried_again_the_last_attempt_counts(
    includes: tuple[str, str], events: list[Any]
) -> None:
    def view(request: Request) -> Response:
        number = request.environ["retry.attempt"]
        request.after(lambda: events.append((number, get_current_request() is request)))
        if number < 2:
            raise pyramid_retry.RetryableException
        return Response("body")

    assert Exchange(make_app(view, *includes)).finish() == [b"body"]
    assert events == [(2, True)]


@pytest.mark.parametrize("includes", RETRY)
@pytest.mark.parametrize("autocommit", [True, False])
def test_it_does_not_matter_when_the_configuration_is_committed(
    includes: tuple[str, str], autocommit: bool, events: list[Any]
) -> None:
    config = Configurator(autocommit=autocommit)
    for name in includes:
        config.include(name)
        config.commit()

    def view(request: Request) -> Response:
        request.after(events.append, request.environ["retry.attempt"])
        return Response("body")

    config.add_route("all", "/*path")
    config.add_view(view, route_name="all")
    Exchange(config.make_wsgi_app()).finish()
    assert events == [0]


def test_if_the_last_attempt_fails_its_callbacks_run(events: list[Any]) -> None:
    def view(request: Request) -> Response:
        request.after(events.append, request.environ["retry.attempt"])
        raise pyramid_retry.RetryableException

    with pytest.raises(pyramid_retry.RetryableException):
        Exchange(make_app(view, *RETRY[0], **{"retry.attempts": 2}))
    assert events == [1]


@pytest.mark.parametrize("plain", [False, True])
def test_an_attempt_begins_with_the_list_of_the_first(plain: bool, events: list[Any]) -> None:
    """What an earlier attempt cancelled is back; its response callbacks are gone."""

    def view(request: Request) -> Response:
        number = request.environ["retry.attempt"]
        events.append(len(request.after))
        if number == 0:
            request.after.clear()
            if not plain:
                request.after.on_prepare(lambda response: events.append("never"))
            raise pyramid_retry.RetryableException
        return Response("body")

    application: Any = make_app(view, *RETRY[0])
    callbacks: list[Any] = [partial(events.append, "from outside")]
    extra = {"wsgi.after": callbacks} if plain else {}
    if not plain:
        application = AfterResponseMiddleware(application)
        application.after_response(lambda environ: events.append("from outside"))
    exchange = Exchange(application, make_environ(**extra))
    assert list(exchange.result) == [b"body"]
    if not plain:
        exchange.result.close()
    assert (events, len(callbacks)) == ([1, 1, *(() if plain else ("from outside",))], 1)


def test_an_environ_that_comes_again_while_its_first_body_is_read_gets_a_list_of_its_own(
    events: list[Any],
) -> None:
    """As a middleware outside sends it that gives the first response up."""
    numbers = count(1)

    def view(request: Request) -> Response:
        request.after(events.append, next(numbers))
        return Response(app_iter=iter([b"a", b"b"]))

    application, environ = make_app(view), make_environ()
    first = Exchange(application, environ)
    assert next(iter(first.result)) == b"a"
    assert (Exchange(application, environ).finish(), events) == ([b"a", b"b"], [2])
    first.result.close()
    assert events == [2, 1]


def test_a_policy_that_fails_before_there_is_a_request_costs_nothing(events: list[Any]) -> None:
    def policy(environ: dict[str, Any], router: Any) -> Response:
        environ["wsgi.after"](events.append, get_current_request())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Exchange(
            make_app(registers(), before=lambda config: config.set_execution_policy(policy)),
        )
    assert events == [None]


def test_the_transaction_of_pyramid_tm_is_over_and_another_can_begin(events: list[Any]) -> None:
    class Resource:
        """Tells how its transaction ends."""

        transaction_manager = None

        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, step: str) -> Any:
            if step in ("savepoint", "tpc_finish", "tpc_abort", "abort"):
                return lambda transaction: events.append((self.name, step))
            return lambda transaction: None

        def sortKey(self) -> str:  # noqa: N802
            return self.name

    def callback(request: Request) -> None:
        events.append(("tm.active", "tm.active" in request.environ))
        with transaction.TransactionManager(explicit=True) as own:
            own.join(Resource("callback"))

    def view(request: Request) -> Response:
        request.tm.get().join(Resource("view"))
        request.after(callback, request)
        return Response()

    hook = {"tm.manager_hook": "pyramid_tm.explicit_manager"}
    Exchange(make_app(view, "pyramid_tm", "wsgi_after.pyramid", **hook)).finish()
    assert events == [("view", "tpc_finish"), ("tm.active", False), ("callback", "tpc_finish")]


# Tests of an app


def test_webtest_runs_the_callbacks_and_may_send_an_environ_twice(events: list[Any]) -> None:
    app = TestApp(make_app(registers(lambda request: events.append(request.path))))
    request = Request.blank("/1")
    assert [app.request(request).text for _ in range(2)] == ["body", "body"]
    assert events == ["/1", "/1"]


def test_captured_callbacks_have_their_threadlocals(events: list[Any]) -> None:
    view = registers(lambda request: events.append(get_current_request() is request))
    with capture() as captured:
        TestApp(make_app(view)).get("/")
    assert events == []
    captured.run()
    assert events == [True]


# The filter of PasteDeploy, and the setting


INI = """
[app:main]
use = call:{module}:paste_app
filter-with = after

[filter:after]
use = egg:wsgi-after
"""


def paste_app(global_conf: dict[str, str], **settings: str) -> Any:
    return paste_application


def paste_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.after"](lambda: ran.append(current_thread().name[:4]))
    return hello(environ, start_response)


ran: list[str] = []
test_pool: Any = None  # set by the test


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Any]:
    """Load an app from a file."""
    path = tmp_path / "app.ini"

    def load(options: str = "") -> Any:
        path.write_text(INI.format(module=__name__) + options)
        return loadapp(f"config:{path}")

    ran.clear()
    return load


@pytest.mark.parametrize(
    ("options", "thread"),
    [
        ("", "Main"),
        ("executor = None", "Main"),
        (f"executor = {__name__}:test_pool", "pool"),
        (f"executor = {__name__}.test_pool", "pool"),
    ],
)
def test_an_ini_file_wraps_an_app(
    load: Callable[[str], Any], options: str, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtherThread(1, thread_name_prefix="pool") as executor:
        monkeypatch.setattr(sys.modules[__name__], "test_pool", executor)
        assert Exchange(load(options)).finish() == [b"hello"]
    assert ran == [thread]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("executor = default", "'default', which cannot be imported: No module named 'default'"),
        ("executor = conftest:nothing", "'conftest:nothing', which cannot be imported"),
        ("executor = 4", "'4', which cannot be imported"),
        ("executor = conftest:hello", r"'conftest:hello', which has no submit\(\)"),
    ],
)
def test_an_executor_that_is_none_is_refused(
    load: Callable[[str], Any], options: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"must be none, or .*{message}"):
        load(options)


def test_an_option_that_there_is_not_is_refused(load: Callable[[str], Any]) -> None:
    with pytest.raises(TypeError, match="pool_size"):
        load("pool_size = 4")


def test_the_setting_is_checked_when_the_app_is_configured() -> None:
    with pytest.raises(ValueError, match="threads"):
        make_app(registers(), **{"wsgi_after.executor": "threads"})
