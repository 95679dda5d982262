"""wsgi_after.flask, by the test client: callbacks in the context of their request."""

from __future__ import annotations

import gc
import io
import logging
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread
from typing import Any

import pytest
from conftest import Marker, collector_off
from flask import (
    Flask,
    Response,
    abort,
    current_app,
    g,
    has_app_context,
    has_request_context,
    redirect,
    request,
    send_file,
    session,
    stream_with_context,
    url_for,
)

import wsgi_after
from wsgi_after import AfterResponseMiddleware
from wsgi_after.flask import AfterResponse, AfterResponseClient, after_this_response
from wsgi_after.testing import capture


def make_app(name: str = "shop", **options: Any) -> Flask:
    app = Flask(name)
    app.secret_key = "secret"
    app.test_client_class = AfterResponseClient
    AfterResponse(app, **options)
    return app


@pytest.fixture
def app() -> Flask:
    return make_app()


@pytest.fixture
def get(app: Flask) -> Any:
    """Serve a view at ``/``, and request it."""

    def get(view: Any, path: str = "/", **options: Any) -> Any:
        app.add_url_rule("/", view_func=view, endpoint="index", methods=["GET", "POST"])
        return app.test_client().open(path, **options)

    return get


@pytest.fixture
def after(get: Any) -> Any:
    """Request a view that registers these callbacks."""

    def after(*callbacks: Any, **options: Any) -> Any:
        def view() -> str:
            g.user, session["visits"] = "ada", 3
            for fn in callbacks:
                after_this_response(fn)
            return "hello"

        return get(view, **options)

    return after


# The recipe that people copy: https://stackoverflow.com/a/51013358


def test_the_well_known_recipes_example_runs_with_only_the_import_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = Flask("after_response")
    AfterResponse(app)

    @app.after_response
    def say_hi() -> None:
        print("hi")

    @app.route("/")
    def home() -> str:
        return "Success!\n"

    for _ in range(2):
        response = app.test_client().get("/")
        assert (response.text, capsys.readouterr().out) == ("Success!\n", "")
        response.close()
        assert capsys.readouterr().out == "hi\n"


def test_the_second_time_nothing_is_added(app: Flask, get: Any, events: list[str]) -> None:
    app.after_response(lambda: events.append("before"))
    wrapped, after_response = app.wsgi_app, app.after_response
    AfterResponse(app)
    assert (app.wsgi_app, app.after_response) == (wrapped, after_response)
    app.after_response(lambda: events.append("after"))
    get(lambda: "hello")
    assert events == ["before", "after"]


# What a callback finds.


@pytest.mark.parametrize("each", [False, True], ids=["this response", "each response"])
def test_the_context_is_that_of_the_request(
    app: Flask, after: Any, events: list[Any], each: bool
) -> None:
    def look() -> None:
        form = request.form["name"]
        events.append((current_app.name, g.user, request.method, form, session["visits"]))
        events.append(url_for("index", page=2))

    if each:
        app.after_response(look)
    after(*[] if each else [look], method="POST", data={"name": "grace"})
    assert events == [("shop", "ada", "POST", "grace", 3), "/?page=2"]
    assert not has_app_context()
    assert not has_request_context()


def test_what_a_callback_changes_in_the_session_is_not_stored(app: Flask) -> None:
    def view() -> str:
        after_this_response(lambda: session.update(late=True))
        session["early"] = True
        return "hello"

    app.add_url_rule("/", view_func=view)
    with app.test_client() as client:
        client.get("/")
        with client.session_transaction() as stored:
            assert dict(stored) == {"early": True}


@pytest.mark.parametrize("fails", [False, True])
def test_teardown_functions_run_after_each_callback_and_are_told_of_its_error(
    app: Flask, after: Any, events: list[Any], fails: bool
) -> None:
    app.teardown_request(lambda error: events.append(("request", error)))
    app.teardown_appcontext(lambda error: events.append(("app", error)))
    error = ValueError("on purpose")

    def fail() -> None:
        events.append("fails")
        raise error

    after(*[fail, lambda: events.append("runs")] * fails)
    teardown = [("request", None), ("app", None)]
    failed = [("request", error), ("app", error)]
    assert events == [*teardown, *["fails", *failed, "runs", *teardown] * fails]


def test_they_run_in_order_with_the_others_of_the_request(
    app: Flask, get: Any, events: list[str]
) -> None:
    app.after_response(lambda: events.append("1: for each response"))
    app.after_response(lambda: events.append("2: for each response"))

    def view() -> str:
        after_this_response(events.append, "3: Flask's")
        wsgi_after.after_this_response(events.append, "4: not Flask's")

        @after_this_response
        def nested() -> None:
            events.append("5: a decorator")
            after_this_response(events.append, "6: from a callback")

        return "hello"

    get(view)
    assert [event[0] for event in events] == list("123456")


def test_arguments_go_through_and_one_that_fails_is_logged_by_its_name(
    get: Any, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        events.append((args, kwargs))
        raise ValueError

    def view() -> str:
        after_this_response(fails, 1, fn=2, self=3)
        return "hello"

    get(view)
    assert events == [((1,), {"fn": 2, "self": 3})]
    assert caplog.messages == [f"Callback {__name__}.{fails.__qualname__} of GET / failed."]


def test_async_views_and_async_callbacks(app: Flask, get: Any, events: list[Any]) -> None:
    @app.after_response
    async def count() -> None:
        events.append(request.path)

    async def mail(to: str) -> None:
        events.append((to, g.user))

    async def view() -> str:
        g.user = "ada"
        after_this_response(mail, "ada@example.com")
        return "hello"

    get(view)
    assert events == ["/", ("ada@example.com", "ada")]


# Which responses.


def redirects() -> Any:
    return redirect("/elsewhere")


def aborts() -> Any:
    abort(403)


def fails() -> Any:
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("view", "path", "status"),
    [
        (lambda: "hello", "/", "200 OK"),
        (lambda: ("", 204), "/", "204 NO CONTENT"),
        (redirects, "/", "302 FOUND"),
        (aborts, "/", "403 FORBIDDEN"),
        (aborts, "/missing", "404 NOT FOUND"),
        (fails, "/", "500 INTERNAL SERVER ERROR"),
    ],
)
def test_functions_for_each_response_run_after_every_one(
    app: Flask, get: Any, events: list[Any], view: Any, path: str, status: str
) -> None:
    app.after_response(lambda: events.append(request.environ["wsgi.after"].status))
    for method in ("GET", "HEAD"):
        app.test_client().open(path, method=method) if events else get(view, path)
    assert events == [status, status]


def test_an_error_handler_sees_to_the_response_and_callbacks_run_after_it(
    app: Flask, get: Any, events: list[Any]
) -> None:
    def after(place: str) -> None:
        callbacks = request.environ["wsgi.after"]
        events.append((place, callbacks.status, callbacks.error))

    @app.errorhandler(ValueError)
    def handle(error: ValueError) -> tuple[str, int]:
        after_this_response(after, "handler")
        return "sorry", 503

    def view() -> str:
        after_this_response(after, "view")
        raise ValueError

    assert get(view).text == "sorry"
    sorry = "503 SERVICE UNAVAILABLE"  # the error was handled: for WSGI there is none
    assert events == [("view", sorry, None), ("handler", sorry, None)]


def test_they_run_before_an_exception_that_nobody_handles_goes_on(
    app: Flask, get: Any, events: list[Any]
) -> None:
    app.testing = True  # as in debug mode, it goes on to the server
    app.after_response(lambda: events.append("for each response"))

    def view() -> str:
        after_this_response(lambda: events.append(repr(request.environ["wsgi.after"].error)))
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        get(view)
    assert events == ["for each response", "ValueError('on purpose')"]


def test_a_request_whose_session_cannot_be_opened_is_not_passed_over(
    app: Flask, get: Any, events: list[str]
) -> None:
    opened = app.session_interface.open_session
    failures = [ConnectionError("the store is away")]

    def open_session(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return opened(*args)

    app.session_interface.open_session = open_session  # type: ignore[method-assign]
    app.after_response(lambda: events.append(request.environ["wsgi.after"].status))
    assert get(lambda: "hello").status_code == 500
    assert events == ["500 INTERNAL SERVER ERROR"]


def test_they_run_once_a_stream_has_ended_and_may_be_registered_in_it(
    get: Any, events: list[str]
) -> None:
    def view() -> Any:
        @stream_with_context
        def body() -> Any:
            yield "one"
            after_this_response(events.append, f"callback of {request.path}")
            yield "two"
            events.append("stream ends")

        return body()

    assert get(view).text == "onetwo"
    assert events == ["stream ends", "callback of /"]


def test_they_run_if_the_client_leaves_in_mid_stream(app: Flask, get: Any, events: Any) -> None:
    def body() -> Any:
        try:
            yield "one"
            yield "two"
        finally:
            events.append("stream closed")

    app.after_response(lambda: events.append("callback"))
    response = get(lambda: body(), buffered=False)
    assert next(response.response) == b"one"
    response.close()
    assert events == ["stream closed", "callback"]


def test_a_file_is_sent(app: Flask, get: Any, events: list[str]) -> None:
    app.after_response(lambda: events.append("callback"))
    sent = get(lambda: send_file(io.BytesIO(b"content"), mimetype="text/plain"))
    assert (sent.data, events) == (b"content", ["callback"])


# The test client.


@pytest.mark.parametrize("ours", [False, True])
def test_flasks_own_client_leaves_the_response_open_and_ours_does_if_asked(
    app: Flask, events: list[str], ours: bool
) -> None:
    app.after_response(lambda: events.append("ran"))
    if not ours:
        app.test_client_class = None
    response = app.test_client().get("/", **{"buffered": False} if ours else {})
    assert events == []
    response.close()
    assert events == ["ran"]
    app.test_client().get("/", buffered=True)
    assert events == ["ran", "ran"]


def test_our_client_follows_redirects(app: Flask, events: list[str]) -> None:
    app.after_response(lambda: events.append(request.path))
    app.add_url_rule("/old", view_func=lambda: redirect("/new"))
    app.add_url_rule("/new", view_func=lambda: "hello", endpoint="new")
    assert app.test_client().get("/old", follow_redirects=True).text == "hello"
    assert events == ["/old", "/new"]


def test_a_context_that_the_client_keeps_is_torn_down_apart(app: Flask, events: list[Any]) -> None:
    """``with client:`` holds the context until the next request."""
    app.teardown_appcontext(lambda error: events.append("teardown"))
    app.after_response(lambda: events.append((g.user, request.path)))

    @app.get("/")
    def index() -> str:
        g.user = "ada"
        return "hello"

    with app.test_client() as client:
        response = client.get("/", buffered=False)
        events.clear()
        response.close()
        assert events == [("ada", "/"), "teardown"]
        assert g.user == "ada"
    assert events == [("ada", "/"), "teardown", "teardown"]


def test_callbacks_can_be_captured(after: Any, events: list[Any]) -> None:
    with capture() as captured:
        after(lambda: events.append(g.user))
    assert (events, len(captured.callbacks)) == ([], 1)
    captured.run()
    assert events == ["ada"]


# Several.


def test_apps_do_not_see_each_others_callbacks(events: list[Any]) -> None:
    """One calls the other, in its view. They have one extension, which is given them later."""
    extension = AfterResponse()
    outer, inner = Flask("outer"), Flask("inner")
    for each in (outer, inner):
        extension.init_app(each)
        each.test_client_class = AfterResponseClient
        each.after_response(lambda: events.append(("each", current_app.name, g.place)))

    def note() -> None:
        events.append(("this", current_app.name, g.place))

    @inner.get("/")
    def inner_view() -> str:
        g.place = "inside"
        after_this_response(note)
        return "inner"

    @outer.get("/")
    def outer_view() -> str:
        g.place = "outside"
        after_this_response(note)
        text = inner.test_client().get("/").text
        after_this_response(note)
        return text

    assert outer.test_client().get("/").text == "inner"
    inside = [("each", "inner", "inside"), ("this", "inner", "inside")]
    outside = ("this", "outer", "outside")
    assert events == [*inside, ("each", "outer", "outside"), outside, outside]


def test_an_app_that_answers_for_another_shares_its_list(events: list[Any]) -> None:
    """As it is when apps are mounted, each under a prefix, in one environ."""
    outer, inner = make_app("outer"), make_app("inner")
    for each in (outer, inner):
        each.after_response(lambda: events.append(current_app.name))
    outer.add_url_rule("/", view_func=lambda: Response.from_app(inner.wsgi_app, request.environ))
    inner.add_url_rule("/", view_func=lambda: "inner")
    assert outer.test_client().get("/").text == "inner"
    assert events == ["outer", "inner"]


def test_the_list_of_a_middleware_outside_is_used(app: Flask, events: list[Any]) -> None:
    app.wsgi_app = outer = AfterResponseMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    outer.after_response(lambda environ: events.append((environ["PATH_INFO"], has_app_context())))
    app.after_response(lambda: events.append(request.path))
    app.add_url_rule("/", view_func=lambda: after_this_response(events.append, "this") and "hello")
    app.test_client().get("/")
    assert events == [("/", False), "/", "this"]


def test_an_outer_middleware_alone_is_enough_for_after_this_response(events: list[Any]) -> None:
    app = Flask("bare")
    app.wsgi_app = AfterResponseMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    app.add_url_rule("/", view_func=lambda: after_this_response(note) and "hello")

    def note() -> None:
        events.append(current_app.name)

    app.test_client().get("/", buffered=True)
    assert events == ["bare"]


def test_requests_in_threads_do_not_mix(app: Flask, events: list[Any]) -> None:
    app.after_response(lambda: events.append((request.args["user"], g.user)))

    @app.get("/")
    def index() -> str:
        g.user = request.args["user"]
        after_this_response(lambda: events.append((request.args["user"], g.user)))
        return "hello"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda user: app.test_client().get(f"/?user={user}"), range(40)))
    assert sorted(events) == sorted(2 * [(str(user), str(user)) for user in range(40)])


# In a pool.


def test_in_a_pool_thread_what_the_view_has_read_is_there(events: list[Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        app = make_app(executor=pool)
        app.teardown_appcontext(lambda error: events.append("teardown"))
        name = app.name

        def look(upload: Any) -> None:
            events.append((current_app.name, g.user, request.form["a"], session["visits"]))
            events.append((request.args["b"], request.headers["X-Header"], upload.stream.closed))

        @app.post("/")
        def index() -> str:
            g.user, session["visits"] = "ada", 3
            after_this_response(look, request.files["file"])
            return "hello"

        data = {"a": "1", "file": (io.BytesIO(b"content"), "file.txt")}
        app.test_client().post("/?b=2", data=data, headers={"X-Header": "3"})
    files_are_closed = True
    assert events == [
        *("teardown", (name, "ada", "1", 3), ("2", "3", files_are_closed), "teardown"),
    ]


@pytest.mark.parametrize("inner", [False, True])
def test_the_innermost_executor_counts(events: list[Any], inner: bool) -> None:
    with ThreadPoolExecutor(1, "inner") as pool, ThreadPoolExecutor(1, "outer") as outer:
        app = make_app(executor=pool if inner else None)
        app.wsgi_app = AfterResponseMiddleware(  # type: ignore[method-assign]
            app.wsgi_app, executor=outer
        )
        app.after_response(lambda: events.append(current_thread().name))
        app.test_client().get("/")
    assert events == ["inner_0" if inner else "outer_0"]


def test_in_another_process_it_cannot_run_and_says_so(after: Any) -> None:
    with capture() as captured:
        after(print)
    with pytest.raises(TypeError, match="cannot be pickled, because it needs the context"):
        pickle.dumps(captured.callbacks)


def test_if_the_executor_pickles_they_run_in_close(
    events: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Queue:
        def submit(self, fn: Any, *args: Any) -> None:
            pickle.dumps((fn, args))

    app = make_app(executor=Queue())
    app.after_response(lambda: events.append("ran"))
    caplog.set_level(logging.WARNING, "wsgi_after")
    app.test_client().get("/")
    assert events == ["ran"]


# Mistakes.


def test_a_function_for_each_response_takes_no_arguments(app: Flask) -> None:
    with pytest.raises(TypeError, match=r"of Flask calls a function without arguments: take"):
        app.after_response(lambda environ: None)
    with pytest.raises(TypeError, match=r"A callback must be callable, not NoneType: None\."):
        app.after_response(None)
    app.after_response(lambda environ=None: None)
    app.after_response(dict)  # it does not tell what it takes


def test_a_callback_takes_the_arguments_that_it_is_given(get: Any) -> None:
    def takes_one(user: str) -> None: ...

    def view() -> str:
        with pytest.raises(TypeError, match=r"takes_one\(user.*\).* cannot be called: miss"):
            after_this_response(takes_one)
        with pytest.raises(TypeError, match="too many positional arguments"):
            after_this_response(takes_one, "ada", "grace")
        with pytest.raises(TypeError, match="must be callable, not NoneType"):
            after_this_response(print())
        return "hello"

    assert get(view).text == "hello"


def test_outside_a_request_there_is_no_response_to_wait_for(app: Flask) -> None:
    with app.app_context(), pytest.raises(RuntimeError, match="was called outside a request of Fl"):
        after_this_response(print)


def test_without_the_extension_it_says_what_is_missing() -> None:
    with (
        Flask("bare").test_request_context(),
        pytest.raises(RuntimeError, match=r"^<Flask 'bare'> is not wrapped, so nothing would run"),
    ):
        after_this_response(print)


def test_after_the_callbacks_it_is_too_late(app: Flask) -> None:
    app.add_url_rule("/late", view_func=lambda: "hello")
    with app.test_client() as client:
        client.get("/late")
        with pytest.raises(RuntimeError, match="have run already"):
            after_this_response(print)


def test_in_a_view_a_function_for_each_response_is_refused(app: Flask, get: Any) -> None:
    """Copies of the recipe do it: each request adds one more, which runs for all that follow."""
    app.testing = True
    with pytest.raises(RuntimeError, match=r"use wsgi_after\.flask\.after_this_response"):
        get(lambda: app.after_response(print))


def test_a_request_that_is_handled_without_wsgi_has_no_callbacks(
    app: Flask, events: list[str]
) -> None:
    app.after_response(lambda: events.append("ran"))
    with app.test_request_context("/"):
        assert app.full_dispatch_request().status_code == 404
    assert events == []


# Nothing is kept.


def test_the_environ_is_freed_without_the_garbage_collector(app: Flask) -> None:
    app.after_response(lambda: g.user)

    @app.get("/")
    def index() -> str:
        g.user = "ada"
        after_this_response(lambda: session.get("visits"))
        return "hello"

    environ = {**app.test_request_context("/").request.environ, "marker": Marker()}
    environ.pop("werkzeug.request", None)
    marker = weakref.ref(environ["marker"])
    with collector_off():
        result = app(environ, lambda *args: print)
        assert b"".join(result) == b"hello"
        result.close()
        del environ, result
        assert marker() is None


def test_an_app_is_freed() -> None:
    app = make_app()
    app.after_response(lambda: None)
    app.test_client().get("/")
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None
