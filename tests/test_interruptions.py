"""Interruptions of the end of a request, at every place where CPython allows one.

``interleave.py`` says where that is.
"""

from __future__ import annotations

import gc
import logging
from contextlib import nullcontext
from functools import partial

import gevent
import gevent.event
import pytest
from conftest import Exchange, Immediately, Refuses, hello, make_environ, registers
from interleave import interruptions
from reporting import count
from test_races import RESULTS, Queue, exhausted, no_garbage_collector  # noqa: F401

from wsgi_after import AfterResponseMiddleware, run_callbacks
from wsgi_after.claims import WITHOUT_GIL

LOGGER = logging.getLogger("wsgi_after")


@pytest.fixture(autouse=True)
def garbage_of_its_own(no_garbage_collector):  # noqa: F811
    """Collect only objects made in here: those that other tests left cost 20 ms each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def fail(error):
    raise error


def fails(events):
    events.append("fails")
    raise ValueError


class ClosesBadly(list):
    """An iterable whose ``close()`` raises."""

    def close(self):
        raise OSError("of the app's close()")


def closes_badly(environ, start_response):
    start_response("200 OK", [])
    return ClosesBadly()


#: How a request ends: when the app's result is closed, or when the call of the app ends.
ENDS = [*RESULTS, "close() fails", "the app fails", "nothing to close"]
EXECUTORS = {"here": lambda: None, "at once": Immediately, "queue": Queue, "refuses": Refuses}


def make_end(kind, events, executor, *callbacks):
    """Return a function that ends a request, and a list that is empty until callbacks are there.

    If the function is interrupted before it begins, the body is dropped with it.
    """
    if kind in RESULTS:
        return exhausted(kind, events, *callbacks, executor=executor).result.close, [True]
    if kind == "close() fails":
        app = registers(*callbacks, app=closes_badly, executor=executor)
        return Exchange(app).result.close, [True]
    registered = []

    def app(environ, start_response):
        environ["wsgi.after"].extend(callbacks)
        registered.append(True)
        if kind == "the app fails":
            raise OSError("of the app")

    application = AfterResponseMiddleware(app, executor=executor)
    return partial(application, make_environ(), start_response=print), registered


def interrupted(kind, executor, error):
    """Yield each place in the end of a request, and what is wrong if a signal handler raises there.

    The places are before, between and in callbacks, where a failure is logged, and in a hand-over.
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
        if "last" not in events:  # close() had not begun, and the traceback held the body
            gc.collect()
            Exchange(AfterResponseMiddleware(hello)).finish()  # ends what the collector has found
            if executor == "queue":
                queue.work()
        ran = [event for event in events if event in names]
        wrong = bool(registered) and ran != names
        # Anything but an Exception goes on, unless the app's own exception is on its way.
        wrong |= error is not TimeoutError and came_out not in (error, OSError)
        yield (error.__name__, place), [*events, came_out] if wrong else None


# Without the GIL, the thread that made a body may finalize it at any place, in a cycle or not. Then
# nothing can receive what the app's close() raises.
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
    """Raises when its iterator or ``close`` is looked up, like an unbound proxy of werkzeug's."""

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
    ("callbacks", "error", "goes_on", "logged"),
    [
        ([OSError()], ValueError("disk full"), None, []),
        ([OSError()], SystemExit("contained"), None, []),
        # As if a greenlet were killed while logging waits.
        ([OSError()], KeyboardInterrupt("killed"), "killed", []),
        (
            *([KeyboardInterrupt("first"), OSError()], KeyboardInterrupt("second"), "first"),
            ["An exception was raised between two callbacks of"],
        ),
    ],
)
def test_what_comes_out_of_the_log_of_one_failure_costs_the_others_nothing(
    callbacks, error, goes_on, logged, monkeypatch, events, caplog, capsys
):
    """Of two exceptions that go on, the second is logged. Others go to stderr, as logging does."""
    errors, handler = [error], logging.Handler()
    handler.emit = lambda record: fail(errors.pop()) if errors else None
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    with pytest.raises(KeyboardInterrupt, match=goes_on) if goes_on else nullcontext():
        run_callbacks([*(partial(fail, e) for e in callbacks), partial(events.append, "ran")])
    assert (events, [message[:48] for message in caplog.messages]) == (["ran"], logged)
    assert (str(error) in capsys.readouterr().err) is (goes_on is None)


def test_a_greenlet_that_is_killed_in_a_callback_runs_the_others(events):
    """It is killed again in the next callback: the first kill is raised, the second is logged."""
    began = gevent.event.Event()

    def waits(name):
        events.append(f"{name} began")
        began.set()
        gevent.sleep(60)

    callbacks = partial(waits, "first"), partial(waits, "second"), partial(events.append, "third")
    greenlet = gevent.spawn(exhausted("list", events, *callbacks).result.close)
    for _ in range(2):
        began.wait(60)
        began.clear()
        greenlet.kill(block=False)
        gevent.sleep(0)
    greenlet.join(60)
    assert events == ["first began", "second began", "third"]
    assert isinstance(greenlet.value, gevent.GreenletExit)
