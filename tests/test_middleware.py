"""The call of the app: rules 2, 5, 8 and 9 of the contract.

``cases/test_calls.py`` tests which calls share a list.
"""

from __future__ import annotations

import gc
import threading
from functools import partial

import pytest
from conftest import Exchange, Immediately, at_once, hello, is_freed, make_environ, registers

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_response


@pytest.mark.parametrize("app", [None, "module:app", 1])
def test_an_app_that_is_not_callable_is_refused_at_construction(app):
    with pytest.raises(TypeError, match=f"expects a WSGI application.*{type(app).__name__}"):
        AfterResponseMiddleware(app)


# The list (rules 1 and 2)


def test_each_request_has_a_list_of_its_own():
    """The process shares no list."""
    application = AfterResponseMiddleware(hello)
    first, second = Exchange(application), Exchange(application)
    assert type(first.environ["wsgi.after"]) is CallbackList
    assert first.environ["wsgi.after"] is not second.environ["wsgi.after"]


def test_a_plain_list_that_is_there_is_used_and_left_to_its_owner():
    """The response is left alone, too: nothing is wrapped."""
    body = [b"hello"]

    def app(environ, start_response):
        environ["wsgi.after"].append("by append")
        after_this_response(print, "by function")
        return body

    theirs = []
    application = AfterResponseMiddleware(app)
    application.after_response(print)
    exchange = Exchange(application, make_environ(**{"wsgi.after": theirs}))
    assert (exchange.environ["wsgi.after"] is theirs, exchange.result is body) == (True, True)
    app_wide, by_append, by_function = theirs
    assert (app_wide.func, app_wide.args) == (print, (exchange.environ,))
    assert by_append == "by append"
    assert (by_function.func, by_function.args) == (print, ("by function",))


def test_an_environ_that_is_sent_again_gets_a_new_list(events):
    """WebOb and WebTest send environs again."""
    application, environ = registers(partial(events.append, "ran")), make_environ()
    for _ in range(2):
        assert Exchange(application, environ).finish() == [b"hello"]
    assert events == ["ran", "ran"]


@pytest.mark.parametrize("there", [None, (), {}, "text", lambda: None])
def test_a_key_that_is_no_list_is_named(there):
    with pytest.raises(TypeError, match=f"is {type(there).__name__}, where a list.*usual cause"):
        Exchange(AfterResponseMiddleware(hello), make_environ(**{"wsgi.after": there}))


# App-wide callbacks


def test_two_instances_share_one_list_with_the_app_wide_callbacks_of_the_outer_one_first(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "app"))
        after_this_response(events.append, "app, without environ")
        return hello(environ, start_response)

    inner = AfterResponseMiddleware(app)
    outer = AfterResponseMiddleware(inner)
    inner.after_response(lambda environ: events.append("inner"))
    outer.after_response(lambda environ: events.append("outer"))

    @outer.after_response
    def second(environ):
        events.append((environ["PATH_INFO"], environ["wsgi.after"].status))

    for _ in range(2):
        assert Exchange(outer).finish() == [b"hello"]
    of_one = ["outer", ("/path", "200 OK"), "inner", "app", "app, without environ"]
    assert (events, callable(second)) == (of_one * 2, True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", r"not str: 'text'\. .*not after\(fn\(x\)\)"),
        (lambda: None, r"cannot be called: too many .* that takes the environ\."),
    ],
)
def test_an_app_wide_callback_that_cannot_be_called_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        AfterResponseMiddleware(hello).after_response(wrong)


# What the server sees (rule 8)


OK = ("200 OK", [])
#: How an app calls start_response(): the arguments of each call.
CALLS = {
    "lazily": [(OK, {})],
    "with exc_info": [((*OK, (1, 2, 3)), {})],
    "with None": [((*OK, None), {})],
    "never": [],
    "twice": [(OK, {}), (("201 Created", []), {})],
    "without headers": [(("200 OK",), {})],
    "with nonsense": [((200, {"a": 1}), {"bad": True})],
}


@pytest.mark.parametrize("how", CALLS)
def test_the_server_sees_a_misbehaving_app_as_it_would_without_us(how):
    """A correct app, too: as many arguments, the server's own write(), at the same time."""

    def app(environ, start_response):
        for args, kwargs in CALLS[how]:
            start_response(*args, **kwargs)(b"written")
        return [b"body"]

    def lazy(environ, start_response):
        yield from app(environ, start_response)

    def seen_with(application):
        seen = []

        def start_response(*args, **kwargs):
            seen.append((args, kwargs))
            if (how == "twice" and len(seen) > 1) or kwargs or len(args) < 2:
                raise AssertionError("the server's opinion")
            return seen.append

        try:
            result = application(make_environ(), start_response)
            seen.append("returned")
            seen.extend(result)
            getattr(result, "close", lambda: None)()
        except AssertionError as error:
            seen.append(str(error))
        return seen

    app_as_it_is = lazy if how == "lazily" else app
    assert seen_with(AfterResponseMiddleware(app_as_it_is)) == seen_with(app_as_it_is)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_of_the_app_goes_on_as_it_was(kind, events):
    """The callbacks are not lost."""
    error = kind("the app's")

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(environ["wsgi.after"].error))
        raise error from KeyError("cause")

    with pytest.raises(kind, match="the app's") as caught:
        Exchange(AfterResponseMiddleware(app))
    assert caught.value is error
    assert isinstance(error.__cause__, KeyError)
    assert events == [error]


# Nothing kept, nothing mixed (rule 9)


def stops_at_once(environ, start_response):
    raise KeyboardInterrupt


def stops_in_body(environ, start_response):
    start_response("200 OK", [])
    yield b""
    raise KeyboardInterrupt


@pytest.mark.parametrize("app", [hello, stops_at_once, stops_in_body])
def test_the_environ_is_freed_when_the_server_drops_it(app):
    """Kept longer, it crashes uWSGI. leaks.py has more kinds, and servers that forget close()."""

    def wrapped(environ, start_response):
        environ["wsgi.after"].append(lambda: environ)  # a closure over the environ, as usual
        return app(environ, start_response)

    application = AfterResponseMiddleware(wrapped)
    application.after_response(lambda environ: None)
    assert is_freed(application)


def test_after_the_end_the_list_keeps_nothing_of_the_request():
    exchange = Exchange(registers(lambda: None))
    exchange.finish()
    after = exchange.environ["wsgi.after"]
    assert exchange.environ not in gc.get_referents(after)
    assert (after, after.error, after.status) == ([], None, "200 OK")
    assert not any(r is exchange.start_response for r in gc.get_referents(after))


def test_two_requests_at_once_never_see_each_others_callbacks():
    both_inside = threading.Barrier(2, timeout=60)

    def app(environ, start_response):
        number, events = environ["number"], environ["events"]
        environ["wsgi.after"].append(lambda: events.append((number, environ["number"])))
        both_inside.wait()
        after_this_response(events.append, number)
        both_inside.wait()
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)

    def send(number):
        environ = make_environ(number=number, events=[])
        Exchange(application, environ).finish()
        return environ["events"]

    assert at_once(2, send) == [[(number, number), number] for number in range(2)]


def test_start_response_after_the_end_raises_an_error_that_says_so():
    """When the callbacks have run, or were handed over: the server's own function is dropped."""
    kept = []

    def app(environ, start_response):
        environ["wsgi.after"].append(int)
        kept.append(start_response)
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    Exchange(AfterResponseMiddleware(app, executor=Immediately())).finish()
    for start_response in kept:
        with pytest.raises(RuntimeError, match="called after the end of its request"):
            start_response("200 OK", [])
