"""Rule 7: a response that nobody closes runs its callbacks, but never inside the collector."""

from __future__ import annotations

import gc
import io
import threading
import warnings
from contextlib import suppress
from wsgiref.util import FileWrapper

import gevent
import pytest
from conftest import Immediately, hello, make_environ, send_file

from wsgi_after import AfterResponseMiddleware
from wsgi_after.claims import WITHOUT_GIL
from wsgi_after.integration import open_request


def get(app, **options):
    """Call an app like a server that keeps only the body."""
    return AfterResponseMiddleware(app, **options)(make_environ(), lambda *args: bool)


class Node:
    """An object that refers to itself, and runs code when it is collected."""

    def __init__(self, held, finalizer=lambda: None):
        self.held, self.me, self.finalizer = held, self, finalizer

    def __del__(self):
        self.finalizer()


class Chunks:
    """A body that records when it is closed, and raises the errors that it is given."""

    def __init__(self, events, name, error=None, of_close=None):
        self.events, self.name, self.error, self.of_close = events, name, error, of_close

    def __iter__(self):
        yield b"chunk"
        if self.error is not None:
            raise self.error

    def close(self):
        self.events.append(f"close {self.name}")
        if self.of_close is not None:
            raise self.of_close


@pytest.fixture(autouse=True)
def _warnings_are_events(events, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *args: events.append("warning"))
        yield


@pytest.fixture
def call(events):
    """Call an app whose callback records its name; return the body.

    :param fns: more callbacks.
    :param errors: what its body raises.
    """

    def call(name, *fns, executor=None, **errors):
        def app(environ, start_response):
            environ["wsgi.after"](events.append, f"callback {name}")
            environ["wsgi.after"].extend(fns)
            start_response("200 OK", [])
            return Chunks(events, name, **errors)

        return get(app, executor=executor)

    return call


@pytest.fixture
def collect(events):
    """Run the collector, and check that no code of the app ran meanwhile."""

    def collect():
        before = [*events]
        gc.collect()
        assert events == before
        events.append("collected")

    return collect


def done(name):
    """What happens when the response of this name is closed at last."""
    return ["warning", f"close {name}", f"callback {name}"]


def in_a_thread(fn):
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join()


def read_and_fail(body):
    """Make the error, its traceback, a frame and the body refer to each other, as servers do."""
    try:
        list(body)
    except ValueError as error:
        kept = error  # noqa: F841


CYCLES = {
    "unread": Node,
    "begun": lambda body: Node((chunks := iter(body), next(chunks))),
    "exhausted": lambda body: Node((body, list(body))),
    "failed": read_and_fail,
}


@pytest.mark.parametrize("executor", [None, Immediately()])
@pytest.mark.parametrize("cycle", CYCLES)
def test_nothing_of_the_app_runs_in_the_collector(cycle, executor, call, collect, events):
    error = ValueError("on purpose") if cycle == "failed" else None
    CYCLES[cycle](call("a", error=error, executor=executor))
    del error
    in_a_thread(collect)  # not the thread that closes it
    get(hello)
    assert events == ["collected", *done("a")]


def by_hand():
    with open_request({}) as request:
        pass
    return request.closer()


def raising(environ, start_response):
    raise ValueError("on purpose")


#: What is prepared before the collection, and what then closes the waiting responses.
MOMENTS = {
    "a call": (list, lambda _: get(hello)),
    "a call that shares a list": (
        lambda: make_environ(**{"wsgi.after": []}),
        lambda environ: AfterResponseMiddleware(hello)(environ, lambda *args: bool),
    ),
    "a call that raises": (list, lambda _: get(raising)),
    "close()": (lambda: get(hello), lambda body: body.close()),
    "the last reference": (lambda: [get(hello)], list.clear),
    "close() of a file": (
        lambda: send_file(FileWrapper, io.BytesIO(), []).result,
        lambda file: file.close(),
    ),
    "the end of a request opened by hand": (by_hand, lambda closer: closer()),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_next_call_or_end_of_a_request_closes_all_that_waits(moment, call, collect, events):
    """In order. The request that closes them need not have callbacks."""
    prepares, comes = MOMENTS[moment]
    prepared, bodies = prepares(), [call(name) for name in "abc"]
    while bodies:
        Node(bodies.pop(0))
        collect()
    with suppress(ValueError):
        comes(prepared)
    assert events == ["collected"] * 3 + done("a") + done("b") + done("c")


def test_what_waits_is_never_closed_from_within_what_waited(call, collect, events):
    def nested():
        events.append("nested begins")
        Node(call("c"))
        collect()
        call("d").close()
        events.append("nested ends")

    bodies = [call("b"), call("a", nested)]
    while bodies:  # one at a time: the collector chooses the order of several
        Node(bodies.pop())
        collect()
    call("e").close()
    assert events == [
        *("collected", "collected", *done("a")),
        *("nested begins", "collected", "close d", "callback d", "nested ends"),
        *(*done("b"), *done("c"), "close e", "callback e"),
    ]


def test_what_a_finalizer_drops_in_the_collector_waits_too(call, collect, events):
    kept = [call("a")]
    Node(None, finalizer=kept.clear)
    collect()
    get(hello)
    assert events == ["collected", *done("a")]


def test_what_another_thread_drops_while_the_collector_runs_is_closed_in_place(call, events):
    """The collector waits in a finalizer; the other thread is not the one that it interrupts."""
    kept, stands, dropped = [call("a")], threading.Event(), threading.Event()

    def drops():
        stands.wait(10)
        kept.clear()
        events.append("dropped")
        dropped.set()

    thread = threading.Thread(target=drops)
    thread.start()
    Node(None, finalizer=lambda: (stands.set(), dropped.wait(10)))
    gc.collect()
    thread.join()
    get(hello)
    # Without the GIL, an object is finalized by the thread that made it, which is collecting.
    assert events == (["dropped", *done("a")] if WITHOUT_GIL else [*done("a"), "dropped"])


ERRORS = [OSError("on purpose"), SystemExit("on purpose"), GeneratorExit(), gevent.Timeout(1)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_the_close_of_one_raises_concerns_nobody_else(error, call, collect, events, caplog):
    Node(call("a", of_close=error))
    collect()
    get(hello)
    assert events == ["collected", *done("a")]
    assert [record.exc_info[1] for record in caplog.records] == [error]


@pytest.mark.parametrize("of_app", [None, ValueError("of the app")])
def test_an_order_to_stop_from_one_goes_on_but_does_not_replace_an_error(
    of_app, call, collect, events
):
    def stop():
        raise KeyboardInterrupt

    body, *bodies = call("c", of_close=of_app), call("b"), call("a", stop)
    while bodies:
        Node(bodies.pop())
        collect()
    with pytest.raises(ValueError if of_app else KeyboardInterrupt):
        body.close()
    assert events == ["collected"] * 2 + ["close c", "callback c", *done("a"), *done("b")]


def test_without_callbacks_there_is_no_warning(collect, events):
    def app(environ, start_response):
        start_response("200 OK", [])
        return Chunks(events, "a")

    Node(get(app))
    collect()
    get(hello)
    assert events == ["collected", "close a"]
