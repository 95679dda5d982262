"""Races for the end of a request, in every order that CPython allows.

``interleave.py`` says what is possible. All orders with at most two switches are run: no race in
this field has needed more so far, and three switches multiply the orders by fifty.
"""

from __future__ import annotations

import operator
import pickle
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from wsgiref.util import FileWrapper

import pytest
from conftest import Exchange, File, Refuses, collector_off, make_environ
from interleave import interleavings
from reporting import count

from wsgi_after import AfterResponseMiddleware

SWITCHES = 2


@pytest.fixture(autouse=True)
def no_garbage_collector():
    """Otherwise finalizers of other tests' garbage may run, and their places would count."""
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
CLOSED = {"closable": ["closed"], "file wrapper": ["file closed"]}


def exhausted(kind, events, *callbacks, executor=None):
    """A request whose body has been read, and is to be closed now."""

    def app(environ, start_response):
        environ["wsgi.after"].extend(callbacks)
        start_response("200 OK", [])
        return RESULTS[kind](events)

    environ = make_environ(**{"wsgi.file_wrapper": FileWrapper})
    exchange = Exchange(AfterResponseMiddleware(app, executor=executor), environ)
    list(exchange.result)
    return exchange


class Queue:
    """An executor that keeps its job, for the test to run."""

    def work(self):
        """Do nothing until there is a job."""

    def submit(self, fn, *args):
        self.work = partial(fn, *args)


class Settles(Queue):
    """A queue that settles a future when the job is done, as the thread of a pool does."""

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
    """A queue whose job leaves the process, as far as the list can tell."""

    def submit(self, fn, *args):
        super().submit(*pickle.loads(pickle.dumps((fn, *args))))


events_of_all: list[str] = []  # for callbacks that are pickled


def note(event):
    events_of_all.append(event)


def unless(is_right, *seen):
    """Return what was seen, as text, if it is not right; otherwise ``None``."""
    return None if is_right else str(seen)


def tried(what, make):
    """Run the actions of ``make`` in every order, and count the orders; none may be wrong.

    :param make: returns the two actions, and a function that is called after each order: it
        returns what was wrong, by :func:`unless`.
    """
    runs, faults, wrong = 0, [], None

    def actions():
        nonlocal wrong
        actions, wrong = make()
        return actions

    for order in interleavings(actions, __file__, SWITCHES):
        runs += 1
        if fault := wrong():
            faults.append((order, fault))
    count(f"races: {what}", orders_of_two_threads=runs, lost_or_doubled=len(faults))
    assert faults == []


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("executor", [None, Queue, Refuses], ids=["here", "queue", "refuses"])
@pytest.mark.parametrize("kind", ["list", "closable", "file wrapper"])
def test_closing_in_two_threads_runs_each_callback_once_in_every_order(kind, executor, number):
    names = [f"callback {n}" for n in range(number)]
    expected = Counter([*CLOSED.get(kind, []), *names])

    def make():
        events, queue = [], executor and executor()
        callbacks = [partial(events.append, name) for name in names]
        body = exhausted(kind, events, *callbacks, executor=queue).result

        def wrong():
            if executor is Queue:
                queue.work()
            return unless(Counter(events) == expected, *events)

        return (body.close, body.close), wrong

    tried(f"close() twice, {kind}, {executor and executor.__name__}, {number}", make)


def generator(*callbacks):
    yield from callbacks


REGISTER = {
    "append": lambda after, late: after.append(late),
    "call": lambda after, late: after(late.func, *late.args),
    "extend": lambda after, late: after.extend([late]),
    "extend by a generator": lambda after, late: after.extend(generator(late)),
    "insert": lambda after, late: after.insert(0, late),
    "slice": lambda after, late: after.__setitem__(slice(0, 0), [late]),
    "+=": lambda after, late: operator.iadd(after, [late]),
    "+= a generator": lambda after, late: operator.iadd(after, generator(late)),
}


def registering(register, against, number, executor=None, *, handed_over=False):
    """Register while the request ends: the entry runs once, or registering it raises.

    :param handed_over: race against the executor's job, and not against ``close()``.
    """
    names = [f"callback {n}" for n in range(number)]

    def make():
        events_of_all.clear()
        outcome, queue = [], executor and executor()
        exchange = exhausted("list", [], *[partial(note, name) for name in names], executor=queue)
        after, close = exchange.environ["wsgi.after"], exchange.result.close

        def registers():
            try:
                REGISTER[register](after, partial(note, "late"))
            except RuntimeError:
                outcome.append("refused")

        def wrong():
            if executor and not handed_over:
                queue.work()
            right = [Counter(names if outcome else [*names, "late"])]
            if executor is Pickles:  # the copy here may be withdrawn, the pickled one runs
                right.append(Counter([*names, "late"]))
            return unless(Counter(events_of_all) in right, *events_of_all, *outcome)

        if handed_over:
            close()
        return (queue.work if handed_over else close, registers), wrong

    tried(f"{register} and {against}", make)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("register", REGISTER)
def test_registering_while_the_request_is_closed_runs_or_raises_in_every_order(register, number):
    registering(register, f"close(), {number} callbacks", number)


@pytest.mark.parametrize("executor", [Queue, TakesAndRefuses, Pickles])
@pytest.mark.parametrize("register", ["append", "call"])
def test_registering_while_the_job_is_submitted_runs_or_raises_in_every_order(register, executor):
    registering(register, executor.__name__, 1, executor)


@pytest.mark.parametrize("executor", [Queue, Settles])
@pytest.mark.parametrize("register", ["append", "call"])
def test_registering_while_the_job_runs_runs_or_raises_in_every_order(register, executor):
    against = f"the job of an executor, {executor.__name__}"
    registering(register, against, 1, executor, handed_over=True)


CANCEL = {
    "remove": lambda after, entry: after.remove(entry),
    "pop": lambda after, entry: after.pop(),
    "clear": lambda after, entry: after.clear(),
    "del": lambda after, entry: after.__delitem__(-1),
}


@pytest.mark.parametrize("cancel", CANCEL)
def test_cancelling_while_the_request_is_closed_costs_no_other_callback(cancel):
    """A cancelled callback has run before, or never runs; if it is not found, it has run."""

    def make():
        events, outcome = [], []
        entry = partial(events.append, "cancelled")
        exchange = exhausted("list", events, partial(events.append, "first"), entry)
        after = exchange.environ["wsgi.after"]

        def cancels():
            try:
                CANCEL[cancel](after, entry)
            except (ValueError, IndexError):
                outcome.append("not found")

        def wrong():
            right = [["first", "cancelled"]] if outcome else [["first"]]
            if cancel == "clear":
                right = [[], ["first"], ["first", "cancelled"]]
            return unless(events in right, *events, *outcome)

        return (exchange.result.close, cancels), wrong

    tried(f"{cancel} and close()", make)


def append_late(after):
    with suppress(RuntimeError):
        after.append(str)


def test_registering_while_a_job_is_cancelled_raises_or_is_reported_lost(caplog):
    """Nothing stays in the list: an entry was there when the loss was reported, or is refused."""

    def make():
        future = Future()
        exchange = exhausted("list", [], int, executor=SimpleNamespace(submit=lambda *job: future))
        after = exchange.environ["wsgi.after"]
        exchange.result.close()
        caplog.clear()

        def wrong():
            levels = [record.levelname for record in caplog.records]
            return unless((after, levels) == ([], ["ERROR"]), *after, *levels)

        return (future.cancel, partial(append_late, after)), wrong

    tried("append() and a job that is cancelled", make)


@pytest.mark.parametrize("first", [[], [lambda response: None]], ids=["the first", "another"])
def test_on_prepare_while_the_response_is_started_runs_or_raises_in_every_order(first):
    def app(environ, start_response):
        for fn in first:
            environ["wsgi.after"].on_prepare(fn)
        return starts_late(start_response)

    def starts_late(start_response):
        start_response("200 OK", [])
        yield b""

    def make():
        events, environ = [], make_environ()
        body = AfterResponseMiddleware(app)(environ, lambda *args: None)
        after = environ["wsgi.after"]

        def registers():
            try:
                after.on_prepare(lambda response: events.append("ran"))
            except RuntimeError:
                events.append("refused")

        def wrong():
            return unless(events in (["ran"], ["refused"]), *events)

        return (partial(next, body), registers), wrong

    tried("on_prepare and start_response()", make)


def test_a_job_that_says_it_was_not_taken_runs_each_callback_once_in_every_order():
    """The thread of an executor and close() have the same list."""
    names = ["callback 0", "callback 1"]

    def make():
        events, queue = [], TakesAndRefuses()
        callbacks = [partial(events.append, name) for name in names]
        close = exhausted("list", events, *callbacks, executor=queue).result.close

        def wrong():
            return unless(Counter(events) == Counter(names), *events)

        return (close, lambda: queue.work()), wrong

    tried("an executor that refuses what it takes", make)
