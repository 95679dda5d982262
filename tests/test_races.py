"""Races for the end of a request, in every order that CPython makes possible, and interruptions.

``interleave.py`` says what is possible. All orders with at most two switches are run: a race that
needs more has yet to be seen in this field, and three multiply the orders by fifty.
"""

from __future__ import annotations

import gc
import logging
import pickle
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from functools import partial
from http.client import HTTPException
from types import SimpleNamespace
from wsgiref.util import FileWrapper

import pytest
from commands import ask, serving
from conftest import Exchange, File, Immediately, Refuses, collector_off, hello, make_environ
from interleave import interleavings, interruptions
from reporting import count
from servers.harness import wait_until

from wsgi_after import AfterResponseMiddleware, run_callbacks
from wsgi_after.claims import WITHOUT_GIL

SWITCHES = 2
LOGGER = logging.getLogger("wsgi_after")


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


class FailsToClose(Closable):
    def close(self):
        super().close()
        raise OSError("of the app")


RESULTS = {
    "list": lambda events: [b"1"],
    "closable": Closable,
    "file wrapper": lambda events: FileWrapper(File(events)),
    "close() fails": FailsToClose,
}
CLOSED = {"closable": ["closed"], "file wrapper": ["file closed"], "close() fails": ["closed"]}


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


class Queue:
    """An executor that keeps its job, for the test to do."""

    def work(self):
        """Nothing, before there is a job."""

    def submit(self, fn, *args):
        self.work = partial(fn, *args)


class Settles(Queue):
    """One that settles a future when the job is done, as the thread of a pool does."""

    def submit(self, fn, *args):
        super().submit(fn, *args)
        job, future = self.work, Future()
        self.work = lambda: future.set_result(job())
        return future


class TakesAndRefuses(Queue):
    def submit(self, fn, *args):
        super().submit(fn, *args)
        raise RuntimeError("full")


class Pickles(Queue):
    """One whose job leaves the process, as far as the list can tell."""

    def submit(self, fn, *args):
        super().submit(*pickle.loads(pickle.dumps((fn, *args))))


events_of_all: list[str] = []  # for callbacks that are pickled


def note(event):
    events_of_all.append(event)


def count_wrong(what, orders):
    """Run the orders, have them counted; none may be wrong.

    :param orders: a pair for each: the order, and what is wrong with it, if anything is.
    """
    runs, wrong = 0, []
    for order, fault in orders:
        runs += 1
        if fault:
            wrong.append((order, fault))
    count(f"races: {what}", orders_of_two_threads=runs, lost_or_doubled=len(wrong))
    assert wrong == []


# Two threads


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("executor", [None, Queue, Refuses], ids=["here", "queue", "refuses"])
@pytest.mark.parametrize("kind", ["list", "closable", "file wrapper"])
def test_closing_in_two_threads_runs_each_callback_once_in_every_order(kind, executor, number):
    names = [f"callback {n}" for n in range(number)]
    expected = Counter([*CLOSED.get(kind, []), *names])
    events, queue = [], None

    def make():
        nonlocal queue
        events.clear()
        queue = executor and executor()
        callbacks = [partial(events.append, name) for name in names]
        body = exhausted(kind, events, *callbacks, executor=queue).result
        return body.close, body.close

    def orders():
        for order in interleavings(make, __file__, SWITCHES):
            if executor is Queue:
                queue.work()
            yield order, events[:] if Counter(events) != expected else None

    count_wrong(f"close() twice, {kind}, {executor and executor.__name__}, {number}", orders())


def generator(*callbacks):
    yield from callbacks


def iadd(after, late):
    after += [late]


def iadd_generator(after, late):
    after += generator(late)


REGISTER = {
    "append": lambda after, late: after.append(late),
    "call": lambda after, late: after(late.func, *late.args),
    "extend": lambda after, late: after.extend([late]),
    "extend by a generator": lambda after, late: after.extend(generator(late)),
    "insert": lambda after, late: after.insert(0, late),
    "slice": lambda after, late: after.__setitem__(slice(0, 0), [late]),
    "+=": iadd,
    "+= a generator": iadd_generator,
}


def races(register, number, executor=None, *, handed_over=False):
    """Register while the request ends; all orders, and those in which that is lost, or doubled.

    :param handed_over: race against the executor's job, and not against ``close()``.
    """
    names = [f"callback {n}" for n in range(number)]
    outcome, queue = [], None

    def make():
        nonlocal queue
        events_of_all.clear()
        outcome.clear()
        queue = executor and executor()
        exchange = exhausted("list", [], *[partial(note, name) for name in names], executor=queue)
        after = exchange.environ["wsgi.after"]

        def registers():
            try:
                REGISTER[register](after, partial(note, "late"))
            except RuntimeError:
                outcome.append("refused")
            else:
                outcome.append("registered")

        if handed_over:
            exchange.result.close()
            return queue.work, registers
        return exchange.result.close, registers

    for order in interleavings(make, __file__, SWITCHES):
        if executor and not handed_over:
            queue.work()
        expected = [Counter([*names, "late"] if outcome == ["registered"] else names)]
        if executor is Pickles:  # of two copies, the one here can be taken back, and the other runs
            expected.append(Counter([*names, "late"]))
        wrong = Counter(events_of_all) not in expected
        yield order, [*events_of_all, *outcome] if wrong else None


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("register", REGISTER)
def test_registering_while_the_request_is_closed_runs_or_raises_in_every_order(register, number):
    count_wrong(f"{register} and close(), {number} callbacks", races(register, number))


@pytest.mark.parametrize("executor", [Queue, TakesAndRefuses, Pickles])
@pytest.mark.parametrize("register", ["append", "call"])
def test_registering_while_the_job_is_submitted_runs_or_raises_in_every_order(register, executor):
    count_wrong(f"{register} and {executor.__name__}", races(register, 1, executor))


@pytest.mark.parametrize("executor", [Queue, Settles])
@pytest.mark.parametrize("register", ["append", "call"])
def test_registering_while_an_executor_runs_the_job_runs_or_raises_in_every_order(
    register, executor
):
    orders = races(register, 1, executor, handed_over=True)
    count_wrong(f"{register} and the job of an executor, {executor.__name__}", orders)


CANCEL = {
    "remove": lambda after, entry: after.remove(entry),
    "pop": lambda after, entry: after.pop(),
    "clear": lambda after, entry: after.clear(),
    "del": lambda after, entry: after.__delitem__(-1),
}


@pytest.mark.parametrize("cancel", CANCEL)
def test_cancelling_while_the_request_is_closed_costs_no_other_callback_in_every_order(cancel):
    """What is cancelled has run before, or never runs; if it cannot be found, it has run."""
    events, outcome = [], []

    def make():
        events.clear()
        outcome.clear()
        entry = partial(events.append, "cancelled")
        exchange = exhausted("list", events, partial(events.append, "first"), entry)
        after = exchange.environ["wsgi.after"]

        def cancels():
            try:
                CANCEL[cancel](after, entry)
            except (ValueError, IndexError):
                outcome.append("not found")

        return exchange.result.close, cancels

    def orders():
        for order in interleavings(make, __file__, SWITCHES):
            right = [["first", "cancelled"]] if outcome else [["first"]]
            if cancel == "clear":
                right = [[], ["first"], ["first", "cancelled"]]
            yield order, [*events, *outcome] if events not in right else None

    count_wrong(f"{cancel} and close()", orders())


def append_late(after):
    with suppress(RuntimeError):
        after.append(str)


def test_registering_while_a_job_is_cancelled_raises_or_is_reported_lost_in_every_order(caplog):
    """Nothing stays behind in the list: it was in it when that was reported, or it is refused."""
    after = []

    def make():
        nonlocal after
        future = Future()
        exchange = exhausted("list", [], int, executor=SimpleNamespace(submit=lambda *job: future))
        after = exchange.environ["wsgi.after"]
        exchange.result.close()
        caplog.clear()
        return future.cancel, partial(append_late, after)

    def orders():
        for order in interleavings(make, __file__, SWITCHES):
            levels = [record.levelname for record in caplog.records]
            yield order, [*after, *levels] if after or levels != ["ERROR"] else None

    count_wrong("append() and a job that is cancelled", orders())


@pytest.mark.parametrize("first", [[], [lambda response: None]], ids=["the first", "another"])
def test_on_prepare_while_the_response_is_started_runs_or_raises_in_every_order(first):
    """Its function runs, or registering it says that it is too late."""
    events = []

    def app(environ, start_response):
        for fn in first:
            environ["wsgi.after"].on_prepare(fn)
        return starts_late(start_response)

    def starts_late(start_response):
        start_response("200 OK", [])
        yield b""

    def make():
        events.clear()
        environ = make_environ()
        body = AfterResponseMiddleware(app)(environ, lambda *args: None)

        def registers(after=environ["wsgi.after"]):
            try:
                after.on_prepare(lambda response: events.append("ran"))
            except RuntimeError:
                events.append("refused")

        return partial(next, body), registers

    def orders():
        for order in interleavings(make, __file__, SWITCHES):
            yield order, events[:] if events not in (["ran"], ["refused"]) else None

    count_wrong("on_prepare and start_response()", orders())


def test_a_job_that_says_it_was_not_taken_runs_each_callback_once_in_every_order():
    """The thread of an executor, and close(), have the same list."""
    names = ["callback 0", "callback 1"]
    events = []

    def make():
        events.clear()
        queue = TakesAndRefuses()
        callbacks = [partial(events.append, name) for name in names]
        exchange = exhausted("list", events, *callbacks, executor=queue)
        return exchange.result.close, lambda: queue.work()

    def orders():
        for order in interleavings(make, __file__, SWITCHES):
            yield order, events[:] if Counter(events) != Counter(names) else None

    count_wrong("an executor that refuses what it takes", orders())


# Interruptions


def fail(error):
    raise error


def fails(events):
    events.append("fails")
    raise ValueError


#: How a request ends: when what the app returned is closed, or when its call does.
ENDS = [*RESULTS, "the app fails", "nothing to close"]
EXECUTORS = {"here": lambda: None, "at once": Immediately, "queue": Queue, "refuses": Refuses}


def make_end(kind, events, executor, *callbacks):
    """What ends a request; the body is dropped with it, if it is interrupted before it began.

    :return: also a list that is empty until the app has registered the callbacks.
    """
    if kind in RESULTS:
        return exhausted(kind, events, *callbacks, executor=executor).result.close, [True]
    registered = []

    def app(environ, start_response):
        environ["wsgi.after"].extend(callbacks)
        registered.append(True)
        if kind == "the app fails":
            raise OSError("of the app")

    application = AfterResponseMiddleware(app, executor=executor)
    return partial(application, make_environ(), start_response=print), registered


def interrupted(kind, executor, error):
    """All places in the end of a request, and what is wrong if a handler of a signal raises there.

    Before, between and in callbacks, while the failure of one is logged, and while it is handed on.
    """
    names = ["first", "fails", "last"]
    events, queue, registered = [], None, []

    def make():
        nonlocal queue, registered
        events.clear()
        queue = EXECUTORS[executor]()
        first, last = (partial(events.append, name) for name in ("first", "last"))
        end, registered = make_end(kind, events, queue, first, partial(fails, events), last)
        return end

    for place, interruption in enumerate(interruptions(make, error)):
        came_out = type(interruption.came_out)
        interruption.forget()
        if executor == "queue":
            queue.work()
        if "last" not in events:  # the traceback held the body, where close() had not begun
            gc.collect()
            Exchange(AfterResponseMiddleware(hello)).finish()  # ends what the collector has found
            if executor == "queue":
                queue.work()
        ran = [event for event in events if event in names]
        wrong = bool(registered) and ran != names
        # What is no Exception goes on, unless the app's own is on its way.
        wrong |= error is not TimeoutError and came_out not in (error, OSError)
        yield (error.__name__, place), [*events, came_out] if wrong else None


# Without the GIL, the thread that made a body may finalize it at any place, in a cycle or not: then
# nobody is there to take what the app's close() raises.
@pytest.mark.filterwarnings(
    f"{'ignore' if WITHOUT_GIL else 'error'}::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", ENDS)
def test_whatever_a_handler_of_a_signal_raises_wherever_at_the_end_all_callbacks_run_once(
    kind, executor
):
    orders = [
        order
        for error in (SystemExit, KeyboardInterrupt, TimeoutError)
        for order in interrupted(kind, executor, error)
    ]
    wrong = [order for order in orders if order[1]]
    count(f"interruptions, {kind}, {executor}", places=len(orders), lost_or_doubled=len(wrong))
    assert wrong == []


class Unbound:
    """Raises whatever is asked of it, as an unbound proxy of werkzeug's does."""

    def __init__(self, *errors):
        self.errors = [*errors]

    def __iter__(self):
        raise self.errors.pop(0)

    @property
    def close(self):
        raise self.errors.pop(0)


@pytest.mark.parametrize("errors", [[OSError("iter"), ValueError("close")], [ValueError("close")]])
def test_a_close_that_cannot_be_looked_up_costs_no_callbacks_and_the_first_error_is_told(
    errors, events
):
    def app(environ, start_response):
        after = environ["wsgi.after"]
        after.append(lambda: events.append(after.error))
        start_response("200 OK", [])
        return Unbound(*errors)

    body = Exchange(AfterResponseMiddleware(app)).result
    for error in errors[:-1]:
        with pytest.raises(type(error)):
            list(body)
    with pytest.raises(ValueError, match="close"):
        body.close()
    assert events == errors[:1]


@pytest.mark.parametrize(
    ("callbacks", "error"),
    [([], SystemExit(1)), ([KeyboardInterrupt("first")], KeyboardInterrupt("second"))],
    ids=["what is contained", "the second to go on"],
)
def test_what_comes_out_of_the_log_of_one_failure_costs_the_others_nothing(
    callbacks, error, monkeypatch, events, caplog, capsys
):
    """What goes on is logged once more; the rest goes to stderr, as logging does it."""
    errors, handler = [error], logging.Handler()
    handler.emit = lambda record: fail(errors.pop()) if errors else None
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    callbacks = [*callbacks, OSError()]
    with pytest.raises(KeyboardInterrupt, match="first") if callbacks[1:] else nullcontext():
        run_callbacks([*(partial(fail, e) for e in callbacks), partial(events.append, "ran")])
    logged = [message[:48] for message in caplog.messages]
    on_stderr = "SystemExit: 1" in capsys.readouterr().err
    assert (events, logged, on_stderr) == (
        (["ran"], ["An exception was raised between two callbacks of"], False)
        if callbacks[1:]
        else (["ran"], [], True)
    )


@pytest.fixture
def gevent():
    """It has no wheel for 3.15 without the GIL."""
    pytest.importorskip("gevent.event")
    return pytest.importorskip("gevent")


def test_a_greenlet_that_is_killed_in_a_callback_runs_the_others(events, gevent):
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


def test_a_greenlet_that_is_killed_while_a_failure_is_logged_runs_the_others(
    events, monkeypatch, gevent
):
    """Where logging waits, a kill or a timeout comes out of it."""

    class Waits(logging.Handler):
        def emit(self, record):
            events.append("logging")
            logging_.set()
            gevent.sleep(60)

        def handleError(self, record):  # noqa: N802  # its name in logging
            raise

    logging_ = gevent.event.Event()
    monkeypatch.setattr(LOGGER, "handlers", [Waits()])
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
    with suppress(OSError, HTTPException):  # by a worker that is being ended
        return ask(port, path) == (200, "ok")
    return False


def test_gunicorns_worker_timeout_in_a_callback_runs_the_others_before_it_ends_the_worker(tmp_path):
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
    assert "SystemExit, which is contained" not in said
