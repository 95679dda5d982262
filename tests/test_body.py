"""The body, which the server gets in place of the app's iterable: rules 3, 4, 7 and 8."""

from __future__ import annotations

import gc
import sys
import weakref
from contextvars import ContextVar
from functools import partial

import pytest
from conftest import Exchange, at_once, registers


def returning(result, *callbacks):
    """An app that registers the callbacks, and returns ``result``, or what calling that returns."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return result() if callable(result) else result

    return registers(*callbacks, app=app)


class Response:
    """A response object of a framework."""

    def __init__(self, *chunks):
        self.chunks = chunks
        self.closed = 0

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        self.closed += 1


class Sized(Response):
    def __len__(self):
        return len(self.chunks)


class Sequence:
    """Iterable only through ``__getitem__()``, like gunicorn's file wrapper."""

    def __getitem__(self, index):
        return [b"1", b"2"][index]


each_kind = pytest.mark.parametrize(
    "result",
    [[b"1", b"2"], (b"1", b"2"), Sized(b"1", b"2"), Response(b"1", b"2"), Sequence()],
    ids=lambda result: type(result).__name__,
)


@each_kind
def test_a_body_has_the_chunks_and_the_length_of_the_apps_object(result):
    """The body is not a builtin sequence, because servers do not close those."""
    body = Exchange(returning(result)).result
    assert not isinstance(body, (list, tuple, bytes))
    assert hasattr(body, "__len__") == hasattr(result, "__len__")
    assert not hasattr(result, "__len__") or (len(body), bool(body)) == (2, True)
    assert list(body) == [b"1", b"2"]
    body.close()


@each_kind
def test_a_body_may_be_iterated_again_and_is_an_iterator(result):
    """The servers gevent and eventlet iterate again; fastwsgi closes only iterators."""
    exchange = Exchange(returning(result))
    body, after = exchange.result, exchange.environ["wsgi.after"]
    for begin in (iter, lambda body: body):
        assert list(body) == list(body) == [b"1", b"2"]
        assert after.completed
        assert next(begin(body)) == b"1"
        assert after.completed is False
    assert (next(body), after.completed) == (b"2", False)
    assert (next(body, None), after.completed) == (None, True)
    body.close()


@each_kind
def test_a_body_can_still_be_read_after_its_end(result):
    body = Exchange(returning(result)).result
    body.close()
    assert (list(body), next(body)) == ([b"1", b"2"], b"1")


class Html(bytes):
    """The bytes type of a template engine."""


@pytest.mark.parametrize("kind", [bytes, Html, bytearray, memoryview])
def test_bytes_are_sent_as_one_chunk(kind):
    body = Exchange(returning(kind(b"123"))).result
    assert [bytes(chunk) for chunk in body] == [b"123"]
    assert (bytes(next(body)), next(body, None)) == (b"123", None)
    body.close()


def by_next(body):
    while True:
        next(body)


@pytest.mark.parametrize(
    ("passes", "recorded"),
    [([], "close"), ([list], "pass 1"), ([by_next], "pass 1"), ([list, by_next, list], "pass 1")],
)
def test_of_several_errors_the_first_is_recorded_and_that_of_close_is_passed_on(
    passes, recorded, events
):
    class Fails(Response):
        count = 0

        def __iter__(self):
            self.count += 1
            yield b"1"
            raise ValueError(f"pass {self.count}")

        def close(self):
            raise ValueError("close")

    exchange = Exchange(returning(Fails, lambda: events.append(str(after.error))))
    after = exchange.environ["wsgi.after"]
    for number, read in enumerate(passes, 1):
        with pytest.raises(ValueError, match=f"pass {number}"):
            read(exchange.result)
    with pytest.raises(ValueError, match="close"):
        exchange.result.close()
    exchange.result.close()
    assert events == [recorded]


def test_the_iterable_is_not_touched_before_the_server_touches_it(events):
    class Watched(Response):
        def __iter__(self):
            events.append("iterated")
            return super().__iter__()

    exchange = Exchange(returning(Watched(b"1")))
    events.append("returned")
    exchange.finish()
    assert events == ["returned", "iterated"]


def test_dropping_an_iterator_does_not_close_the_apps_iterable(events):
    def stream():
        try:
            yield b"1"
            yield b"2"
        finally:
            events.append("app's generator closed")

    body = Exchange(returning(stream, partial(events.append, "callback"))).result
    iterator = iter(body)
    next(iterator)
    iterator.close()
    del iterator
    events.append("iterator closed")
    body.close()
    assert events == ["iterator closed", "app's generator closed", "callback"]


def test_what_cannot_be_iterated_comes_back_untouched_after_the_callbacks(events):
    """To gunicorn, such an object means that the response is out already."""
    already_handled = object()
    exchange = Exchange(returning(already_handled, partial(events.append, "callback")))
    assert exchange.result is already_handled
    assert events == ["callback"]


def test_closing_from_two_threads_at_once_runs_the_callbacks_once(events):
    for number in range(100):
        body = Exchange(returning([], partial(events.append, number))).result
        at_once(2, lambda _, body=body: body.close())
    assert events == [*range(100)]


# Never closed (rule 7); cases/test_unclosed.py tests what the garbage collector drops


def test_a_dropped_body_closes_the_apps_iterable_and_runs_its_callbacks_with_a_warning(events):
    response = Response()
    exchange = Exchange(returning(response, lambda: events.append(response.closed)))
    with pytest.warns(ResourceWarning, match=r"response of GET /path was never closed.*PEP 3333"):
        del exchange.result
    assert events == [1]


def test_where_warnings_are_errors_the_callbacks_run_all_the_same(events, monkeypatch):
    """A body without callbacks is silent."""
    monkeypatch.setattr(sys, "unraisablehook", lambda args: events.append(args.exc_type))
    for callbacks in ([partial(events.append, "ran")], []):
        exchange = Exchange(returning([b"1"], *callbacks))
        del exchange.result
    assert events == ["ran", ResourceWarning]


def test_a_server_that_keeps_the_iterator_alone_gets_all_chunks_before_the_callbacks(events):
    """Like asgiref, which never closes."""
    exchange = Exchange(returning([b"1", b"2"], partial(events.append, "ran")))
    iterator = iter(exchange.result)
    del exchange.result
    with pytest.warns(ResourceWarning):
        events.extend(iterator)
    assert events == [b"1", b"2", "ran"]


def test_a_finalizer_does_not_change_the_context_it_interrupts(events):
    variable = ContextVar("variable", default="unset")
    exchange = Exchange(returning([b"1"], lambda: events.append(variable.set("set").var)))
    with pytest.warns(ResourceWarning):
        del exchange.result
    assert (events, variable.get()) == ([variable], "unset")


def test_an_app_that_makes_a_type_for_each_request_has_none_of_them_kept():
    """Facts about a type are cached for a few types only."""
    seen = []

    def result():
        seen.append(weakref.ref(kind := type("Kind", (Response,), {})))
        return kind(b"x")

    app = returning(result)
    for _ in range(200):
        Exchange(app).finish()
    gc.collect()
    assert sum(kind() is not None for kind in seen) <= 64
