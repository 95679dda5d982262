"""Requests within requests: each has its own list, and no code of one reaches the other's."""

from __future__ import annotations

import gc
import weakref

import pytest
from conftest import Exchange, Marker, collector_off, hello, make_environ

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response


def set_cookie(name):
    after_this_request(lambda response: response.set_cookie(name, "1"))


def cookies(exchange):
    headers = exchange.started[0][1]
    return [value.partition("=")[0] for name, value in headers if name == "Set-Cookie"]


def outer_around(inner, consume):
    """An app that makes a request to ``inner``, and calls ``consume`` with its result.

    Returns what both servers, the real one and the outer app, were given.
    """
    exchanges = []

    def app(environ, start_response):
        set_cookie("before")
        exchanges.append(Exchange(AfterResponseMiddleware(inner)))
        consume(exchanges[0])
        set_cookie("behind")
        return hello(environ, start_response)

    outer = Exchange(AfterResponseMiddleware(app))
    outer.finish()
    return cookies(exchanges[0]), cookies(outer)


def test_a_request_made_within_a_request_changes_its_own_response():
    def inner(environ, start_response):
        set_cookie("inner")
        return hello(environ, start_response)

    expected = (["inner"], ["before", "behind"])
    assert outer_around(inner, lambda exchange: exchange.finish()) == expected


def refused():
    with pytest.raises(RuntimeError, match="outside a request"):
        after_this_response(print)
    with pytest.raises(RuntimeError, match=r"outside a request.*call on_prepare\(\) of that"):
        set_cookie("stray")


class Chunks:
    """An iterable whose every method tries to register."""

    def __init__(self, events):
        self.events = events

    def __iter__(self):
        refused()
        self.events.append("iter")
        return Iterator(self.events)

    def close(self):
        refused()
        self.events.append("close")


class Iterator:
    def __init__(self, events):
        self.events = events

    def __next__(self):
        refused()
        self.events.append("next")
        if self.events.count("next") > 2:
            raise StopIteration
        return b"chunk"


class SizedChunks(Chunks):
    def __len__(self):
        return 2


def iterate(exchange):
    assert list(exchange.result) == [b"chunk"] * 2
    exchange.result.close()


def call_next(exchange):
    assert [next(exchange.result) for _ in range(2)] == [b"chunk"] * 2
    with pytest.raises(StopIteration):
        next(exchange.result)
    exchange.result.close()


@pytest.mark.parametrize("consume", [iterate, call_next])
@pytest.mark.parametrize("kind", [Chunks, SizedChunks])
def test_a_body_consumed_while_the_outer_app_is_called_does_not_reach_its_list(
    consume, kind, events
):
    def inner(environ, start_response):
        set_cookie("inner")
        start_response("200 OK", [])
        return kind(events)

    assert outer_around(inner, consume) == (["inner"], ["before", "behind"])
    assert events == ["iter", "next", "next", "next", "close"]


def test_a_body_that_is_dropped_unclosed_does_not_reach_the_outer_list(events):
    def inner(environ, start_response):
        start_response("200 OK", [])
        return Chunks(events)

    def drop(exchange):
        del exchange.result
        gc.collect()

    assert outer_around(inner, drop) == ([], ["before", "behind"])
    assert events == ["close"]


def test_a_body_whose_outer_app_stops_reading_ends_as_any_other(events):
    def inner(environ, start_response):
        start_response("200 OK", [])
        after = environ["wsgi.after"]
        after(lambda: events.append((after.completed, after.error)))
        try:
            yield b"first"
            yield b"not reached"
        finally:
            refused()
            events.append("closed")

    def stop(exchange):
        assert next(iter(exchange.result)) == b"first"
        exchange.result.close()

    assert outer_around(inner, stop) == ([], ["before", "behind"])
    assert events == ["closed", (False, None)]


def test_what_an_inner_body_raises_comes_out_of_it(events):
    def inner(environ, start_response):
        after = environ["wsgi.after"]
        after(lambda: events.append(after.error))
        start_response("200 OK", [])
        yield b"first"
        raise error

    def consume(exchange):
        with pytest.raises(ValueError, match="no"):
            exchange.finish()

    error = ValueError("no")
    assert outer_around(inner, consume) == ([], ["before", "behind"])
    assert events == [error]


def test_the_callbacks_of_an_inner_request_have_their_own_list(events):
    """They may register, even where their body may not."""

    def inner(environ, start_response):
        @environ["wsgi.after"]
        def callback():
            events.append("inner")
            after_this_response(events.append, "registered by it")

        start_response("200 OK", [])
        yield b""

    assert outer_around(inner, lambda exchange: exchange.finish()) == ([], ["before", "behind"])
    assert events == ["inner", "registered by it"]


def test_a_body_started_lazily_within_a_request_is_prepared_by_its_own_callbacks():
    """And what these register goes to their own response, body or not."""

    def inner(environ, start_response):
        @environ["wsgi.after"].on_prepare
        def callback(response):
            set_cookie("inner")

        start_response("200 OK", [])
        refused()
        yield b""

    expected = (["inner"], ["before", "behind"])
    assert outer_around(inner, lambda exchange: exchange.finish()) == expected


def test_response_callbacks_register_with_their_own_request_whoever_starts_the_response():
    """An inner app that is called with the outer start_response runs the outer callbacks."""

    def inner(environ, start_response):
        set_cookie("inner")
        start_response("200 OK", [])
        return []

    def outer(environ, start_response):
        after_this_request(lambda response: set_cookie("outer"))
        return AfterResponseMiddleware(inner)(make_environ(), start_response)

    exchange = Exchange(AfterResponseMiddleware(outer))
    exchange.finish()
    assert cookies(exchange) == ["inner", "outer"]


def test_a_request_made_by_a_callback_after_the_response_is_nested_too(events):
    def inner(environ, start_response):
        start_response("200 OK", [])
        refused()
        events.append("refused")
        yield b""

    def app(environ, start_response):
        @after_this_response
        def callback():
            streaming = AfterResponseMiddleware(lambda *args: list_later(inner(*args)))
            Exchange(streaming).finish()
            after_this_response(events.append, "registered")

        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["refused", "registered"]


def list_later(iterable):
    yield from iterable


def test_instances_around_each_other_share_the_list_and_the_response():
    """The one response is prepared once, by the callbacks of both."""

    def app(environ, start_response):
        set_cookie("app")
        return hello(environ, start_response)

    def between(environ, start_response):
        set_cookie("between")
        return AfterResponseMiddleware(app)(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(between))
    exchange.finish()
    assert cookies(exchange) == ["between", "app"]


def test_the_result_of_an_inner_request_behaves_as_in_any_other():
    """Its attributes, its length, its equality; a list, and what is no iterable, pass."""

    class Rendered(list):
        template = "page.html"

    results = [Rendered([b"a"]), [b"a"], sentinel := object()]
    exchanges = []

    def outer(environ, start_response):
        for result in results:
            exchanges.append(Exchange(AfterResponseMiddleware(lambda *args, r=result: r)))
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(outer)).finish()
    rendered, plain, passed = [exchange.result for exchange in exchanges]
    assert (rendered.template, len(rendered), rendered == [b"a"]) == ("page.html", 1, True)
    assert (len(plain), plain == [b"a"], passed) == (1, True, sentinel)
    rendered.close()
    plain.close()


def test_nothing_is_kept_of_an_inner_request_that_is_over():
    def inner(environ, start_response):
        watched.append(weakref.ref(environ["marker"]))
        environ["wsgi.after"].on_prepare(lambda response: environ.update(prepared=True))
        start_response("200 OK", [])
        yield b""

    def outer(environ, start_response):
        exchange = Exchange(AfterResponseMiddleware(inner), make_environ(marker=Marker()))
        exchange.finish()
        del exchange
        watched.append(watched[0]())
        return hello(environ, start_response)

    watched = []
    with collector_off():
        Exchange(AfterResponseMiddleware(outer)).finish()
        assert watched[1] is None
