"""Requests within requests: each has its own list, and no code of one reaches the other's."""

from __future__ import annotations

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


def registers(events):
    """A streaming body that registers: read on its own it would be refused."""
    after_this_response(events.append, "registered by the inner body")
    set_cookie("stray")
    yield b"chunk"


@pytest.mark.parametrize("begin", [iter, lambda body: body], ids=["iter", "next"])
def test_a_body_that_the_outer_app_reads_belongs_to_the_outer_request(begin, events):
    """It is read inside the call of that."""

    def inner(environ, start_response):
        set_cookie("inner")
        start_response("200 OK", [])
        return registers(events)

    def consume(exchange):
        assert list(iter(begin(exchange.result))) == [b"chunk"]
        exchange.result.close()
        events.append("inner request over")

    assert outer_around(inner, consume) == (["inner"], ["before", "stray", "behind"])
    assert events == ["inner request over", "registered by the inner body"]


def test_a_body_whose_outer_app_stops_reading_ends_as_any_other(events):
    def inner(environ, start_response):
        start_response("200 OK", [])
        after = environ["wsgi.after"]
        after(lambda: events.append((after.completed, after.error)))
        try:
            yield b"first"
            yield b"not reached"
        finally:
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


def test_a_body_that_a_callback_reads_belongs_to_the_request_of_the_callback(events):
    def app(environ, start_response):
        @after_this_response
        def callback():
            Exchange(AfterResponseMiddleware(lambda *args: registers(events))).finish()
            events.append("inner request over")

        return hello(environ, start_response)

    def registers(events):
        after_this_response(events.append, "registered by the inner body")
        yield b"chunk"

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["inner request over", "registered by the inner body"]


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
