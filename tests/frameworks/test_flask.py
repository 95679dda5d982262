"""wsgi_after.flask, through the test client: callbacks in the context of their request."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
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
    session,
    url_for,
)

from wsgi_after.flask import AfterResponse, AfterResponseClient, after_this_response

from .conftest import flask_app


@pytest.fixture
def app():
    return flask_app()


@pytest.fixture
def get(app):
    """Serve a view at ``/``, and request it."""

    def get(view, path="/", **options):
        app.add_url_rule("/", view_func=view, endpoint="index", methods=["GET", "POST"])
        return app.test_client().open(path, **options)

    return get


@pytest.fixture
def after(get):
    """Request a view that registers these callbacks."""

    def after(*callbacks, **options):
        def view():
            g.user, session["visits"] = "ada", 3
            for fn in callbacks:
                after_this_response(fn)
            return "hello"

        return get(view, **options)

    return after


# The recipe that people copy: https://stackoverflow.com/a/51013358


def test_the_well_known_recipes_example_runs_with_only_the_import_changed(capsys):
    app = Flask("after_response")
    AfterResponse(app)

    @app.after_response
    def say_hi():
        print("hi")

    @app.route("/")
    def home():
        return "Success!\n"

    for _ in range(2):
        response = app.test_client().get("/")
        assert (response.text, capsys.readouterr().out) == ("Success!\n", "")
        response.close()
        assert capsys.readouterr().out == "hi\n"


def test_the_second_time_nothing_is_added(app, get, events):
    app.after_response(lambda: events.append("before"))
    wrapped, after_response = app.wsgi_app, app.after_response
    AfterResponse(app)
    assert (app.wsgi_app, app.after_response) == (wrapped, after_response)
    app.after_response(lambda: events.append("after"))
    get(lambda: after_this_response(events.append, "this response") and "hello")
    assert events == ["before", "after", "this response"]


# What a callback finds.


def test_the_context_is_that_of_the_request(app, after, events):
    """For functions that run after each response; test_cells.py tests those for one response."""

    def look():
        form = request.form["name"]
        events.append((current_app.name, g.user, request.method, form, session["visits"]))
        events.append(url_for("index", page=2))

    app.after_response(look)
    after(method="POST", data={"name": "grace"})
    assert events == [("shop", "ada", "POST", "grace", 3), "/?page=2"]
    assert not has_app_context()
    assert not has_request_context()


def test_what_a_callback_changes_in_the_session_is_not_stored(app):
    def view():
        after_this_response(lambda: session.update(late=True))
        session["early"] = True
        return "hello"

    app.add_url_rule("/", view_func=view)
    with app.test_client() as client:
        client.get("/")
        with client.session_transaction() as stored:
            assert dict(stored) == {"early": True}


@pytest.mark.parametrize("fails", [False, True])
def test_teardown_functions_run_after_each_callback(app, after, events, fails):
    app.teardown_request(lambda error: events.append(("request", error)))
    app.teardown_appcontext(lambda error: events.append(("app", error)))
    error = ValueError("on purpose")

    def fail():
        events.append("fails")
        raise error

    after(*[fail, lambda: events.append("runs")] * fails)
    teardown = [("request", None), ("app", None)]
    failed = [("request", error), ("app", error)]
    assert events == [*teardown, *["fails", *failed, "runs", *teardown] * fails]


def test_async_views_and_async_callbacks(app, get, events):
    @app.after_response
    async def count():
        events.append(request.path)

    async def mail(to):
        events.append((to, g.user))

    async def view():
        g.user = "ada"
        after_this_response(mail, "ada@example.com")
        return "hello"

    get(view)
    assert events == ["/", ("ada@example.com", "ada")]


# Which responses.


def fails():
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("view", "path", "status"),
    [
        (lambda: "hello", "/", "200 OK"),
        (lambda: abort(403), "/", "403 FORBIDDEN"),
        (lambda: abort(403), "/missing", "404 NOT FOUND"),
        (fails, "/", "500 INTERNAL SERVER ERROR"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_functions_for_each_response_run(app, get, events, view, path, status, method):
    app.after_response(lambda: events.append(request.environ["wsgi.after"].status))
    get(view, path, method=method)
    assert events == [status]


def test_a_function_for_each_response_runs_before_an_exception_goes_on(app, get, events):
    app.testing = True  # as in debug mode, the exception propagates to the server
    app.after_response(lambda: events.append(repr(request.environ["wsgi.after"].error)))
    with pytest.raises(ValueError, match="on purpose"):
        get(fails)
    assert events == ["ValueError('on purpose')"]


def test_a_request_whose_session_cannot_be_opened_is_not_passed_over(app, get, events):
    opened = app.session_interface.open_session
    failures = [ConnectionError("the store is away")]

    def open_session(*args):
        if failures:
            raise failures.pop()
        return opened(*args)

    app.session_interface.open_session = open_session
    app.after_response(lambda: events.append(request.environ["wsgi.after"].status))
    assert get(lambda: "hello").status_code == 500
    assert events == ["500 INTERNAL SERVER ERROR"]


# The test client.


@pytest.mark.parametrize("ours", [False, True])
def test_flasks_own_client_leaves_the_response_open_and_ours_does_if_asked(app, events, ours):
    app.after_response(lambda: events.append(request.path))
    if not ours:
        app.test_client_class = None
    response = app.test_client().get("/", **{"buffered": False} if ours else {})
    assert events == []
    response.close()
    app.test_client().get("/2", buffered=True)
    assert events == ["/", "/2"]


def test_our_client_follows_redirects(app, get, events):
    app.after_response(lambda: events.append(request.path))
    app.add_url_rule("/new", view_func=lambda: "hello", endpoint="new")
    assert get(lambda: redirect("/new"), follow_redirects=True).text == "hello"
    assert events == ["/", "/new"]


def test_a_context_that_the_client_keeps_is_torn_down_apart(app, events):
    """``with client:`` holds the context until the next request."""
    app.teardown_appcontext(lambda error: events.append("teardown"))
    app.after_response(lambda: events.append((g.user, request.path)))

    @app.get("/")
    def index():
        g.user = "ada"
        return "hello"

    with app.test_client() as client:
        response = client.get("/", buffered=False)
        events.clear()
        response.close()
        assert events == [("ada", "/"), "teardown"]
        assert g.user == "ada"
    assert events == [("ada", "/"), "teardown", "teardown"]


# Several apps.


def test_apps_do_not_see_each_others_callbacks(events):
    """One calls the other, in its view. They share one extension, which gets them later."""
    extension = AfterResponse()
    outer, inner = Flask("outer"), Flask("inner")
    for each in (outer, inner):
        extension.init_app(each)
        each.test_client_class = AfterResponseClient
        each.after_response(lambda: events.append(("each", current_app.name, g.place)))

    def note():
        events.append(("this", current_app.name, g.place))

    @inner.get("/")
    def inner_view():
        g.place = "inside"
        after_this_response(note)
        return "inner"

    @outer.get("/")
    def outer_view():
        g.place = "outside"
        after_this_response(note)
        text = inner.test_client().get("/").text
        after_this_response(note)
        return text

    assert outer.test_client().get("/").text == "inner"
    inside = [("each", "inner", "inside"), ("this", "inner", "inside")]
    outside = ("this", "outer", "outside")
    assert events == [*inside, ("each", "outer", "outside"), outside, outside]


def test_an_app_that_answers_for_another_shares_its_list(events):
    """As when apps are mounted, each under a prefix, with one environ."""
    outer, inner = flask_app("outer"), flask_app("inner")
    for each in (outer, inner):
        each.after_response(lambda: events.append(current_app.name))
    outer.add_url_rule("/", view_func=lambda: Response.from_app(inner.wsgi_app, request.environ))
    inner.add_url_rule("/", view_func=lambda: "inner")
    assert outer.test_client().get("/").text == "inner"
    assert events == ["outer", "inner"]


# In another process.


@pytest.mark.usefixtures("throttles")
def test_what_cannot_be_pickled_runs_in_close_with_a_warning(events, caplog):
    class Queue:
        def submit(self, fn, *args):
            pickle.dumps((fn, args))

    app = flask_app(executor=Queue())
    app.after_response(lambda: events.append("ran"))
    app.test_client().get("/")
    assert events == ["ran"]
    [message] = caplog.messages
    assert "cannot be pickled, because it needs the context" in message


# Mistakes.


def test_a_function_for_each_response_takes_no_arguments(app):
    with pytest.raises(TypeError, match=r"of Flask calls a function without arguments: take"):
        app.after_response(lambda environ: None)
    with pytest.raises(TypeError, match=r"A callback must be callable, not NoneType: None\."):
        app.after_response(None)
    app.after_response(lambda environ=None: None)
    app.after_response(dict)  # its signature is unknown


def test_a_callback_takes_the_arguments_that_it_is_given(get):
    def takes_one(user): ...

    def view():
        with pytest.raises(TypeError, match=r"takes_one\(user.*\).* cannot be called: miss"):
            after_this_response(takes_one)
        with pytest.raises(TypeError, match="too many positional arguments"):
            after_this_response(takes_one, "ada", "grace")
        with pytest.raises(
            TypeError, match=r"not NoneType: None\. .* called instead of passed: write after"
        ):
            after_this_response(print())
        return "hello"

    assert get(view).text == "hello"


def test_outside_a_request_and_without_the_extension_it_says_what_is_missing(app):
    with app.app_context(), pytest.raises(RuntimeError, match="called outside a request of Flask"):
        after_this_response(print)
    with (
        Flask("bare").test_request_context(),
        pytest.raises(RuntimeError, match=r"^<Flask 'bare'> is not wrapped, so nothing would run"),
    ):
        after_this_response(print)


def test_in_a_view_a_function_for_each_response_is_refused(app, get):
    """Copies of the recipe do this: each request adds a function that runs for all later ones."""
    app.testing = True
    with pytest.raises(RuntimeError, match=r"use wsgi_after\.flask\.after_this_response"):
        get(lambda: app.after_response(print))


def test_after_the_callbacks_it_is_too_late(app):
    app.add_url_rule("/late", view_func=lambda: "hello")
    with app.test_client() as client:
        client.get("/late")
        with pytest.raises(RuntimeError, match="have run already"):
            after_this_response(print)


def test_a_request_that_is_handled_without_wsgi_has_no_callbacks(app, events):
    app.after_response(lambda: events.append("ran"))
    with app.test_request_context("/"):
        assert app.full_dispatch_request().status_code == 404
    assert events == []


def test_an_app_is_freed():
    app = flask_app()
    app.after_response(lambda: None)
    app.test_client().get("/")
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None


def test_on_error_is_told_of_the_function_that_failed(events):
    app = flask_app(on_error=lambda callback, error, after: events.append((callback.func, after)))

    @app.get("/")
    def view():
        after_this_response(lambda: 1 / 0)
        return "hello"

    app.test_client().get("/")
    [(function, after)] = events
    assert (function.__name__, after.status) == ("<lambda>", "200 OK")
