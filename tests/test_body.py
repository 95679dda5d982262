"""What the server gets in place of the app's iterable: rules 3, 4, 7 and 8 of the contract."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
import weakref
from functools import partial

import pytest
from asgiref.wsgi import WsgiToAsgi
from conftest import Exchange

from wsgi_after import AfterResponseMiddleware, after_this_response


def returning(result, callback=None):
    """An application that returns ``result`` and registers ``callback``."""

    def app(environ, start_response):
        if callback is not None:
            environ["wsgi.after"].append(callback)
        start_response("200 OK", [])
        return result() if callable(result) else result

    return AfterResponseMiddleware(app)


class Response:
    """A response object of a framework."""

    status_code = 200

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
    """Iterable by its items only, as gunicorn's file wrapper is."""

    def __getitem__(self, index):
        return [b"1", b"2"][index]


RESULTS = [[b"1", b"2"], (b"1", b"2"), Sized(b"1", b"2"), Response(b"1", b"2"), Sequence()]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_body_has_the_chunks_and_the_length_of_the_apps_object(result):
    body = Exchange(returning(result)).result
    assert hasattr(body, "__len__") == hasattr(result, "__len__")
    if hasattr(result, "__len__"):
        assert len(body) == 2
        assert body
    assert list(body) == [b"1", b"2"]
    body.close()


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_body_is_no_builtin_sequence_because_servers_do_not_close_those(result):
    body = Exchange(returning(result)).result
    assert not isinstance(body, (list, tuple, bytes))
    body.close()


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_body_may_be_iterated_twice_as_gevent_and_eventlet_do(result):
    exchange = Exchange(returning(result))
    after = exchange.environ["wsgi.after"]
    assert list(exchange.result) == list(exchange.result) == [b"1", b"2"]
    assert after.completed
    next(iter(exchange.result))
    assert after.completed is False
    exchange.result.close()


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_body_is_an_iterator_because_fastwsgi_closes_nothing_else(result):
    exchange = Exchange(returning(result))
    assert [next(exchange.result), next(exchange.result)] == [b"1", b"2"]
    assert exchange.environ["wsgi.after"].completed is False
    assert next(exchange.result, None) is None
    assert exchange.environ["wsgi.after"].completed is True
    exchange.result.close()


def test_an_error_in_next_is_recorded(events):
    def stream():
        yield b"1"
        raise ValueError("mid-body")

    exchange = Exchange(returning(stream, lambda: events.append(after.error)))
    after = exchange.environ["wsgi.after"]
    next(exchange.result)
    with pytest.raises(ValueError, match="mid-body") as caught:
        next(exchange.result)
    exchange.result.close()
    assert events == [caught.value]


@pytest.mark.parametrize("begin", [iter, lambda body: body])
def test_of_two_errors_in_two_passes_the_first_is_recorded(begin, events):
    class Fails:
        passes = 0

        def __iter__(self):
            self.passes += 1
            raise ValueError(self.passes)

    exchange = Exchange(returning(Fails, lambda: events.append(repr(after.error))))
    after = exchange.environ["wsgi.after"]
    for number in "12":
        with pytest.raises(ValueError, match=number):
            next(begin(exchange.result))
    exchange.result.close()
    assert events == ["ValueError(1)"]


def test_a_second_pass_by_next_that_is_cut_short_is_not_completed(events):
    exchange = Exchange(returning([b"1", b"2"], lambda: events.append(after.completed)))
    after = exchange.environ["wsgi.after"]
    assert (list(exchange.result), next(exchange.result)) == ([b"1", b"2"], b"1")
    exchange.result.close()
    assert events == [False]


def test_a_body_equals_what_it_wraps():
    result = [b"1"]
    body = Exchange(returning(result)).result
    assert body == result == [b"1"]
    assert body != [b"2"]
    body.close()


def test_a_body_hashes_as_what_it_wraps():
    response = Response()
    body = Exchange(returning(response)).result
    assert (hash(body), body) == (hash(response), response)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Exchange(returning([])).result)
    body.close()


def test_the_attributes_of_the_apps_object_stay_readable():
    body = Exchange(returning(Sized(b"1"))).result
    assert (body.status_code, body.chunks) == (200, (b"1",))
    with pytest.raises(AttributeError, match="'Sized' object has no attribute 'nothing'"):
        _ = body.nothing
    body.close()


def test_the_methods_of_a_list_stay_readable():
    result = [b"1"]
    body = Exchange(returning(result)).result
    body.append(b"2")
    assert (result, body.index(b"2")) == ([b"1", b"2"], 1)
    body.close()


def test_an_attribute_of_a_body_that_was_not_made_whole_does_not_recurse():
    from wsgi_after._core.body import ObjectBody

    body = ObjectBody.__new__(ObjectBody)
    body._closed = True
    with pytest.raises(AttributeError, match="_iterable"):
        _ = body.anything


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


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_body_can_still_be_read_after_its_end(result):
    exchange = Exchange(returning(result))
    exchange.result.close()
    assert list(exchange.result) == [b"1", b"2"]
    assert next(exchange.result) == b"1"


def test_what_cannot_be_iterated_comes_back_untouched_after_the_callbacks(events):
    """It is gunicorn's sign that the response is out already."""
    already_handled = object()
    exchange = Exchange(returning(already_handled, partial(events.append, "callback")))
    assert exchange.result is already_handled
    assert events == ["callback"]


def test_bytes_are_sent_as_one_chunk():
    assert Exchange(returning(b"123")).finish() == [b"123"]


def test_closing_from_two_threads_at_once_runs_the_callbacks_once(events):
    for _ in range(200):
        start = threading.Barrier(2)
        body = Exchange(returning([], partial(events.append, "ran"))).result

        def close(body=body, start=start):
            start.wait(10)
            body.close()

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(events) == 200


# Never closed (rule 7)


def test_a_dropped_body_runs_its_callbacks_with_a_warning_that_names_the_request(events):
    exchange = Exchange(returning([b"1"], partial(events.append, "ran")))
    with pytest.warns(ResourceWarning, match=r"response of GET /path was never closed.*PEP 3333"):
        del exchange.result
    assert events == ["ran"]


def test_a_dropped_body_closes_the_apps_iterable_first(events):
    response = Response()
    exchange = Exchange(returning(response, lambda: events.append(response.closed)))
    with pytest.warns(ResourceWarning):
        del exchange.result
    assert events == [1]


def test_a_dropped_body_without_callbacks_is_silent():
    exchange = Exchange(returning([b"1"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del exchange.result


def test_where_warnings_are_errors_the_callbacks_run_all_the_same(events, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda args: events.append(args.exc_type))
    exchange = Exchange(returning([b"1"], partial(events.append, "ran")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del exchange.result
    assert events == ["ran", ResourceWarning]


def test_a_server_that_keeps_the_iterator_alone_gets_all_chunks_before_the_callbacks(events):
    exchange = Exchange(returning([b"1", b"2"], partial(events.append, "ran")))
    iterator = iter(exchange.result)
    del exchange.result
    with pytest.warns(ResourceWarning):
        events.extend(iterator)
    assert events == [b"1", b"2", "ran"]


def test_a_body_in_a_reference_cycle_waits_for_the_garbage_collector(events):
    exchange = Exchange(returning([b"1"], partial(events.append, "ran")))
    exchange.itself = exchange
    del exchange
    gc.collect()
    assert events == []  # the collector stops code that may hold a lock
    with pytest.warns(ResourceWarning):
        Exchange(returning([])).finish()
    assert events == ["ran"]


def test_a_finalizer_does_not_change_the_context_it_interrupts(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: after_this_response(events.append, "nested"))
        return [b"1"]

    exchange = Exchange(AfterResponseMiddleware(app))
    with pytest.warns(ResourceWarning):
        del exchange.result
    with pytest.raises(RuntimeError, match="outside a request"):
        after_this_response(print)
    assert events == ["nested"]


def test_under_asgiref_which_never_closes_nothing_is_lost(events):
    async def send(message):
        if message["type"] == "http.response.body":
            events.append(message.get("body"))

    async def receive():
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    application = returning([b"1", b"2"], partial(events.append, "ran"))
    with pytest.warns(ResourceWarning):
        asyncio.run(WsgiToAsgi(application)(scope, receive, send))
        gc.collect()
    assert [event for event in events if event] == [b"1", b"2", "ran"]


def test_a_close_that_raises_is_passed_on_after_the_callbacks(events):
    class Failing(Response):
        def close(self):
            raise ValueError("close")

    exchange = Exchange(returning(Failing(), lambda: events.append(repr(after.error))))
    after = exchange.environ["wsgi.after"]
    with pytest.raises(ValueError, match="close"):
        exchange.result.close()
    assert events == ["ValueError('close')"]


def test_of_an_error_in_the_body_and_one_in_close_the_first_is_recorded(events):
    class Failing(Response):
        def __iter__(self):
            raise ValueError("body")

        def close(self):
            raise ValueError("close")

    exchange = Exchange(returning(Failing(), lambda: events.append(str(after.error))))
    after = exchange.environ["wsgi.after"]
    with pytest.raises(ValueError, match="close"):
        exchange.finish()
    assert events == ["body"]


def test_an_app_that_makes_a_type_for_each_request_has_none_of_them_kept():
    """What is remembered of a type is remembered of a few only."""
    seen = []

    def result():
        seen.append(weakref.ref(kind := type("Kind", (Response,), {})))
        return kind(b"x")

    app = returning(result)
    for _ in range(200):
        Exchange(app).finish()
    gc.collect()
    assert sum(kind() is not None for kind in seen) <= 64
