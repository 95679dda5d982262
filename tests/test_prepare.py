"""Callbacks that change the response: what the server gets of it, and what happens to mistakes."""

from __future__ import annotations

import subprocess
import sys
import weakref
from functools import partial
from wsgiref.validate import validator

import pytest
from conftest import Exchange, Marker, collector_off, hello, make_environ
from hypothesis import given
from hypothesis import strategies as st

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_request
from wsgi_after._core.prepare import Response

PLAIN = ("Content-Type", "text/plain")


def prepared(*callbacks, status="200 OK", headers=(PLAIN,)):
    """One request whose app registers the callbacks, and what the server was given for it."""

    def app(environ, start_response):
        for callback in callbacks:
            environ["wsgi.after"].on_prepare(callback)
        start_response(status, list(headers))
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    return exchange.started


def header(name, value):
    return lambda response: response.headers.add(name, value)


# What the server gets


def test_a_cookie_set_before_there_is_a_response_is_in_its_headers():
    started = prepared(lambda response: response.set_cookie("lang", "de"))
    assert started == [("200 OK", [PLAIN, ("Set-Cookie", "lang=de; Path=/")])]


def test_callbacks_run_in_order_of_registration():
    started = prepared(header("X-A", "1"), header("X-B", "2"), header("X-A", "3"))
    assert started == [("200 OK", [PLAIN, ("X-A", "1"), ("X-B", "2"), ("X-A", "3")])]


def test_the_callback_sees_what_the_app_gave(events):
    def look(response):
        events.append((response.status, response.status_code, list(response.headers)))

    prepared(look, status="404 Gone fishing", headers=[("x-a", "1"), ("X-A", "2")])
    assert events == [("404 Gone fishing", 404, [("x-a", "1"), ("X-A", "2")])]


def test_on_prepare_is_a_decorator_and_returns_the_function(request_):
    callback = header("X", "1")
    returned = []
    request_(lambda environ: returned.append(environ["wsgi.after"].on_prepare(callback)))
    assert returned == [callback]


def test_a_list_that_somebody_made_by_hand_has_no_response_to_prepare():
    with pytest.raises(RuntimeError, match="registered too late"):
        CallbackList().on_prepare(print)


ODD_STATUS = ["200", "200 ", " 200 Fine", "299 Caf\xe9", "OK", "204 no content", "404 Not  Found"]


@pytest.mark.parametrize("status", ODD_STATUS)
def test_a_status_that_was_not_changed_stays_byte_for_byte(status):
    assert prepared(header("X", "1"), status=status) == [(status, [PLAIN, ("X", "1")])]


LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"))


@given(st.lists(st.tuples(LATIN, LATIN)))
def test_headers_that_were_not_changed_stay_byte_for_byte(headers):
    """Order, repeated names, upper and lower case, spaces."""
    started = prepared(header("X-Last", "1"), headers=headers)
    assert started == [("200 OK", [*headers, ("X-Last", "1")])]


def test_repeated_set_cookie_headers_stay_where_one_other_header_changes():
    cookies = [("Set-Cookie", "a=1"), ("X", "old"), ("set-cookie", "b=2"), ("Set-Cookie", "a=1")]

    def change(response):
        response.headers["X"] = "new"

    cookies_after = [*cookies[:1], ("X", "new"), *cookies[2:]]
    assert prepared(change, headers=cookies) == [("200 OK", cookies_after)]


def test_where_nothing_was_changed_the_server_gets_the_apps_own_objects():
    headers = [PLAIN]

    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(lambda response: None)
        start_response("200 OK", headers)
        return []

    assert Exchange(AfterResponseMiddleware(app)).started[0][1] is headers


def test_the_apps_own_list_of_headers_is_not_changed():
    """It may be a constant of the app's module."""
    headers = [PLAIN]

    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(header("X", "1"))
        start_response("200 OK", headers)
        return []

    assert Exchange(AfterResponseMiddleware(app)).started[0][1] == [PLAIN, ("X", "1")]
    assert headers == [PLAIN]


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
def test_no_header_appears_that_nobody_set(status):
    """Not where a callback merely reads either."""

    def look(response):
        assert (list(response.vary), response.content_type) == ([], None)
        assert response.cache_control.max_age is None

    assert prepared(look, status=status, headers=[]) == [(status, [])]


def test_headers_that_are_not_in_a_list_arrive_all_the_same():
    """A bug of the app, which many servers let pass."""

    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(lambda response: None)
        start_response("200 OK", (pair for pair in [PLAIN]))
        return []

    assert Exchange(AfterResponseMiddleware(app)).started == [("200 OK", [PLAIN])]


def test_a_change_of_status_and_length_reaches_the_server_as_it_is():
    """Whether the body fits them is up to the callback."""

    def change(response):
        response.status_code = 204
        response.headers["Content-Length"] = 0

    expected = [("204 NO CONTENT", [PLAIN, ("Content-Length", "0")])]
    assert prepared(change, headers=[PLAIN, ("Content-Length", "5")]) == expected


def test_every_way_to_change_the_headers_is_carried_over():
    def change(response):
        response.headers.setlist("X-A", ["1", "2"])
        response.headers[0] = ("X-B", "3")
        response.headers.update({"X-C": "4"})
        response.headers.setdefault("X-D", "5")
        response.vary.add("Cookie")
        response.delete_cookie("session")
        del response.headers["X-D"]

    cookie = "session=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/"
    expected = [("X-B", "3"), ("X-A", "1"), ("X-A", "2"), ("X-C", "4")]
    expected += [("Vary", "Cookie"), ("Set-Cookie", cookie)]
    assert prepared(change) == [("200 OK", expected)]


def test_the_pep_3333_validator_has_nothing_to_say():
    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(lambda response: response.set_cookie("a", "1"))
        return hello(environ, start_response)

    application = validator(AfterResponseMiddleware(validator(app)))
    environ = make_environ(SCRIPT_NAME="", QUERY_STRING="")
    exchange = Exchange(application, environ)
    assert exchange.finish() == [b"hello"]


# How start_response is called


def calls(start):
    """What reaches the server, arguments and keywords, if the app calls start_response so."""
    seen = []

    def server(*args, **kwargs):
        seen.append((args, kwargs))
        return print

    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(header("X", "1"))
        assert start(start_response) is print
        return []

    AfterResponseMiddleware(app)(make_environ(), server).close()
    return seen


NEW = [PLAIN, ("X", "1")]


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
    ],
)
def test_the_server_is_called_with_as_many_arguments_as_the_app_passed(args, kwargs, expected):
    assert calls(lambda start_response: start_response(*args, **kwargs)) == [expected]


def test_a_call_without_headers_is_left_to_the_server_to_refuse():
    assert calls(lambda start_response: start_response("200 OK")) == [(("200 OK",), {})]


def test_what_start_response_returned_is_the_servers_write():
    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(header("X", "1"))
        start_response("200 OK", [PLAIN])(b"written")
        return [b"returned"]

    exchange = Exchange(AfterResponseMiddleware(app))
    assert (exchange.finish(), exchange.written) == ([b"returned"], [b"written"])
    assert exchange.started == [("200 OK", NEW)]


def test_callbacks_run_in_a_start_response_that_a_generator_calls_lazily(events):
    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(header("X", "1"))
        events.append("began")
        start_response("200 OK", [PLAIN])
        yield b"chunk"

    exchange = Exchange(AfterResponseMiddleware(app))
    assert (exchange.started, events) == ([], [])
    assert exchange.finish() == [b"chunk"]
    assert exchange.started == [("200 OK", NEW)]


def test_callbacks_run_again_on_the_headers_of_an_error_page(events):
    """And what they register belongs to that run: it does not pile up."""
    error = (ValueError, ValueError("no"), None)

    def app(environ, start_response):
        after = environ["wsgi.after"]

        @after.on_prepare
        def first(response):
            events.append(f"first {response.status}")
            after.on_prepare(lambda response: events.append(f"nested {response.status}"))

        after.on_prepare(header("X", "1"))
        start_response("200 OK", [PLAIN])
        start_response("500 Error", [("X-Error", "1")], error)
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    assert events == ["first 200 OK", "nested 200 OK", "first 500 Error", "nested 500 Error"]
    page = ("500 Error", [("X-Error", "1"), ("X", "1")], error)
    assert exchange.started == [("200 OK", NEW), page]


def test_status_and_headers_of_the_list_are_what_the_server_was_given(events):
    def change(response):
        response.status = "418 Short and stout"
        response.headers["X"] = "1"

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.on_prepare(change)
        after(lambda: events.append((after.status, after.headers)))
        return hello(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    assert events == exchange.started == [("418 Short and stout", NEW)]


def test_callbacks_do_not_run_if_the_app_never_starts_a_response(events):
    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(events.append)
        return []

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == []


# Registering


def test_a_callback_that_registers_another_has_it_run_too_last(events):
    def app(environ, start_response):
        on_prepare = environ["wsgi.after"].on_prepare

        @on_prepare
        def first(response):
            events.append("first")
            on_prepare(lambda response: events.append("nested"))

        on_prepare(lambda response: events.append("second"))
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app))
    assert events == ["first", "second", "nested"]


@pytest.mark.parametrize("early", [[], [print]], ids=["none before", "one before"])
def test_registering_after_the_response_has_started_says_when_it_would_be_early_enough(early):
    def app(environ, start_response):
        for _ in early:
            environ["wsgi.after"].on_prepare(lambda response: None)
        start_response("200 OK", [PLAIN])
        with pytest.raises(RuntimeError, match="early enough until the app calls start_response"):
            environ["wsgi.after"].on_prepare(header("X", "1"))
        with pytest.raises(RuntimeError, match="too late"):
            after_this_request(header("X", "1"))
        yield b"began"
        with pytest.raises(RuntimeError, match="too late"):
            environ["wsgi.after"].on_prepare(header("X", "1"))

    exchange = Exchange(AfterResponseMiddleware(lambda *args: list(app(*args))))
    assert exchange.finish() == [b"began"]
    assert exchange.started == [("200 OK", [PLAIN])]


@pytest.mark.parametrize("app", [hello, lambda environ, start_response: []], ids=["ok", "silent"])
@pytest.mark.parametrize("early", [[], [print]], ids=["none before", "one before"])
def test_registering_from_a_callback_after_the_response_is_too_late(app, early, events):
    def view(environ, start_response):
        after = environ["wsgi.after"]
        for _ in early:
            after.on_prepare(lambda response: None)

        @after
        def late():
            with pytest.raises(RuntimeError, match="too late"):
                after.on_prepare(header("X", "1"))
            with pytest.raises(RuntimeError, match="too late"):
                after_this_request(header("X", "1"))
            events.append("refused")

        return app(environ, start_response)

    Exchange(AfterResponseMiddleware(view)).finish()
    assert events == ["refused"]


def test_registering_when_the_request_is_over_is_refused(request_, events):
    request_(lambda environ: events.append(environ["wsgi.after"]))
    with pytest.raises(RuntimeError, match="have run already"):
        events[0].on_prepare(print)


@pytest.mark.parametrize("wrong", [None, "name", 3])
def test_what_is_not_callable_is_refused_where_it_is_registered(wrong, request_):
    def view(environ):
        with pytest.raises(TypeError, match="must be callable"):
            environ["wsgi.after"].on_prepare(wrong)

    request_(view)


async def coroutine_function(response):
    """Never runs."""


class AsyncCall:
    async def __call__(self, response):
        """Never runs."""


@pytest.mark.parametrize("wrong", [coroutine_function, partial(coroutine_function)])
def test_a_coroutine_function_is_refused_where_it_is_registered(wrong, request_):
    def view(environ):
        with pytest.raises(TypeError, match=r"coroutine_function.* is a coroutine function"):
            environ["wsgi.after"].on_prepare(wrong)

    request_(view)


def test_a_coroutine_that_was_returned_is_closed_and_refused():
    """Unclosed it would warn, and warnings are errors here."""
    with pytest.raises(TypeError, match=r"AsyncCall.* returned coroutine"):
        prepared(AsyncCall())


def test_the_given_response_may_be_returned():
    assert prepared(lambda response: response) == [("200 OK", [PLAIN])]


def return_another(response):
    return Response()


@pytest.mark.parametrize("other", [False, "", Response()])
def test_returning_anything_but_none_or_the_response_is_refused_and_named(other):
    with pytest.raises(TypeError, match=rf"lambda.*returned {type(other).__name__}"):
        prepared(lambda response: other)
    with pytest.raises(TypeError, match=r"test_prepare\.return_another"):
        prepared(return_another)


# What cannot be sent


def set_item(response, name, value):
    response.headers[name] = value


def set_slice(response, name, value):
    response.headers.setlist(name, [value])


def extend(response, name, value):
    response.headers.extend([(name, value)])


def replace(response, name, value):
    response.headers = type(response.headers)({name: value})


@pytest.mark.parametrize("way", [set_item, set_slice, extend, replace])
@pytest.mark.parametrize("bad", ["a\r\nSet-Cookie: b=1", "a\n", "\rb", "\0", "\u20ac", "\udcff"])
def test_a_header_that_cannot_be_sent_is_named_and_nothing_goes_out(way, bad):
    seen = []
    with pytest.raises(ValueError, match=r"value of header 'X-Note' contains .* cannot be sent"):
        seen += prepared(lambda response: way(response, "X-Note", bad))
    with pytest.raises(ValueError, match=r"name of header .* contains .* cannot be sent"):
        seen += prepared(lambda response: way(response, bad, "note"))
    assert seen == []


def slip_past_the_checks(response):
    response.headers._list.append(("X-Note", "\u20ac"))


def test_what_a_callback_left_that_cannot_be_sent_names_the_callback():
    def app(environ, start_response):
        environ["wsgi.after"].on_prepare(slip_past_the_checks)
        with pytest.raises(ValueError, match=r"'X-Note'.*test_prepare.slip_past_the_checks"):
            start_response("200 OK", [])
        return []

    assert Exchange(AfterResponseMiddleware(app)).started == []


def test_a_status_that_cannot_be_sent_names_the_callback():
    def change(response):
        response.status = "200 OK\r\nX: 1"

    with pytest.raises(ValueError, match=r"The status contains '\\r', .*change"):
        prepared(change)


def test_the_message_does_not_repeat_the_value():
    """It may be somebody's session, and the message goes to a log."""
    with pytest.raises(ValueError, match="X-Secret") as caught:
        prepared(header("X-Secret", "hunter2\n"))
    assert "hunter2" not in str(caught.value)


def test_latin_1_and_tabs_can_be_sent():
    assert prepared(header("X-Caf\xe9", "\xff\t")) == [("200 OK", [PLAIN, ("X-Caf\xe9", "\xff\t")])]


# What a callback raises


class Stop(BaseException):
    pass


def fail(error, response):
    raise error


@pytest.mark.parametrize("error", [ValueError("no"), Stop()])
def test_what_a_callback_raises_is_an_exception_of_the_app(error, events):
    """The server is not called, and what runs after the response sees the error."""
    seen = []

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(lambda: events.append((after.status, after.error)))
        after.on_prepare(partial(fail, error))
        after.on_prepare(lambda response: events.append("not reached"))
        return hello(environ, start_response)

    with pytest.raises(type(error)) as caught:
        AfterResponseMiddleware(app)(make_environ(), lambda *args: seen.append(args))
    assert caught.value is error
    assert events == [(None, error)]
    assert seen == []


def test_what_a_callback_raises_in_a_lazy_start_response_comes_out_of_the_body(events):
    error = ValueError("no")

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(lambda: events.append(after.error))
        after.on_prepare(partial(fail, error))
        start_response("200 OK", [PLAIN])
        yield b"not reached"

    exchange = Exchange(AfterResponseMiddleware(app))
    with pytest.raises(ValueError, match="no"):
        exchange.finish()
    assert (events, exchange.started) == ([error], [])


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
        after.on_prepare(lambda response: None)
        with pytest.raises(AssertionError, match="refused"):
            start_response("200", [])
        assert (after.status, after.headers) == (None, None)
        after.on_prepare(header("X", "1"))
        start_response("200 OK", [PLAIN])
        return []

    AfterResponseMiddleware(app)(make_environ(), refuse_once).close()
    assert events == [("200", []), ("200 OK", NEW)]


# Nothing that is not used, nothing kept


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


def test_without_a_callback_the_servers_own_start_response_is_what_is_called(events):
    def app(environ, start_response):
        events.append(environ["wsgi.after"]._server_start_response)
        return hello(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(app))
    assert events == [exchange.start_response]


def succeed(response):
    response.set_cookie("a", "1")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("callback", [succeed, partial(fail, ValueError("no"))])
def test_nothing_is_kept_of_a_request_that_is_over(lazy, callback):
    """With the garbage collector off: no cycle waits for it."""
    kept = []  # an app may keep these two, and they keep nothing of the request

    def app(environ, start_response):
        after = environ["wsgi.after"]
        seen = lambda response: (environ, callback(response))[1]  # noqa: E731
        kept.append((after, start_response))
        watched.extend([weakref.ref(environ["marker"]), weakref.ref(seen)])
        after.on_prepare(seen)
        after.on_prepare(lambda response: watched.append(weakref.ref(response)))
        start_response("200 OK", [])
        yield b""

    def request():
        wsgi_app = app if lazy else lambda *args: list(app(*args))
        try:
            Exchange(AfterResponseMiddleware(wsgi_app), make_environ(marker=Marker())).finish()
        except ValueError as error:
            error.__traceback__ = None

    watched = []
    with collector_off():
        request()
        assert [reference() for reference in watched] == [None] * (3 if callback is succeed else 2)
