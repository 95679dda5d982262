"""Races for the end of a request, in every order that CPython makes possible, and interruptions.

``interleave.py`` says what is possible. All orders with at most two switches are run: a race that
needs more has yet to be seen in this field, and three multiply the orders by fifty.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from functools import partial
from http.client import HTTPException
from types import SimpleNamespace
from wsgiref.util import FileWrapper

import gevent
import gevent.event
import pytest
from commands import ask, serving
from conftest import Exchange, File, collector_off, count, make_environ
from interleave import interleavings, interruptions
from servers.harness import wait_until
from wsgi_after.logs import logger

from wsgi_after import AfterResponseMiddleware, CallbackList, run_callbacks

SWITCHES = 2


@pytest.fixture(autouse=True)
def no_garbage_collector():
    """A finalizer of another test's garbage would come by, and its places be counted."""
    with collector_off():
        yield


class Closable:
    """The app's iterable, with a ``close``."""

    def __init__(self, events):
        self.events = events

    def __iter__(self):
        return iter([b"1"])

    def close(self):
        self.events.append("closed")


RESULTS = {
    "list": lambda events: [b"1"],
    "closable": Closable,
    "file wrapper": lambda events: FileWrapper(File(events)),
}


def exhausted(kind, events, *callbacks, executor=None):
    """A request whose body was read, and is to be closed now."""

    def app(environ, start_response):
        environ["wsgi.after"].extend(callbacks)
        start_response("200 OK", [])
        return RESULTS[kind](events)

    environ = make_environ(**{"wsgi.file_wrapper": FileWrapper})
    exchange = Exchange(AfterResponseMiddleware(app, executor=executor), environ)
    list(exchange.result)
    return exchange


def expected(kind, *callbacks):
    closed = {"list": [], "closable": ["closed"], "file wrapper": ["file closed"]}[kind]
    return Counter([*closed, *callbacks])


def tell(what, runs, wrong):
    count(f"races: {what}", orders_of_two_threads=runs, lost_or_doubled=len(wrong))
    assert wrong == []


# Two threads


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("kind", RESULTS)
def test_closing_in_two_threads_runs_each_callback_once_in_every_order(kind, number):
    runs, wrong = 0, []
    names = [f"callback {n}" for n in range(number)]

    def make():
        nonlocal events
        events = []
        exchange = exhausted(kind, events, *[partial(events.append, name) for name in names])
        return exchange.result.close, exchange.result.close

    events: list[str] = []
    for order in interleavings(make, __file__, SWITCHES):
        runs += 1
        if Counter(events) != expected(kind, *names):
            wrong.append((order, events))
    tell(f"close() twice, {kind}, {number} callbacks", runs, wrong)


def append(after, events):
    after.append(partial(events.append, "late"))


def call(after, events):
    after(events.append, "late")


def generator(events):
    yield partial(events.append, "late")


def extend(after, events):
    after.extend([partial(events.append, "late")])


def extend_by_generator(after, events):
    after.extend(generator(events))


def insert(after, events):
    after.insert(0, partial(events.append, "late"))


def iadd(after, events):
    after += [partial(events.append, "late")]


def iadd_generator(after, events):
    after += generator(events)


REGISTER = [append, call, extend, extend_by_generator, insert, iadd, iadd_generator]


def race(register, number, executor=None):
    """Register while the request ends; all orders in which that is lost, or done twice."""
    runs, wrong = 0, []
    names = [f"callback {n}" for n in range(number)]
    events: list[str] = []
    outcome: list[str] = []

    def make():
        nonlocal events, outcome
        events, outcome = [], []
        queue = executor and executor()
        exchange = exhausted(
            "list", events, *[partial(events.append, name) for name in names], executor=queue
        )
        after = exchange.environ["wsgi.after"]

        def registers(events=events, outcome=outcome):
            try:
                register(after, events)
            except RuntimeError:
                outcome.append("refused")
            else:
                outcome.append("registered")

        if queue is None:
            return exchange.result.close, registers
        exchange.result.close()
        return queue.work, registers

    for order in interleavings(make, __file__, SWITCHES):
        runs += 1
        late = ["late"] if outcome == ["registered"] else []
        if Counter(events) != Counter([*names, *late]):
            wrong.append((order, events, outcome))
    return runs, wrong


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("register", REGISTER)
def test_registering_while_the_request_is_closed_runs_or_raises_in_every_order(register, number):
    runs, wrong = race(register, number)
    tell(f"{register.__name__} and close(), {number} callbacks", runs, wrong)


@pytest.mark.parametrize("register", [append, call])
def test_registering_while_an_executor_runs_the_job_runs_or_raises_in_every_order(register):
    class Queue:
        def submit(self, fn, *args):
            self.work = partial(fn, *args)

    runs, wrong = race(register, 1, Queue)
    tell(f"{register.__name__} and the job of an executor", runs, wrong)


def append_late(after):
    with contextlib.suppress(RuntimeError):
        after.append(str)


def test_registering_while_a_job_is_cancelled_raises_or_is_reported_lost_in_every_order(caplog):
    """Nothing stays behind in the list: it was in it when that was reported, or it is refused."""
    runs, wrong = 0, []
    after: list[object] = []

    def make():
        nonlocal after
        future = Future()
        exchange = exhausted("list", [], int, executor=SimpleNamespace(submit=lambda *job: future))
        after = exchange.environ["wsgi.after"]
        exchange.result.close()
        caplog.clear()
        return future.cancel, partial(append_late, after)

    for order in interleavings(make, __file__, SWITCHES):
        runs += 1
        if after or [record.levelname for record in caplog.records] != ["ERROR"]:
            wrong.append((order, list(after)))
    tell("append() and a job that is cancelled", runs, wrong)


@pytest.mark.parametrize("first", [[], [lambda response: None]], ids=["the first", "another"])
def test_on_prepare_while_the_response_is_started_runs_or_raises_in_every_order(first):
    """Its function runs, or registering it says that it is too late."""
    runs, wrong = 0, []
    events: list[str] = []

    def make():
        nonlocal events
        events = []

        def app(environ, start_response):
            start_response("200 OK", [])
            yield b""

        def app_that_registers(environ, start_response):
            for fn in first:
                environ["wsgi.after"].on_prepare(fn)
            return app(environ, start_response)

        environ = make_environ()
        body = AfterResponseMiddleware(app_that_registers)(environ, lambda *args: None)

        def registers(after=environ["wsgi.after"], events=events):
            try:
                after.on_prepare(lambda response: events.append("ran"))
            except RuntimeError:
                events.append("refused")

        return partial(next, body), registers

    for order in interleavings(make, __file__, SWITCHES):
        runs += 1
        if events not in (["ran"], ["refused"]):
            wrong.append((order, events))
    tell("on_prepare and start_response()", runs, wrong)


@pytest.mark.parametrize("name", ["append", "insert", "extend"])
def test_a_method_that_was_looked_up_before_the_end_refuses_after_it(name, events):
    """``after.append(make())``: the request ends while ``make()`` runs."""
    exchange = exhausted("list", events)
    late = partial(events.append, "late")
    method = getattr(exchange.environ["wsgi.after"], name)
    exchange.result.close()
    with pytest.raises(RuntimeError, match="have run already"):
        method(*{"append": [late], "insert": [0, late], "extend": [[late]]}[name])
    assert (exchange.environ["wsgi.after"], events) == ([], [])


def test_a_job_that_says_it_was_not_taken_runs_each_callback_once_in_every_order():
    """The thread of an executor, and close(), have the same list."""
    runs, wrong = 0, []
    names = ["callback 0", "callback 1"]
    events: list[str] = []

    class TakesAndRefuses:
        work = staticmethod(lambda: None)  # before it has a job

        def submit(self, fn, *args):
            self.work = partial(fn, *args)
            raise RuntimeError("full")

    def make():
        nonlocal events
        events = []
        queue = TakesAndRefuses()
        callbacks = [partial(events.append, name) for name in names]
        exchange = exhausted("list", events, *callbacks, executor=queue)
        return exchange.result.close, lambda: queue.work()

    for order in interleavings(make, __file__, 1):
        runs += 1
        if Counter(events) != Counter(names):
            wrong.append((order, events))
    tell("an executor that refuses what it takes", runs, wrong)


def test_threads_that_switch_as_often_as_they_can_lose_nothing():
    """What is forced above, left to chance: closing twice and registering, in three threads."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    events, registered = [], []
    try:
        for number in range(100):
            exchange = exhausted("closable", [], partial(events.append, number))
            barrier = threading.Barrier(3)

            def close(body=exchange.result, barrier=barrier):
                barrier.wait(60)
                body.close()

            def register(after=exchange.environ["wsgi.after"], number=-1 - number, barrier=barrier):
                barrier.wait(60)
                try:
                    after.append(partial(events.append, number))
                except RuntimeError:
                    return
                registered.append(number)

            threads = [threading.Thread(target=target) for target in (close, close, register)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    lost = Counter([*range(100), *registered]) - Counter(events)
    doubled = Counter(events) - Counter([*range(100), *registered])
    count("races left to chance", callbacks_run=len(events), lost=len(lost), doubled=len(doubled))
    assert (lost, doubled) == (Counter(), Counter())


# Interruptions


def fails(events):
    events.append("fails")
    raise ValueError


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("kind", RESULTS)
def test_whatever_a_handler_of_a_signal_raises_wherever_in_close_all_callbacks_run(kind, error):
    """Before, between and in them, and while the failure of one is being logged."""
    names = ["first", "fails", "last"]
    events, exchange = [], None
    places, wrong = 0, []

    def make():
        nonlocal events, exchange
        events = []
        first, last = (partial(events.append, name) for name in ("first", "last"))
        exchange = exhausted(kind, events, first, partial(fails, events), last)
        return exchange.result.close

    with pytest.warns(ResourceWarning):  # at the first place, where close() has not begun
        for interruption in interruptions(make, error):
            places += 1
            interruption.forget()
            exchange = None  # dropped unclosed, where the interruption came before close() began
            if "last" not in events:
                gc.collect()  # the traceback of the interruption held it
            if [event for event in events if event in names] != names:
                wrong.append((places, events))
    count(f"{error.__name__} in close(), {kind}", places=places, lost_or_doubled=len(wrong))
    assert wrong == []


def test_a_close_that_cannot_be_looked_up_costs_no_callbacks(events):
    """An unbound proxy, such as werkzeug's, raises whatever is asked of it."""

    class Unbound:
        def __iter__(self):
            return iter([])

        @property
        def close(self):
            raise ValueError("unbound")

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.append(lambda: events.append(repr(after.error)))
        start_response("200 OK", [])
        return Unbound()

    with pytest.raises(ValueError, match="unbound"):
        Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["ValueError('unbound')"]


def test_where_the_body_failed_before_close_could_not_be_looked_up_that_is_the_error(events):
    class Broken:
        def __iter__(self):
            raise OSError("first")

        @property
        def close(self):
            raise ValueError("second")

    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.append(lambda: events.append(repr(after.error)))
        start_response("200 OK", [])
        return Broken()

    body = Exchange(AfterResponseMiddleware(app)).result
    with pytest.raises(OSError, match="first"):
        list(body)
    with pytest.raises(ValueError, match="second"):
        body.close()
    assert events == ["OSError('first')"]


def test_what_came_too_late_but_was_run_all_the_same_is_not_refused():
    """Whoever ended the list ran it before it could be taken back: here, it is gone."""
    after = CallbackList()
    run_callbacks(after)
    after._take_back(print)
    assert after == []


class RaisingHandler(logging.Handler):
    """Raises, while it emits the first record, as a handler of a signal may at that moment."""

    def __init__(self, error):
        super().__init__()
        self.errors = [error]

    def emit(self, record):
        if self.errors:
            raise self.errors.pop()


@pytest.fixture
def raise_while_logging():
    """Have this raised while the next record is logged."""
    handlers = []

    def add(error):
        handlers.append(RaisingHandler(error))
        logger.addHandler(handlers[0])

    yield add
    logger.removeHandler(handlers[0])


def test_what_comes_out_of_the_log_of_one_failure_costs_the_others_nothing(
    raise_while_logging, events, caplog
):
    raise_while_logging(SystemExit(1))
    run_callbacks([lambda: 1 / 0, partial(events.append, "ran")], "GET /x")
    assert (events, caplog.messages[-1][:48]) == (
        ["ran"],
        "Something was raised between the callbacks of GE",
    )


def test_of_two_that_are_to_be_let_out_the_one_from_the_log_is_logged(
    raise_while_logging, events, caplog
):
    def interrupt():
        raise KeyboardInterrupt("first")

    raise_while_logging(KeyboardInterrupt("second"))
    with pytest.raises(KeyboardInterrupt, match="first"):
        run_callbacks([interrupt, lambda: 1 / 0, partial(events.append, "ran")], "GET /x")
    assert (events, caplog.messages[-1][:48]) == (
        ["ran"],
        "Something was raised between the callbacks of GE",
    )


def test_a_greenlet_that_is_killed_in_a_callback_runs_the_others(events):
    """And another time in the next one: the first kill is let out, the second logged."""
    began = gevent.event.Event()

    def waits(name):
        events.append(f"{name} began")
        began.set()
        gevent.sleep(60)

    exchange = exhausted(
        "list",
        events,
        partial(waits, "first"),
        partial(waits, "second"),
        partial(events.append, "third"),
    )
    greenlet = gevent.spawn(exchange.result.close)
    for _ in range(2):
        began.wait(60)
        began.clear()
        greenlet.kill(block=False)
        gevent.sleep(0)
    greenlet.join(60)
    assert events == ["first began", "second began", "third"]
    assert isinstance(greenlet.value, gevent.GreenletExit)


def test_a_greenlet_that_is_killed_while_a_failure_is_logged_runs_the_others(events, monkeypatch):
    """Where logging waits, a kill or a timeout comes out of it."""

    class Waits(logging.Handler):
        def emit(self, record):
            events.append("logging")
            logging_.set()
            gevent.sleep(60)

        def handleError(self, record):  # noqa: N802  # its name in logging
            raise

    logging_ = gevent.event.Event()
    monkeypatch.setattr(logging.getLogger("wsgi_after"), "handlers", [Waits()])
    exchange = exhausted("list", events, partial(fails, events), partial(events.append, "last"))
    greenlet = gevent.spawn(exchange.result.close)
    logging_.wait(60)
    greenlet.kill()
    assert events == ["fails", "logging", "last"]


# A real worker timeout

TIMED_OUT = """
import os, time
from functools import partial
from wsgi_after import AfterResponseMiddleware

def note(line):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(line + "\\n")

def hangs():
    note("first began")
    while True:
        time.sleep(0.05)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hangs":
        environ["wsgi.after"].extend([hangs, partial(note, "second"), partial(note, "third")])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

application = AfterResponseMiddleware(app)
"""


def is_answered(port, path):
    with contextlib.suppress(OSError, HTTPException):  # by a worker that is being ended
        return ask(port, path) == (200, "ok")
    return False


def test_gunicorns_worker_timeout_in_a_callback_runs_the_others_and_says_what_it_was(tmp_path):
    """SIGABRT to a real worker, whose handler raises SystemExit in the middle of a callback."""
    (tmp_path / "timed_out.py").write_text(TIMED_OUT)
    notes, log = tmp_path / "notes", tmp_path / "log"
    command = "gunicorn --timeout=2 --graceful-timeout=10 --bind=127.0.0.1:8000"
    with serving(f"{command} timed_out:application", tmp_path, NOTES=notes) as port:
        assert ask(port, "/hangs") == (200, "ok")
        wait_until(lambda: is_answered(port, "/next"), log)  # by another worker, or this one
        wait_until(lambda: "third" in notes.read_text(), log)
    assert notes.read_text().splitlines() == ["first began", "second", "third"]
    said = log.read_text()
    assert "WORKER TIMEOUT" in said
    assert "Callback timed_out.hangs of GET /hangs raised SystemExit, which is contained" in said
