"""The list of a request, and how its callbacks run: rules 1, 4, 6 and 10 of the contract."""

from __future__ import annotations

import asyncio
import http.client
import logging
import operator
import threading
from functools import partial

import greenlet
import pytest
from conftest import Exchange, hello, make_environ, served

from wsgi_after import (
    AfterResponseMiddleware,
    CallbackList,
    after_this_response,
    run_callbacks,
)
from wsgi_after._core.logs import describe


def test_every_operation_of_list_works_until_the_end(events):
    after = CallbackList()
    first, second, third = (partial(events.append, n) for n in (1, 2, 3))
    after.extend([first, second])
    after.insert(0, third)
    after += [first]
    after.remove(first)
    assert (len(after), after[0], list(after)) == (3, third, [third, second, first])
    run_callbacks(after)
    assert events == [3, 2, 1]
    assert after == []


def test_clear_cancels(request_, events):
    def view(environ):
        environ["wsgi.after"].append(partial(events.append, "never"))
        environ["wsgi.after"].clear()

    assert request_(view) == [b"hello"]
    assert events == []


def test_a_running_callback_can_cancel_the_ones_behind_it(events):
    after = CallbackList()
    second = partial(events.append, 2)
    after.extend([lambda: after.remove(second), second, partial(events.append, 3)])
    run_callbacks(after)
    assert events == [3]


def test_calling_the_list_registers_with_arguments_and_returns_the_function(events):
    after = CallbackList()

    def callback(*args, **kwargs):
        events.append((args, kwargs))

    assert after(callback) is callback
    assert after(callback, 1, fn=2, self=3) is callback
    run_callbacks(after)
    assert events == [((), {}), ((1,), {"fn": 2, "self": 3})]


def test_the_list_is_a_decorator(events):
    after = CallbackList()

    @after
    def callback():
        events.append("ran")

    run_callbacks(after)
    assert events == ["ran"]
    assert callable(callback)


@pytest.mark.parametrize("arguments", [(), (1,)])
def test_calling_the_list_with_what_is_not_callable_says_what_was_seen(arguments):
    with pytest.raises(TypeError, match=r"must be callable, not str: 'nope'.*not after"):
        CallbackList()("nope", *arguments)


@pytest.mark.parametrize(
    "register",
    [
        lambda after, fn: after.append(fn),
        lambda after, fn: after.extend([fn]),
        lambda after, fn: after.insert(0, fn),
        lambda after, fn: after(fn),
        lambda after, fn: after.__setitem__(slice(0, 0), [fn]),
        lambda after, fn: operator.iadd(after, [fn]),
    ],
    ids=["append", "extend", "insert", "call", "slice", "+="],
)
def test_registering_after_the_end_raises(register, events):
    """What comes too late is not silently lost."""
    exchange = Exchange(AfterResponseMiddleware(hello))
    exchange.finish()
    assert exchange.environ["wsgi.after"].ended
    with pytest.raises(RuntimeError, match="have run already"):
        register(exchange.environ["wsgi.after"], partial(events.append, "late"))
    assert (exchange.environ["wsgi.after"], events) == ([], [])


def test_a_failing_callback_is_logged_with_its_name_and_request_and_the_others_run(
    request_, events, caplog
):
    """One failure does not skip the rest, nested ones included."""

    def fails():
        environ_list.append(partial(events.append, "nested"))
        raise ValueError("no")

    environ_list = []

    def view(environ):
        nonlocal environ_list
        environ_list = environ["wsgi.after"]
        environ_list.extend([fails, partial(events.append, "next")])

    request_(view, SCRIPT_NAME="/app")
    [record] = caplog.records
    assert events == ["next", "nested"]
    assert (record.name, record.levelno) == ("wsgi_after", logging.ERROR)
    assert record.getMessage().startswith(f"Callback {__name__}.test_a_failing_callback")
    assert record.getMessage().endswith("fails of GET /app/path failed.")
    assert isinstance(record.exc_info[1], ValueError)


def test_a_request_line_cannot_forge_a_log_line(request_, caplog):
    request_(
        lambda environ: environ["wsgi.after"].append(lambda: 1 / 0),
        PATH_INFO="/\r\nERROR forged\xe9",
    )
    assert "of GET /\\r\\nERROR forged\\xe9 failed." in caplog.records[0].getMessage()


class Kill(BaseException):
    """As gevent's Timeout, or asyncio's CancelledError."""


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, asyncio.CancelledError, Kill])
def test_other_base_exceptions_are_contained(kind, caplog, events):
    """Out of close(), they end a worker, or put an error page before the next response."""

    def fail():
        raise kind

    run_callbacks([fail, partial(events.append, "next")], "GET /")
    assert events == ["next"]
    assert [type(record.exc_info[1]) for record in caplog.records] == [kind]
    assert caplog.records[0].levelno == logging.ERROR


@pytest.mark.parametrize("kind", [KeyboardInterrupt, greenlet.GreenletExit])
def test_an_exception_that_is_to_end_all_this_goes_on_after_the_others_ran(kind, events):
    def interrupt():
        raise kind

    after = CallbackList([interrupt, partial(events.append, "next")])
    with pytest.raises(kind):
        run_callbacks(after, "GET /")
    assert events == ["next"]
    with pytest.raises(RuntimeError):
        after.append(interrupt)


def test_of_two_that_go_on_the_first_does_and_the_other_is_logged(caplog):
    def interrupt(number):
        raise KeyboardInterrupt(number)

    with pytest.raises(KeyboardInterrupt, match="first"):
        run_callbacks([partial(interrupt, "first"), partial(interrupt, "second")], "GET /")
    assert [str(record.exc_info[1]) for record in caplog.records] == ["second"]


def test_what_goes_on_of_a_callback_leaves_close(request_):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        request_(lambda environ: environ["wsgi.after"].append(interrupt))


@pytest.mark.parametrize("place", ["call", "close"])
def test_an_error_of_the_app_is_not_replaced_by_a_base_exception_of_a_callback(place, caplog):
    class Body(list):
        def close(self):
            raise ValueError("the app's")

    def app(environ, start_response):
        environ["wsgi.after"].append(interrupt)
        if place == "call":
            raise ValueError("the app's")
        return Body()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="the app's"):
        Exchange(AfterResponseMiddleware(app)).finish()
    assert [type(record.exc_info[1]) for record in caplog.records] == [KeyboardInterrupt]


def test_a_coroutine_is_closed_and_the_log_names_it_and_the_way_out(caplog, events):
    async def callback():
        raise AssertionError("not awaited, so never here")

    run_callbacks([callback, partial(events.append, "next")], "GET /")
    [record] = caplog.records
    assert events == ["next"]
    assert record.levelno == logging.ERROR
    assert "callback of GET / returned a coroutine" in record.getMessage()
    assert "async_to_sync" in record.getMessage()


def generator():
    yield


async def async_generator():
    yield


@pytest.mark.parametrize("callback", [generator, async_generator, partial(generator)])
def test_a_generator_has_not_run_and_the_log_says_so(callback, caplog, events):
    run_callbacks([callback, partial(events.append, "next")], "GET /")
    [record] = caplog.records
    assert events == ["next"]
    assert record.levelno == logging.ERROR
    assert "generator of GET / returned a generator, so it has not run" in record.getMessage()


def test_what_a_callback_returns_is_ignored(caplog, events):
    run_callbacks([lambda: "a string", lambda: 0, partial(events.append, "next")])
    assert (events, caplog.records) == (["next"], [])


def test_an_entry_that_is_not_callable_is_named_and_the_others_run(request_, events, caplog):
    request_(lambda environ: environ["wsgi.after"].extend([None, partial(events.append, "next")]))
    assert events == ["next"]
    assert caplog.records[0].getMessage().startswith("Entry None of GET /path is not callable.")


def test_a_logging_handler_that_raises_does_not_cost_callbacks(events, monkeypatch, capsys):
    class Broken(logging.Handler):
        def handle(self, record):
            raise OSError("disk full")

    logger = logging.getLogger("wsgi_after")
    monkeypatch.setattr(logger, "handlers", [Broken()])
    run_callbacks([lambda: 1 / 0, partial(events.append, "next")])
    assert events == ["next"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_without_a_label_or_an_environ_the_log_speaks_of_a_request(caplog):
    run_callbacks([lambda: 1 / 0])
    run_callbacks(CallbackList([lambda: 1 / 0]))
    run_callbacks(CallbackList([lambda: 1 / 0]), "JOB 7")
    assert [record.args[1] for record in caplog.records] == ["a request", "a request", "JOB 7"]


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_a_callback_is_named_whatever_it_is():
    def function():
        pass

    name = f"{__name__}.test_a_callback_is_named_whatever_it_is.<locals>.function"
    assert describe(function) == describe(partial(partial(function, 1), 2)) == name
    assert describe("text") == "'text'"
    assert describe(threading.Event().set) == "threading.Event.set"
    assert "Unprintable object at" in describe(Unprintable())


# after_this_response


def test_after_this_response_reaches_the_request_from_any_depth(request_, events):
    def view(environ):
        assert after_this_response(events.append, "with an argument") == events.append

        @after_this_response
        def decorated():
            events.append("decorated")

    request_(view)
    assert events == ["with an argument", "decorated"]


def test_after_this_response_in_a_callback_registers_for_the_same_request(request_, events):
    request_(
        lambda environ: environ["wsgi.after"].append(
            partial(after_this_response, events.append, "nested")
        )
    )
    assert events == ["nested"]


def test_after_this_response_outside_a_request_says_what_to_do():
    with pytest.raises(RuntimeError, match=r'hold on to environ\["wsgi.after"\]'):
        after_this_response(print)


def test_after_this_response_in_a_streaming_body_says_what_to_do():
    def app(environ, start_response):
        start_response("200 OK", [])
        after_this_response(print)
        yield b""

    with pytest.raises(RuntimeError, match="streaming body"):
        Exchange(AfterResponseMiddleware(app)).finish()


def test_after_this_response_of_interleaved_requests_goes_to_each_ones_own(events):
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        after_this_response(events.append, path)
        if path == "/outer":
            inner = Exchange(application, make_environ(PATH_INFO="/inner"))
            after_this_response(events.append, "/outer again")
            inner.finish()
            after_this_response(events.append, "/outer at last")
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    Exchange(application, make_environ(PATH_INFO="/outer")).finish()
    assert events == ["/inner", "/outer", "/outer again", "/outer at last"]


def test_after_this_response_of_threads_at_once_goes_to_each_ones_own():
    barrier = threading.Barrier(8)

    def app(environ, start_response):
        barrier.wait(10)
        after_this_response(environ["mine"].append, environ["PATH_INFO"])
        barrier.wait(10)
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    environs = [make_environ(PATH_INFO=f"/{n}", mine=[]) for n in range(8)]
    threads = [
        threading.Thread(target=lambda e=e: Exchange(application, e).finish()) for e in environs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [environ["mine"] for environ in environs] == [[f"/{n}"] for n in range(8)]


# What a callback can know


def known(after):
    return after.status, after.headers, after.error, after.completed


def test_before_anything_happened_nothing_is_known():
    assert known(CallbackList()) == (None, None, None, False)


def test_a_callback_knows_status_headers_and_completion(events):
    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.append(lambda: events.append(known(after)))
        start_response("201 Created", headers)
        return [b"1"]

    headers = [("X-A", "1")]
    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == [("201 Created", headers, None, True)]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("404 Not Found", [("A", "1")]), {"exc_info": None}),
        (("404 Not Found", [("A", "1")], None), {}),
        (("404 Not Found",), {"headers": [("A", "1")]}),
        ((), {"status": "404 Not Found", "response_headers": [("A", "1")]}),
    ],
)
def test_however_start_response_is_called_it_is_passed_on_and_recorded(args, kwargs, events):
    def server_start_response(*args, **kwargs):
        events.append((args, kwargs))
        return print

    def app(environ, start_response):
        assert start_response(*args, **kwargs) is print
        return []

    environ = make_environ()
    AfterResponseMiddleware(app)(environ, server_start_response).close()
    after = environ["wsgi.after"]
    assert events == [(args, kwargs)]
    assert (after.status, after.headers) == ("404 Not Found", [("A", "1")])


def test_a_start_response_that_the_server_refused_is_not_recorded(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(environ["wsgi.after"].status))
        start_response("200 OK", [])
        try:
            start_response("500 Again", [])
        except ValueError as error:
            events.append(str(error))
        return []

    started = []

    def server_start_response(status, headers):
        if started:
            raise ValueError("headers already set")
        started.append(status)

    AfterResponseMiddleware(app)(make_environ(), server_start_response).close()
    assert events == ["headers already set", "200 OK"]


def test_a_second_start_response_with_exc_info_is_what_callbacks_see(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(environ["wsgi.after"].status))
        start_response("200 OK", [])
        start_response("500 Oops", [], (ValueError, ValueError(), None))
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    assert events == ["500 Oops"]
    assert [len(args) for args in exchange.started] == [2, 3]


def test_no_request_header_reaches_the_key():
    """Rule 10, on a real server: a header arrives with a prefix, whatever its name."""
    environs = []

    def app(environ, start_response):
        environs.append({**environ})
        return hello(environ, start_response)

    with served(app) as port:
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.putrequest("GET", "/")
        for name in ("wsgi.after", "wsgi_after", "HTTP_wsgi.after", "Wsgi-After"):
            client.putheader(name, "forged")
        client.endheaders()
        assert client.getresponse().read() == b"hello"
        client.close()
    forged = [key for key, value in environs[0].items() if "forged" in str(value)]
    assert all(key.startswith("HTTP_") for key in forged)
    assert forged
