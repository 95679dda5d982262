"""Callbacks that change the response: what the server gets, and what happens to mistakes."""

from __future__ import annotations

import subprocess
import sys
import weakref
from functools import partial

import pytest
from conftest import Exchange, hello, is_freed, make_environ
from hypothesis import given
from hypothesis import strategies as st

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_request
from wsgi_after._core.prepare import Response

PLAIN = ("Content-Type", "text/plain")
NEW = [PLAIN, ("X", "1")]


def prepared(*callbacks, status="200 OK", headers=(PLAIN,)):
    """What the server is given for a request whose app registers the callbacks."""

    def app(environ, start_response):
        for callback in callbacks:
            assert environ["wsgi.after"].on_prepare(callback) is callback
        start_response(status, headers if isinstance(headers, list) else [*headers])
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    return exchange.started


def header(name, value):
    return lambda response: response.headers.add(name, value)


def nothing(response):
    """Leave the response as it is, and return it: that is allowed."""
    return response


# What the server gets


def test_callbacks_change_the_headers_in_order_of_registration():
    cookie = lambda response: response.set_cookie("lang", "de")  # noqa: E731
    started = prepared(header("X-A", "1"), cookie, header("X-A", "2"))
    expected = [PLAIN, ("X-A", "1"), ("Set-Cookie", "lang=de; Path=/"), ("X-A", "2")]
    assert started == [("200 OK", expected)]


@pytest.mark.parametrize(
    "status",
    ["200", "200 ", " 200 Fine", "299 Caf\xe9", "OK", "204 no content", "404 Not  Found"],
)
def test_a_status_that_was_not_changed_stays_byte_for_byte(status):
    assert prepared(header("X", "1"), status=status) == [(status, NEW)]


LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"))


@given(st.lists(st.tuples(LATIN, LATIN)))
def test_headers_that_were_not_changed_stay_byte_for_byte(headers):
    """Order, repeated names, upper and lower case, spaces."""
    started = prepared(header("X-Last", "1"), headers=headers)
    assert started == [("200 OK", [*headers, ("X-Last", "1")])]


def test_repeated_set_cookie_headers_stay_where_one_other_header_changes():
    cookies = [("Set-Cookie", "a=1"), ("X", "old"), ("set-cookie", "b=2"), ("Set-Cookie", "a=1")]
    change = lambda response: response.headers.set("X", "new")  # noqa: E731
    [(_, headers)] = prepared(change, headers=cookies)
    assert headers == [*cookies[:1], ("X", "new"), *cookies[2:]]


def test_the_apps_own_list_of_headers_is_passed_on_or_copied_but_not_changed():
    """It may be a constant of the app's module."""
    headers = [PLAIN]
    assert prepared(nothing, headers=headers)[0][1] is headers
    assert prepared(header("X", "1"), headers=headers) == [("200 OK", NEW)]
    assert headers == [PLAIN]


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
def test_no_header_appears_that_nobody_set(status):
    """Not even if a callback reads it."""

    def look(response):
        assert (list(response.vary), response.content_type) == ([], None)
        assert response.cache_control.max_age is None

    assert prepared(look, status=status, headers=[]) == [(status, [])]


def test_every_way_to_change_the_response_is_carried_over():
    """The callback must make sure that the body matches the status and the length."""

    def change(response):
        response.status_code = 204
        response.headers["Content-Length"] = 0
        response.headers.setlist("X-A", ["1", "2"])
        response.headers[0] = ("X-B", "3")
        response.headers.update({"X-C": "4"})
        response.headers.setdefault("X-D", "5")
        response.vary.add("Cookie")
        response.delete_cookie("session")
        del response.headers["X-D"]

    cookie = "session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/"
    expected = [("X-B", "3"), ("Content-Length", "0"), ("X-A", "1"), ("X-A", "2"), ("X-C", "4")]
    expected += [("Vary", "Cookie"), ("Set-Cookie", cookie)]
    assert prepared(change, headers=[PLAIN, ("Content-Length", "5")]) == [
        ("204 NO CONTENT", expected)
    ]


# How start_response is called


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (("200 OK", [PLAIN]), {}, (("200 OK", NEW), {})),
        (("200 OK", [PLAIN], None), {}, (("200 OK", NEW, None), {})),
        (("200 OK", [PLAIN]), {"exc_info": None}, (("200 OK", NEW), {"exc_info": None})),
        (("200 OK",), {"headers": [PLAIN]}, (("200 OK",), {"headers": NEW})),
        (
            (),
            {"response_headers": [PLAIN], "status": "200 OK"},
            ((), {"response_headers": NEW, "status": "200 OK"}),
        ),
        (("200 OK",), {}, (("200 OK",), {})),  # the server may refuse this
        (("200 OK", (PLAIN,)), {}, (("200 OK", NEW), {})),  # many servers accept this
    ],
)
def test_the_server_is_called_with_as_many_arguments_as_the_app_passed(args, kwargs, expected):
    """The app gets the server's own write()."""

    def server(*args, **kwargs):
        assert (args, kwargs) == expected
        return print

    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(header("X", "1"))
        return [start_response(*args, **kwargs)]

    assert [*AfterResponseMiddleware(app)(make_environ(), server)] == [print]


def test_callbacks_run_again_on_the_headers_of_an_error_page(events):
    """What they register runs last, and belongs to that run only: it does not pile up."""
    error = (ValueError, ValueError("no"), None)

    def app(environ, start_response):
        after = environ["wsgi.after"]

        @after.on_prepare
        def first(response):
            events.append(f"first {response.status}")
            after.on_prepare(lambda response: events.append(f"nested {response.status}"))

        after.on_prepare(lambda response: events.append("second"))
        after.on_prepare(header("X", "1"))
        start_response("200 OK", [PLAIN])
        start_response("500 Error", [("X-Error", "1")], error)
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    assert events == [
        *("first 200 OK", "second", "nested 200 OK"),
        *("first 500 Error", "second", "nested 500 Error"),
    ]
    page = ("500 Error", [("X-Error", "1"), ("X", "1")], error)
    assert exchange.started == [("200 OK", NEW), page]


def test_status_and_headers_of_the_list_are_what_the_server_was_given(events):
    """The callback sees what the app gave."""

    def change(response):
        events.append((response.status, response.status_code, list(response.headers)))
        response.status = "418 Short and stout"
        response.headers["X"] = "1"

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.on_prepare(change)
        after(lambda: events.append((after.status, after.headers)))
        start_response("404 Gone fishing", [("x-a", "1"), ("X-A", "2")])
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    given, *changed = events
    assert given == ("404 Gone fishing", 404, [("x-a", "1"), ("X-A", "2")])
    assert changed == exchange.started
    assert changed == [("418 Short and stout", [("x-a", "1"), ("X-A", "2"), ("X", "1")])]


# Registering


def never_starts(environ, start_response):
    return []


@pytest.mark.parametrize("app", [hello, never_starts])
@pytest.mark.parametrize("early", [0, 1])
def test_registering_after_the_response_has_started_says_when_it_would_be_early_enough(
    early, app, events
):
    """In the app and in a callback. When the request is over, the error says that instead."""

    def refused(where):
        for on_prepare in (after.on_prepare, after_this_request):
            with pytest.raises(RuntimeError, match="before the app calls start_response"):
                on_prepare(header("X", "1"))
            events.append(where)

    def view(environ, start_response):
        nonlocal after
        after = environ["wsgi.after"]
        for _ in range(early):
            after.on_prepare(lambda response: events.append("early"))
        after(refused, "callback")
        app(environ, start_response)
        if app is hello:
            refused("app")
        return []

    after = None
    exchange = Exchange(AfterResponseMiddleware(view))
    exchange.finish()
    assert exchange.started == [("200 OK", [PLAIN])] * (app is hello)
    in_app = [*["early"] * early, "app", "app"] if app is hello else []
    assert events == [*in_app, "callback", "callback"]
    with pytest.raises(RuntimeError, match="have run already"):
        after.on_prepare(print)


def test_a_list_that_somebody_made_by_hand_has_no_response_to_prepare():
    with pytest.raises(RuntimeError, match="registered too late"):
        CallbackList().on_prepare(print)


async def coroutine_function(response):
    """Never runs."""


class AsyncCall:
    async def __call__(self, response):
        """Never runs."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *((wrong, "must be callable") for wrong in (None, "name", 3)),
        (coroutine_function, r"coroutine_function.* is a coroutine function"),
        (partial(coroutine_function), r"coroutine_function.* is a coroutine function"),
        (lambda response: False, "lambda.*returned bool"),
        (lambda response: "", "lambda.*returned str"),
        (lambda response: Response(), "lambda.*returned Response"),
        (AsyncCall(), r"AsyncCall.* returned coroutine"),  # which would warn if it were not closed
    ],
)
def test_what_cannot_run_or_returns_anything_but_the_response_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        prepared(wrong)


# What cannot be sent


@pytest.mark.parametrize(
    "way",
    [
        lambda response, *header: response.headers.__setitem__(*header),
        lambda response, name, value: response.headers.setlist(name, [value]),
        lambda response, *header: response.headers.extend([header]),
        lambda response, *header: setattr(response, "headers", type(response.headers)([header])),
    ],
    ids=["item", "setlist", "extend", "replace"],
)
@pytest.mark.parametrize("bad", ["a\r\nSet-Cookie: b=1", "a\n", "\rb", "\0", "\u20ac", "\udcff"])
def test_a_header_that_cannot_be_sent_is_named_and_not_sent(way, bad):
    """The message does not show the value: it may be a session, and the message goes to a log."""
    with pytest.raises(
        ValueError, match=r"value of header 'X-Note' contains .* cannot be sent"
    ) as raised:
        prepared(lambda response: way(response, "X-Note", f"hunter2{bad}"))
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ValueError, match=r"name of header .* contains .* cannot be sent"):
        prepared(lambda response: way(response, bad, "note"))


def slip_past_the_checks(response):
    response.headers._list.append(("X-Note", "\u20ac"))


def set_status(response):
    response.status = "200 OK\r\nX: 1"


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (slip_past_the_checks, r"'X-Note'.*test_prepare.slip_past_the_checks"),
        (set_status, r"The status contains '\\r', .*test_prepare.set_status"),
    ],
)
def test_what_a_callback_left_that_cannot_be_sent_names_the_callback(leaves, message):
    with pytest.raises(ValueError, match=message):
        prepared(leaves)


def test_a_header_of_the_app_that_cannot_be_sent_is_named():
    with pytest.raises(ValueError, match="value of header 'X-Bad' contains"):
        prepared(nothing, headers=[("X-Good", "1"), ("X-Bad", "a\nb")])


def test_latin_1_and_tabs_can_be_sent():
    assert prepared(header("X-Caf\xe9", "\xff\t")) == [("200 OK", [PLAIN, ("X-Caf\xe9", "\xff\t")])]


# What a callback raises


class Stop(BaseException):
    pass


def at_once(app):
    """The same app, but the call makes the whole body."""
    return lambda *args: [*app(*args)]


def fail(error, response):
    raise error


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), Stop("no")])
def test_what_a_callback_raises_is_an_exception_of_the_app(error, lazy, events):
    """The server is not called, so there is no status. Later, callbacks see the error."""

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(lambda: events.append((after.status, after.error)))
        after.on_prepare(partial(fail, error))
        after.on_prepare(lambda response: events.append("not reached"))
        yield from hello(environ, start_response)

    with pytest.raises(type(error)) as caught:
        Exchange(AfterResponseMiddleware(app if lazy else at_once(app))).finish()
    assert (caught.value, events) == (error, [(None, error)])


def test_an_app_that_catches_it_may_start_another_response_which_is_prepared_too(events):
    """As with any error that the app handles, ``error`` stays ``None``."""

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(lambda: events.append((after.status, after.error)))

        @after.on_prepare
        def only_on_success(response):
            events.append(response.status)
            if response.status_code == 200:
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            start_response("200 OK", [PLAIN])
        after.on_prepare(header("X", "1"))
        start_response("500 Error", [PLAIN])
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    assert events == ["200 OK", "500 Error", ("500 Error", None)]
    assert exchange.started == [("500 Error", NEW)]


def test_a_response_that_the_server_refused_has_not_started(events):
    def refuse_once(status, headers):
        events.append((status, headers))
        if len(events) == 1:
            raise AssertionError("refused")

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.on_prepare(nothing)
        with pytest.raises(AssertionError, match="refused"):
            start_response("200", [])
        assert (after.status, after.headers) == (None, None)
        after.on_prepare(header("X", "1"))
        start_response("200 OK", [PLAIN])
        return []

    AfterResponseMiddleware(app)(make_environ(), refuse_once).close()
    assert events == [("200", []), ("200 OK", NEW)]


# Nothing is imported before it is used, and nothing is kept


def test_werkzeug_is_not_imported_unless_a_callback_is_registered():
    code = """
import sys
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    if "register" in environ:
        environ["wsgi.after"].on_prepare(lambda response: None)
    start_response("200 OK", [])
    return []

def loaded(**environ):
    AfterResponseMiddleware(app)(environ, lambda status, headers: None).close()
    return "werkzeug" in sys.modules, "wsgi_after._core.prepare" in sys.modules

print(loaded(), loaded(register=True))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "(False, False) (True, True)"


def interrupt(response):
    raise KeyboardInterrupt


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("callback", [nothing, interrupt])
def test_nothing_is_kept_of_a_request_that_is_over(lazy, callback):
    """Not even by objects that an app may keep."""
    kept = []

    def app(environ, start_response):
        after = environ["wsgi.after"]
        kept.append((after, start_response))
        after.on_prepare(
            lambda response: (environ, kept.append(weakref.ref(response)), callback(response))[2]
        )
        start_response("200 OK", [])
        yield b""

    assert is_freed(AfterResponseMiddleware(app if lazy else at_once(app)))
    assert kept.pop()() is None
