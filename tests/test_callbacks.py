"""The list of a request, and how its callbacks run: rules 1, 4, 6 and 10 of the contract.

``cases/test_contained.py`` tests which exceptions leave ``close()``.
"""

from __future__ import annotations

import http.client
import logging
import operator
import re
import threading
from functools import partial

import pytest
from conftest import Exchange, hello, make_environ, registers, served

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_response, run_callbacks
from wsgi_after._core.logs import describe


def test_every_operation_of_list_works_until_the_end(events):
    """A running callback can also cancel later ones."""
    after = CallbackList()
    first, second, third, fourth = (partial(events.append, n) for n in (1, 2, 3, 4))
    after.append(first)
    after.clear()
    after.extend([first, lambda: after.remove(fourth), second, fourth])
    after.insert(0, third)
    after += [first]
    after[4:] = [fourth, first]
    after.pop()
    assert (len(after), after[0], after.index(second)) == (5, third, 3)
    run_callbacks(after)
    assert (events, after) == ([3, 1, 2], [])


def test_calling_the_list_registers_with_arguments_and_returns_the_function(events):
    after = CallbackList()

    @after
    def callback(*args, **kwargs):
        events.append((args, kwargs))

    assert after(callback, 1, fn=2, self=3) is callback
    run_callbacks(after)
    assert events == [((), {}), ((1,), {"fn": 2, "self": 3})]


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
    """A late callback is not silently lost."""
    exchange = Exchange(AfterResponseMiddleware(hello))
    exchange.finish()
    after = exchange.environ["wsgi.after"]
    assert after.ended
    with pytest.raises(RuntimeError, match="have run already"):
        register(after, partial(events.append, "late"))
    assert (after, events) == ([], [])


# What is logged about a failing callback; the others run


def fails():
    raise ValueError("no")


def exits():
    raise SystemExit(3)


async def coroutine():
    raise AssertionError("not awaited, so never here")


def generator():
    yield


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (fails, f"Callback {__name__}.fails of GET /app/path failed."),
        (exits, f"Callback {__name__}.exits of GET /app/path raised SystemExit, .* contained"),
        (coroutine, ".*coroutine of GET /app/path returned a coroutine.*not run.*async_to_sync"),
        (generator, ".*generator of GET /app/path returned a generator, so its code .*iterates"),
        (None, "Entry None of GET /app/path is not callable."),
    ],
)
def test_a_failing_callback_is_logged_with_its_name_and_request_and_the_others_run(
    callback, message, events, caplog
):
    app = registers(
        callback, lambda: after(events.append, "nested"), partial(events.append, "next")
    )
    exchange = Exchange(app, make_environ(SCRIPT_NAME="/app"))
    after = exchange.environ["wsgi.after"]
    exchange.finish()
    [record] = caplog.records
    assert events == ["next", "nested"]
    assert (record.name, record.levelno) == ("wsgi_after", logging.ERROR)
    assert re.match(message, record.getMessage())
    assert callback is not fails or isinstance(record.exc_info[1], ValueError)


def test_of_two_that_go_on_the_first_does_and_the_other_is_logged(caplog):
    def interrupt(number):
        raise KeyboardInterrupt(number)

    with pytest.raises(KeyboardInterrupt, match="first"):
        run_callbacks([partial(interrupt, "first"), partial(interrupt, "second")], "GET /")
    assert [str(record.exc_info[1]) for record in caplog.records] == ["second"]


def test_without_a_label_or_an_environ_the_log_speaks_of_a_request(caplog):
    run_callbacks([fails])
    run_callbacks(CallbackList([fails]))
    run_callbacks(CallbackList([fails]), "JOB 7")
    assert [record.args[1] for record in caplog.records] == ["a request", "a request", "JOB 7"]


def test_a_callback_is_named_whatever_it_is():
    assert describe(fails) == describe(partial(partial(fails, 1), 2)) == f"{__name__}.fails"
    assert describe("text") == "'text'"
    assert describe(threading.Event().set) == "threading.Event.set"


# after_this_response(); test_prepare_current.py tests where it is refused


def test_after_this_response_reaches_the_request_from_any_depth(request_, events):
    def view(environ):
        assert after_this_response(events.append, "with an argument") == events.append

        @after_this_response
        def decorated():
            after_this_response(events.append, "registered by a callback")

    request_(view)
    assert events == ["with an argument", "registered by a callback"]


# What a callback can know


def known(after):
    return after.status, after.headers, after.error, after.completed


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("404 Not Found", [("A", "1")]), {}),
        (("404 Not Found", [("A", "1")]), {"exc_info": None}),
        (("404 Not Found", [("A", "1")], None), {}),
        (("404 Not Found",), {"headers": [("A", "1")]}),
        ((), {"status": "404 Not Found", "response_headers": [("A", "1")]}),
    ],
)
@pytest.mark.parametrize("before", [[], [(("200 OK", []), {})]], ids=["first", "second call"])
def test_a_callback_knows_status_headers_and_completion(before, args, kwargs, events):
    """However start_response is called, even a second time for an error page.

    A call that the server refused is not recorded.
    """
    calls = []

    def server_start_response(*args, **kwargs):
        if args == ("500 Refused", []):
            raise ValueError("already set")
        calls.append((args, kwargs))
        return print

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.append(lambda: events.append(known(after)))
        for args_before, kwargs_before in before:
            start_response(*args_before, **kwargs_before)
        assert start_response(*args, **kwargs) is print
        with pytest.raises(ValueError, match="already set"):
            start_response("500 Refused", [])
        return [b"1"]

    body = AfterResponseMiddleware(app)(make_environ(), server_start_response)
    assert list(body) == [b"1"]
    body.close()
    assert calls == [*before, (args, kwargs)]
    assert events == [("404 Not Found", [("A", "1")], None, True)]
    assert known(CallbackList()) == (None, None, None, False)


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


def test_a_repr_shows_names_and_arguments():
    after = CallbackList([len, "not callable"])
    after(print, "ada@example.com", sep="-" * 80)
    after(print, after)  # an app-wide callback has the environ, which has the list
    assert repr(after) == (
        "<CallbackList [builtins.len(), 'not callable', "
        "builtins.print('ada@example.com', sep='------------...-------------'), "
        "builtins.print(<CallbackList [...]>)]>"
    )


def test_what_another_thread_registers_just_before_the_end_runs(events, monkeypatch):
    end = CallbackList._end

    def end_late(after):
        if events == ["first"]:
            after.append(partial(events.append, "late"))
        return end(after)

    monkeypatch.setattr(CallbackList, "_end", end_late)
    run_callbacks(CallbackList([partial(events.append, "first")]))
    assert events == ["first", "late"]


@pytest.fixture
def with_gil(monkeypatch):
    """For switches between two lines; ``test_free_threading.py`` tests the others."""
    monkeypatch.setattr("wsgi_after._core.run.WITHOUT_GIL", False)


@pytest.mark.usefixtures("with_gil")
def test_a_callback_that_another_thread_takes_at_the_last_moment_is_not_run(events):
    class Emptied(list):
        def __getitem__(self, index):
            self.clear()
            return super().__getitem__(index)

    run_callbacks(Emptied([partial(events.append, "taken")]))
    assert events == []


@pytest.mark.usefixtures("with_gil")
def test_a_signal_between_taking_a_callback_and_calling_it_does_not_lose_it(events):
    class Interrupted(list):
        def pop(self, index):
            callback = super().pop(index)
            if len(self) == 1 and not events:
                events.append("signal")
                raise KeyboardInterrupt
            return callback

    notes = [partial(events.append, number) for number in (1, 2)]
    with pytest.raises(KeyboardInterrupt):
        run_callbacks(Interrupted(notes))
    assert events == ["signal", 1, 2]
