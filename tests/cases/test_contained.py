"""Rule 6: what is let out of ``close()``, and what a callback returned that has not run."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import types
from concurrent.futures import Future
from contextlib import closing
from functools import partial, wraps
from http.client import HTTPConnection

import gevent
import greenlet
import pytest
from commands import serving
from conftest import Exchange, Immediately, hello

from wsgi_after import AfterResponseMiddleware


class Custom(BaseException):
    """Neither an Exception, nor anybody's order to stop."""


class Stop(KeyboardInterrupt):
    """Somebody's order to stop."""


CONTAINED = [
    *(SystemExit(), SystemExit(3), SystemExit("on purpose"), GeneratorExit(), Custom()),
    *(asyncio.CancelledError(), gevent.Timeout(1), StopIteration(), MemoryError()),
    BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
]
GOES_ON = [KeyboardInterrupt(), Stop(), greenlet.GreenletExit()]


def raises(error):
    raise error


def closed(app, **options):
    Exchange(AfterResponseMiddleware(app, **options)).finish()


ENDS = {"closed": closed, "handed over": partial(closed, executor=Immediately())}


def failures(caplog):
    """What was logged as the failure of a callback."""
    return [repr(record.exc_info[1]) for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("error", [*CONTAINED, *GOES_ON], ids=repr)
def test_what_a_callback_raises(error, end, caplog, events):
    """All but an order to stop is logged; the other callbacks run in any case."""

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(after, raises, error)  # registered by a running callback, so it comes last
        after(raises, error)
        after(events.append, "next")
        return hello(environ, start_response)

    caught = None
    try:
        ENDS[end](app)
    except BaseException as raised:
        caught = raised
    goes_on = error in GOES_ON
    assert caught is (error if goes_on else None)
    assert (events, failures(caplog)) == (["next"], [repr(error)] * (1 if goes_on else 2))


class FailsToClose:
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        return iter([b"chunk"])

    def close(self):
        raise self.error


@pytest.mark.parametrize("error", [*CONTAINED, *GOES_ON], ids=repr)
@pytest.mark.parametrize("of_app", [ValueError("app"), SystemExit("app"), GeneratorExit("app")])
@pytest.mark.parametrize("place", ["call", "close"])
def test_an_exception_of_the_app_that_is_on_its_way_wins(place, of_app, error, caplog, events):
    def app(environ, start_response):
        environ["wsgi.after"](raises, error)
        environ["wsgi.after"](events.append, "next")
        start_response("200 OK", [])
        return FailsToClose(of_app) if place == "close" else raises(of_app)

    with pytest.raises(type(of_app), match="app") as caught:
        closed(app)
    assert (caught.value, events, failures(caplog)) == (of_app, ["next"], [repr(error)])


class Handlers:
    def method(self, signum, frame):
        sys.exit("handler")

    @classmethod
    def of_class(cls, *arguments):
        sys.exit("handler")

    @staticmethod
    def static(signum, frame=None, **options):
        raise SystemExit("handler")

    def __call__(self, signum, frame):
        self.deeper()

    def deeper(self):
        self.method(None, None)


def function(signum, frame):
    try:
        raise OSError("on purpose")
    except OSError as error:
        raise SystemExit("handler") from error


def with_more(why, signum, frame, /):
    sys.exit(why)


def decorated(fn):
    @wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


def closure(signum, frame):
    (lambda: (frame, sys.exit("handler")))()


HANDLERS = {
    "function": function,
    "lambda *": lambda *_: sys.exit("handler"),
    "lambda": lambda number, _: sys.exit("handler"),
    "method": Handlers().method,
    "class method": Handlers.of_class,
    "static method": Handlers.static,
    "callable object": Handlers(),
    "partial": partial(with_more, "handler"),
    "partial of a partial": partial(partial(with_more), "handler"),
    "decorated": decorated(function),
    "decorated method": decorated(Handlers().method),
    "closure": closure,
    "custom": lambda signum, frame: raises(Custom("handler")),
}


def wait():
    threading.Event().wait(10)


def in_a_generator(fn=wait):
    return [*(fn() for _ in "1")]


def again(fn=wait):
    try:
        fn()
    except SystemExit:
        raise


@pytest.fixture
def interrupt(request):
    """Install a handler, and have the signal come while a function waits."""
    number = signal.SIGALRM
    before = signal.getsignal(number)

    def interrupt(handler, waits):
        signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        waits()

    yield interrupt
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(number, before)


@pytest.mark.parametrize("waits", [wait, in_a_generator, again], ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_signal_handler_raises_goes_on_after_the_others_ran(
    handler, waits, interrupt, caplog, events
):
    def app(environ, start_response):
        environ["wsgi.after"](interrupt, HANDLERS[handler], waits)
        environ["wsgi.after"](events.append, "next")
        return hello(environ, start_response)

    with pytest.raises((SystemExit, Custom), match="handler"):
        closed(app)
    assert (events, failures(caplog)) == (["next"], [])


def test_the_handler_of_a_real_kill_too(events):
    before = signal.signal(signal.SIGUSR1, function)

    def app(environ, start_response):
        environ["wsgi.after"](os.kill, os.getpid(), signal.SIGUSR1)
        environ["wsgi.after"](events.append, "next")
        return hello(environ, start_response)

    try:
        with pytest.raises(SystemExit, match="handler"):
            closed(app)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert events == ["next"]


def with_its_own_frame():
    frame = sys._getframe()
    sys.exit((frame.f_lineno,))


def calls_a_handler():
    function(signal.SIGTERM, None)


EXITS = {
    "sys.exit()": sys.exit,
    "a usage error": partial(argparse.ArgumentParser().parse_args, ["--no-such-option"]),
    "a handler, called": calls_a_handler,
    "a handler, with the frame of nobody": partial(Handlers().method, 15, sys._getframe()),
    "its own frame at hand": with_its_own_frame,
    "deep": decorated(decorated(lambda *args: again(sys.exit))),
    "in a generator": lambda: in_a_generator(sys.exit),
}


@pytest.mark.parametrize("exits", EXITS)
def test_a_plain_exit_in_a_callback_is_contained(exits, caplog, events):
    def app(environ, start_response):
        environ["wsgi.after"](EXITS[exits])
        environ["wsgi.after"](events.append, "next")
        return hello(environ, start_response)

    closed(app)
    assert (events, len(failures(caplog))) == (["next"], 1)


async def coroutine(*args):
    ran.append("coroutine")


async def asynchronous_generator(*args):
    yield ran.append("asynchronous generator")


def generator(*args):
    yield ran.append("generator")


@types.coroutine
def old_coroutine(*args):
    yield ran.append("old coroutine")


class Methods:
    method = coroutine
    generates = generator

    async def __call__(self):
        ran.append("call")


#: What the callbacks below did, which is nothing.
ran: list[str] = []

NOT_RUN = {
    "coroutine function": coroutine,
    "generator function": generator,
    "async generator function": asynchronous_generator,
    "old coroutine function": old_coroutine,
    "partial": partial(coroutine, 1),
    "partial of a generator function": partial(partial(generator), 1),
    "partial of an async generator function": partial(asynchronous_generator, 1),
    "method": Methods().method,
    "method that is a generator function": Methods().generates,
    "async __call__": Methods(),
    "lambda": lambda: coroutine(),
    "generator expression": lambda: (ran.append(1) for _ in "1"),
    "decorated": decorated(asynchronous_generator),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", NOT_RUN)
def test_a_callback_whose_code_has_not_run_is_told(kind, end, caplog, events):
    """Once, at ERROR; and the coroutine is closed, or Python would warn that nobody awaits it."""

    def app(environ, start_response):
        environ["wsgi.after"](NOT_RUN[kind])
        environ["wsgi.after"](events.append, "next")
        return hello(environ, start_response)

    ENDS[end](app)
    told = [record.levelname for record in caplog.records if "has not run" in record.getMessage()]
    assert (events, ran, told) == (["next"], [], ["ERROR"])


class Awaitable:
    def __await__(self):
        yield

    def __iter__(self):
        yield


class AsyncIterator:
    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration


def future_of_asyncio():
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


OTHERS = [
    *(Awaitable, AsyncIterator, future_of_asyncio, Future, Methods, list, lambda: map(str, [1])),
    *(lambda: iter([1]), lambda: ValueError("returned"), lambda: coroutine, lambda: "result"),
]


def test_what_else_a_callback_returns_may_have_been_started_so_nothing_is_told(caplog):
    def app(environ, start_response):
        environ["wsgi.after"].extend(OTHERS)
        return hello(environ, start_response)

    closed(app)
    assert caplog.records == []


APP = """
import asyncio, os, sys
import gevent
from wsgi_after import AfterResponseMiddleware

class Custom(BaseException):
    pass

def times_out():
    with gevent.Timeout(0.01):
        gevent.sleep(10)

def raises(error):
    raise error

CALLBACKS = {
    "timeout": times_out,
    "exit": sys.exit,
    "cancelled": lambda: raises(asyncio.CancelledError()),
    "generator": lambda: raises(GeneratorExit()),
    "custom": lambda: raises(Custom()),
}

def stream(answer):
    yield answer

def app(environ, start_response):
    _, callback, kind = environ["PATH_INFO"].split("/")
    environ["wsgi.after"](CALLBACKS[callback])
    answer = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))] if kind == "sized" else [])
    return stream(answer) if kind == "stream" else [answer]

application = AfterResponseMiddleware(app)
"""


@pytest.mark.servers
@pytest.mark.parametrize("options", ["-k gevent", "--threads 2"])
def test_the_next_request_on_the_connection_is_answered_by_the_same_worker(options, tmp_path):
    (tmp_path / "fails.py").write_text(APP)
    with (
        serving(f"gunicorn -b 127.0.0.1:8000 {options} fails", tmp_path) as port,
        closing(HTTPConnection("127.0.0.1", port, timeout=20)) as client,
    ):
        answers = []
        for number in range(3 * 5):
            callback = ["timeout", "exit", "cancelled", "generator", "custom"][number % 5]
            client.request("GET", f"/{callback}/{['sized', 'stream', 'list'][number % 3]}")
            connection = client.sock
            response = client.getresponse()
            answers.append((response.status, response.read(), connection is client.sock))
    assert answers == [(200, answers[0][1], True)] * 15
    assert (tmp_path / "log").read_text().count("Callback ") == 15
