"""The call of the app: rules 2, 5, 8 and 9 of the contract."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from contextlib import nullcontext, suppress
from functools import partial

import pytest
from conftest import Exchange, Marker, collector_off, hello, make_environ

from wsgi_after import (
    AfterResponseMiddleware,
    CallbackList,
    after_this_response,
    run_callbacks,
)


@pytest.mark.parametrize("app", [None, "module:app", 1])
def test_an_app_that_is_not_callable_is_refused_at_construction(app):
    with pytest.raises(TypeError, match=f"expects a WSGI application.*{type(app).__name__}"):
        AfterResponseMiddleware(app)


# The list (rules 1 and 2)


def test_each_request_has_a_list_of_its_own():
    """None is shared by the process."""
    application = AfterResponseMiddleware(hello)
    first, second = Exchange(application), Exchange(application)
    assert type(first.environ["wsgi.after"]) is CallbackList
    assert first.environ["wsgi.after"] is not second.environ["wsgi.after"]


def test_two_instances_share_one_list_with_the_app_wide_callbacks_of_the_outer_one_first(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "app"))
        after_this_response(events.append, "app, without environ")
        return hello(environ, start_response)

    inner = AfterResponseMiddleware(app)
    outer = AfterResponseMiddleware(inner)
    inner.after_response(lambda environ: events.append("inner"))
    outer.after_response(lambda environ: events.append("outer"))
    assert Exchange(outer).finish() == [b"hello"]
    assert events == ["outer", "inner", "app", "app, without environ"]


def test_the_inner_instance_leaves_the_response_alone():
    def app(environ, start_response):
        hello(environ, start_response)
        return iterable

    iterable = [b"hello"]
    exchange = Exchange(AfterResponseMiddleware(app), make_environ(**{"wsgi.after": []}))
    assert exchange.result is iterable


def test_a_plain_list_that_is_there_is_used_and_left_to_its_owner():
    def app(environ, start_response):
        environ["wsgi.after"].append("by append")
        after_this_response(print, "by function")
        return hello(environ, start_response)

    theirs = []
    application = AfterResponseMiddleware(app)
    application.after_response(print)
    exchange = Exchange(application, make_environ(**{"wsgi.after": theirs}))
    assert exchange.environ["wsgi.after"] is theirs
    app_wide, by_append, by_function = theirs
    assert (app_wide.func, app_wide.args) == (print, (exchange.environ,))
    assert by_append == "by append"
    assert (by_function.func, by_function.args) == (print, ("by function",))


def test_a_call_with_the_environ_of_another_call_that_is_over_gets_a_list_of_its_own(events):
    """A retry outside: the first response was not even closed."""

    def app(environ, start_response):
        name = environ["name"]
        environ["wsgi.after"].append(lambda: events.append(name))
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    environ = make_environ(name="first")
    first = application(environ, lambda *args: print)
    second = application({**environ, "name": "second"}, lambda *args: print)
    for result in (second, first):
        list(result)
        result.close()
    assert events == ["second", "first"]


@pytest.mark.parametrize(
    ("read", "outer"), [("begun", "shares"), ("exhausted", "has"), ("failed", "has"), ("no", "has")]
)
def test_another_instance_shares_a_list_while_its_body_is_being_read(read, outer, events):
    def stream():
        yield b"1"
        if read == "failed":
            raise ValueError

    def first_app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "first"))
        return stream()

    environ = make_environ()
    body = AfterResponseMiddleware(first_app)(environ, lambda *args: print)
    after = environ["wsgi.after"]
    chunks = iter(body)
    with suppress(ValueError):
        list(chunks) if read in {"exhausted", "failed"} else read == "no" or next(chunks)
    AfterResponseMiddleware(hello)(environ, lambda *args: print)
    assert (environ["wsgi.after"] is after) == (outer == "shares")
    body.close()
    assert events == ["first"]


def test_a_list_of_a_server_is_used_until_it_has_ended(events):
    theirs = CallbackList()

    def app(environ, start_response):
        events.append(environ["wsgi.after"] is theirs)
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    environ = make_environ(**{"wsgi.after": theirs})
    for _ in range(2):
        list(application(environ, lambda *args: print))
    run_callbacks(theirs)
    application(environ, lambda *args: print).close()
    assert events == [True, True, False]


def test_an_environ_that_is_sent_again_gets_a_new_list(events):
    """WebOb and WebTest do so."""

    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    environ = make_environ()
    for _ in range(2):
        assert Exchange(application, environ).finish() == [b"hello"]
    assert events == ["ran", "ran"]


@pytest.mark.parametrize("there", [None, (), {}, "text", lambda: None])
def test_a_key_that_is_no_list_is_named(there):
    with pytest.raises(TypeError, match=f"is {type(there).__name__}, where a list.*usual cause"):
        Exchange(AfterResponseMiddleware(hello), make_environ(**{"wsgi.after": there}))


# App-wide callbacks


def test_app_wide_callbacks_get_the_environ_and_come_first(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "app"))
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)

    @application.after_response
    def first(environ):
        events.append(("first", environ["PATH_INFO"], environ["wsgi.after"].status))

    @application.after_response
    def second(environ):
        events.append("second")

    for _ in range(2):
        Exchange(application).finish()
    assert events == [("first", "/path", "200 OK"), "second", "app"] * 2
    assert callable(first)


def test_an_app_wide_callback_that_is_not_callable_is_refused():
    with pytest.raises(TypeError, match=r"not str: 'text'\. .*not after\(fn\(x\)\)"):
        AfterResponseMiddleware(hello).after_response("text")


def test_an_app_wide_callback_that_does_not_take_the_environ_is_refused():
    with pytest.raises(TypeError, match=r"cannot be called: too many .* that takes the environ\."):
        AfterResponseMiddleware(hello).after_response(lambda: None)


def test_a_failing_app_wide_callback_is_logged_by_its_name(caplog):
    def fails(environ):
        raise ValueError

    application = AfterResponseMiddleware(hello)
    application.after_response(fails)
    Exchange(application).finish()
    assert "<locals>.fails of GET /path failed" in caplog.records[0].getMessage()


# start_response (rule 8)


@pytest.mark.parametrize("args", [("200 OK", []), ("200 OK", [], None), ("200 OK", [], (1, 2, 3))])
def test_start_response_gets_as_many_arguments_as_the_app_gave(args):
    """A third one that is always passed breaks servers that take two."""

    def app(environ, start_response):
        start_response(*args)
        return []

    assert Exchange(AfterResponseMiddleware(app)).started == [args]


def test_write_is_the_one_of_the_server():
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"written")
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    assert (exchange.written, exchange.finish()) == ([b"written"], [])


def test_a_start_response_called_in_the_body_stays_there():
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"body"

    exchange = Exchange(AfterResponseMiddleware(app))
    assert exchange.started == []
    assert exchange.finish() == [b"body"]
    assert exchange.started == [("200 OK", [])]


def never_starts(environ, start_response):
    return [b"body"]


def starts_twice(environ, start_response):
    start_response("200 OK", [])
    start_response("201 Created", [])
    return [b"body"]


def starts_without_headers(environ, start_response):
    start_response("200 OK")
    return [b"body"]


def starts_with_nonsense(environ, start_response):
    start_response(200, {"a": 1}, bad=True)
    return [b"body"]


@pytest.mark.parametrize(
    "app", [never_starts, starts_twice, starts_without_headers, starts_with_nonsense]
)
def test_the_server_sees_a_misbehaving_app_as_it_would_without_us(app):
    def seen_with(application):
        seen = []

        def start_response(*args, **kwargs):
            seen.append((args, kwargs))
            if len(seen) > 1 or kwargs or len(args) < 2:
                raise AssertionError("the server's opinion")

        try:
            result = application(make_environ(), start_response)
            seen.extend(result)
            getattr(result, "close", lambda: None)()
        except AssertionError as error:
            seen.append(str(error))
        return seen

    assert seen_with(AfterResponseMiddleware(app)) == seen_with(app)


def test_an_exception_of_the_app_goes_on_as_it_was(events):
    """And the callbacks are not lost."""
    error = ValueError("the app's")

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(environ["wsgi.after"].error))
        raise error from KeyError("cause")

    with pytest.raises(ValueError, match="the app's") as caught:
        Exchange(AfterResponseMiddleware(app))
    assert caught.value is error
    assert isinstance(error.__cause__, KeyError)
    assert events == [error]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exceptions_of_the_app_go_on_too(kind, events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        raise kind

    with pytest.raises(kind):
        Exchange(AfterResponseMiddleware(app))
    assert events == ["ran"]


# Nothing kept, nothing mixed (rule 9)


def raises_at_once(environ, start_response):
    raise ValueError


def raises_in_body(environ, start_response):
    start_response("200 OK", [])
    yield b""
    raise ValueError


def raises_again(environ, start_response):
    try:
        raise ValueError
    except ValueError:
        start_response("500 Oops", [], sys.exc_info())
    return [b""]


@pytest.mark.parametrize("app", [hello, raises_at_once, raises_in_body, raises_again])
@pytest.mark.parametrize("closes", [True, False])
def test_the_environ_is_freed_when_the_server_drops_it(app, closes):
    """Kept longer, it crashes uWSGI. The garbage collector is off."""

    def wrapped(environ, start_response):
        environ["wsgi.after"].append(lambda: environ)  # a closure over the environ, as usual
        return app(environ, start_response)

    def serve():
        environ = make_environ(marker=Marker())
        try:
            result = application(environ, lambda *args: print)
            try:
                for _ in result:
                    pass
            finally:
                if closes:
                    result.close()
        except ValueError:
            pass
        return weakref.ref(environ["marker"])

    application = AfterResponseMiddleware(wrapped)
    application.after_response(lambda environ: None)
    with collector_off():
        if closes:
            assert serve()() is None
        else:
            with pytest.warns(ResourceWarning) if app is not raises_at_once else nullcontext():
                reference = serve()
                if app is raises_in_body:
                    gc.collect()  # the traceback holds the server's frame, and that the body
                    Exchange(AfterResponseMiddleware(hello)).finish()  # what it waits for
            assert reference() is None


def test_after_the_end_the_list_keeps_nothing_of_the_request():
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: None)
        return hello(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    after = exchange.environ["wsgi.after"]
    assert exchange.environ not in gc.get_referents(after)
    assert (after, after.error, after.status) == ([], None, "200 OK")
    assert not any(r is exchange.start_response for r in gc.get_referents(after))


def test_two_requests_at_once_never_see_each_others_callbacks(events):
    both_inside = threading.Barrier(2)

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        environ["wsgi.after"].append(lambda: events.append((path, environ["PATH_INFO"])))
        both_inside.wait(10)
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)

    def send(path):
        Exchange(application, make_environ(PATH_INFO=path)).finish()

    threads = [threading.Thread(target=send, args=(path,)) for path in ("/a", "/b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(events) == [("/a", "/a"), ("/b", "/b")]
