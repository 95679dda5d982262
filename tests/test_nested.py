"""Requests within requests: each has its own list, which the other's code does not reach."""

from __future__ import annotations

import pytest
from conftest import Exchange, hello, make_environ, registers

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response


@pytest.fixture
def mark(events):
    """Register a cookie and a callback of this name with the current request."""

    def mark(name):
        after_this_request(lambda response: response.set_cookie(name, "1"))
        after_this_response(events.append, name)

    return mark


def cookies(exchange):
    headers = exchange.started[0][1]
    return [value.partition("=")[0] for name, value in headers if name == "Set-Cookie"]


def marks_in_call(environ, start_response):
    environ["mark"]("inner")
    return hello(environ, start_response)


def marks_in_body(environ, start_response):
    """If the body were read while no app is called, registering would be refused."""
    start_response("200 OK", [])
    return (environ["mark"]("inner") or chunk for chunk in [b"hello"])


def marks_in_callback(environ, start_response):
    """A callback may register even where the body may not."""
    environ["wsgi.after"](after_this_response, environ["events"].append, "inner")
    return hello(environ, start_response)


def marks_in_response_callback(environ, start_response):
    """The response callback runs when the lazy body starts the response."""
    environ["wsgi.after"].on_prepare(lambda response: environ["mark"]("inner"))
    return (chunk for _ in "1" for chunk in hello(environ, start_response))


ALL, OUTER = ["before", "inner", "behind"], ["before", "behind"]


@pytest.mark.parametrize("begin", [iter, lambda body: body], ids=["iter", "next"])
@pytest.mark.parametrize(
    ("inner", "of_inner", "of_outer", "order"),
    [
        (marks_in_call, ["inner"], OUTER, ["inner", "inner over", *OUTER]),
        # It is read inside the call of the outer app.
        (marks_in_body, [], ALL, ["inner over", *ALL]),
        (marks_in_callback, [], OUTER, ["inner", "inner over", *OUTER]),
        (marks_in_response_callback, ["inner"], OUTER, ["inner", "inner over", *OUTER]),
    ],
)
def test_what_a_request_within_a_request_registers_is_its_own(
    inner, of_inner, of_outer, order, begin, mark, events
):
    exchanges = []

    def outer(environ, start_response):
        mark("before")
        environ = make_environ(mark=mark, events=events)
        exchanges.append(Exchange(AfterResponseMiddleware(inner), environ))
        assert list(begin(exchanges[0].result)) == [b"hello"]
        exchanges[0].result.close()
        events.append("inner over")
        mark("behind")
        return hello(environ, start_response)

    exchanges.append(Exchange(AfterResponseMiddleware(outer)))
    exchanges[1].finish()
    assert [cookies(exchange) for exchange in exchanges] == [of_inner, of_outer]
    assert events == order


def test_response_callbacks_register_with_their_own_request_whoever_starts_the_response(mark):
    """An inner app that is called with the outer start_response runs the outer callbacks."""

    def outer(environ, start_response):
        after_this_request(lambda response: mark("outer"))
        inner = AfterResponseMiddleware(marks_in_call)
        return inner(make_environ(mark=mark), start_response)

    exchange = Exchange(AfterResponseMiddleware(outer))
    exchange.finish()
    assert cookies(exchange) == ["inner", "outer"]


def test_a_body_that_a_callback_reads_belongs_to_the_request_of_the_callback(events):
    def inner(environ, start_response):
        after_this_response(events.append, "registered by the inner body")
        yield b"chunk"

    def callback():
        Exchange(AfterResponseMiddleware(inner)).finish()
        events.append("inner request over")

    Exchange(registers(callback)).finish()
    assert events == ["inner request over", "registered by the inner body"]


def test_instances_around_each_other_share_the_list_and_the_response(mark):
    """The one response is prepared once, by the callbacks of both."""

    def between(environ, start_response):
        mark("between")
        return AfterResponseMiddleware(marks_in_call)(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(between), make_environ(mark=mark))
    exchange.finish()
    assert cookies(exchange) == ["between", "inner"]
