"""Rule 6: which exceptions leave ``close()``, and callbacks that return code that has not run."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import types
from concurrent.futures import Future
from contextlib import closing, nullcontext
from functools import partial, wraps
from http.client import HTTPConnection

import gevent
import greenlet
import pytest
from commands import serving
from conftest import Exchange, Immediately, hello, registers


class Custom(BaseException):
    """Neither an Exception nor an order to stop."""


CONTAINED = [
    *(SystemExit(), SystemExit(3), SystemExit("on purpose"), GeneratorExit(), Custom()),
    *(asyncio.CancelledError(), gevent.Timeout(1), StopIteration(), MemoryError()),
    BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
]
GOES_ON = [KeyboardInterrupt(), greenlet.GreenletExit()]
each_error = pytest.mark.parametrize(
    "error", [*CONTAINED, *GOES_ON], ids=lambda error: type(error).__name__
)
each_end = pytest.mark.parametrize("executor", [None, Immediately()])


def raises(error):
    raise error


@pytest.fixture
def closed(events):
    """End a request that has this callback, and another one after it."""

    def closed(callback, **options):
        Exchange(registers(callback, partial(events.append, "next"), **options)).finish()

    return closed


def failures(caplog):
    """The exceptions that were logged at ERROR."""
    return [repr(record.exc_info[1]) for record in caplog.records if record.levelname == "ERROR"]


@each_end
@each_error
def test_what_a_callback_raises(error, executor, closed, caplog, events):
    """It is logged, unless it is an order to stop; the other callbacks always run."""

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after(after, raises, error)  # registered by a running callback, so it comes last
        return hello(environ, start_response)

    goes_on = error in GOES_ON
    with pytest.raises(type(error)) if goes_on else nullcontext() as caught:
        closed(partial(raises, error), app=app, executor=executor)
    assert not goes_on or caught.value is error
    assert (events, failures(caplog)) == (["next"], [repr(error)] * (1 if goes_on else 2))


@each_error
@pytest.mark.parametrize("of_app", [ValueError("app"), SystemExit("app"), GeneratorExit("app")])
@pytest.mark.parametrize("place", ["call", "close"])
def test_an_exception_of_the_app_that_is_on_its_way_wins(
    place, of_app, error, closed, caplog, events
):
    class Body(list):
        def close(self):
            raise of_app

    def app(environ, start_response):
        return Body() if place == "close" else raises(of_app)

    with pytest.raises(type(of_app), match="app") as caught:
        closed(partial(raises, error), app=app)
    assert (caught.value, events, failures(caplog)) == (of_app, ["next"], [repr(error)])


class Handlers:
    def method(self, signum, frame):
        sys.exit("handler")

    @classmethod
    def of_class(cls, *arguments):
        sys.exit("handler")

    @staticmethod
    def static(signum, frame=None, **options):
        raise SystemExit("handler") from OSError()

    def __call__(self, signum, frame):
        self.method(None, None)


def with_more(why, signum, frame, /):
    sys.exit(why)


def decorated(fn):
    @wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


HANDLERS = [
    *(lambda *_: sys.exit("handler"), lambda number, _: sys.exit("handler")),
    *(Handlers().method, Handlers.of_class, Handlers.static, Handlers()),
    *(partial(with_more, "handler"), decorated(Handlers().method)),
    lambda signum, frame: (lambda: (frame, sys.exit("handler")))(),
    lambda signum, frame: raises(Custom("handler")),
]


def wait():
    threading.Event().wait(10)


def in_a_generator(fn=wait):
    return [*(fn() for _ in "1")]


def again(fn=wait):
    try:
        fn()
    except SystemExit:
        raise


def interrupt(number, handler, waits):
    """Send this process a signal while a function waits."""
    before = signal.signal(number, handler)
    try:
        if number == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        else:
            os.kill(os.getpid(), number)
        waits()
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("waits", [wait, in_a_generator, again])
@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGUSR1])
@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_signal_handler_raises_goes_on_after_the_others_ran(
    handler, number, waits, closed, caplog, events
):
    with pytest.raises((SystemExit, Custom), match="handler"):
        closed(partial(interrupt, number, handler, waits))
    assert (events, failures(caplog)) == (["next"], [])


def with_its_own_frame():
    frame = sys._getframe()
    sys.exit((frame.f_lineno,))


EXITS = [
    *(sys.exit, with_its_own_frame, lambda: in_a_generator(sys.exit)),
    *(decorated(decorated(lambda: again(sys.exit))), lambda: Handlers()(signal.SIGTERM, None)),
    partial(argparse.ArgumentParser().parse_args, ["--no-such-option"]),
    partial(Handlers().method, signal.SIGTERM, sys._getframe()),  # not the interrupted frame
]


@pytest.mark.parametrize("exits", EXITS)
def test_a_plain_exit_in_a_callback_is_contained(exits, closed, caplog, events):
    closed(exits)
    assert (events, len(failures(caplog))) == (["next"], 1)


#: What the callbacks below did: it must stay empty.
ran: list[int] = []


async def coroutine(*args):
    ran.append(1)


async def asynchronous_generator(*args):
    yield ran.append(1)


def generator(*args):
    yield ran.append(1)


class Methods:
    method, generates, __call__ = coroutine, generator, coroutine


NOT_RUN = [
    *(coroutine, generator, asynchronous_generator, types.coroutine(generator)),
    *(partial(coroutine, 1), partial(partial(generator), 1), partial(asynchronous_generator, 1)),
    *(Methods().method, Methods().generates, Methods(), decorated(asynchronous_generator)),
    *(lambda: coroutine(), lambda: (ran.append(1) for _ in "1")),
]


@each_end
@pytest.mark.parametrize("callback", NOT_RUN)
def test_a_callback_whose_code_has_not_run_is_told(callback, executor, closed, caplog, events):
    """Once, at ERROR. The coroutine is closed, or Python would warn that it was never awaited."""
    closed(callback, executor=executor)
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


LOOP = asyncio.new_event_loop()
LOOP.close()
OTHERS = [
    *(Awaitable, AsyncIterator, partial(asyncio.Future, loop=LOOP), Future, Methods, list),
    *(lambda: map(str, [1]), lambda: ValueError("returned"), lambda: "result"),
]


@pytest.mark.parametrize("returns", OTHERS)
def test_of_what_else_a_callback_returns_nothing_is_told(returns, closed, caplog, events):
    """Its code may have started: that of Dask's futures and asyncio's tasks has."""
    closed(returns)
    assert (events, caplog.records) == (["next"], [])


APP = """
import asyncio, os, sys
import gevent
from wsgi_after import AfterResponseMiddleware

def times_out():
    with gevent.Timeout(0.01):
        gevent.sleep(10)

def raises(kind):
    raise kind

CALLBACKS = [(times_out,), (sys.exit,), (raises, asyncio.CancelledError), (raises, GeneratorExit)]

def app(environ, start_response):
    number = int(environ["PATH_INFO"][1:])
    environ["wsgi.after"](*CALLBACKS[number % 4])
    answer = str(os.getpid()).encode()
    start_response("200 OK", [] if number % 3 else [("Content-Length", str(len(answer)))])
    return [answer] if number % 3 < 2 else (answer for _ in "1")

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
        for number in range(12):
            client.request("GET", f"/{number}")
            connection = client.sock
            response = client.getresponse()
            answers.append((response.status, response.read(), connection is client.sock))
    assert answers == [(200, answers[0][1], True)] * 12
    assert (tmp_path / "log").read_text().count("Callback ") == 12
