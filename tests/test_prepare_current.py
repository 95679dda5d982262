"""``after_this_request`` and ``after_this_response`` from code that does not have the environ.

In threads, greenlets and async views, only the code of a request reaches it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context

import flask
import gevent
import pytest
from conftest import Exchange, at_once, django_app, hello, in_a_thread, make_environ

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response


def remember(name):
    """Do what a library does that has a name, but no environ."""

    def set_cookie(response):
        response.set_cookie("name", name)

    assert after_this_request(set_cookie) is set_cookie


def own_cookie(name):
    return [f"name={name}; Path=/"]


def request(application, name):
    """Send a request for a name; return the cookies."""
    exchange = Exchange(application, make_environ(PATH_INFO=f"/{name}", SCRIPT_NAME=""))
    exchange.finish()
    return [value for name, value in exchange.started[0][1] if name == "Set-Cookie"]


def in_a_thread_without_context(fn, *args):
    """Call a function as each thread does, unless Python is told otherwise: see ``sys.flags``."""
    Context().run(in_a_thread, fn, *args)


def in_a_greenlet(fn, *args):
    """A greenlet starts with an empty context, as a thread does."""
    gevent.spawn(fn, *args).get(timeout=60)


OUTSIDE = r"{}\(\) was called outside a request.*keep a reference to environ\[.wsgi.after.\] and {}"


@pytest.mark.parametrize(
    ("function", "instead"),
    [(after_this_request, r"call on_prepare\(\) of that"), (after_this_response, "append to that")],
)
def test_outside_the_error_says_what_to_use(function, instead, request_):
    """Where no app is being called: without a request, in a body, in a thread without context."""

    def refused(environ=None, start_response=None):
        with pytest.raises(RuntimeError, match=OUTSIDE.format(function.__name__, instead)):
            function(print)
        return [b"refused"]

    def in_the_body(environ, start_response):
        yield from refused()

    refused()
    assert Exchange(AfterResponseMiddleware(in_the_body)).finish() == [b"refused"]
    request_(lambda environ: (in_a_thread_without_context(refused), in_a_greenlet(refused)))


def test_a_thread_reaches_the_request_that_started_it_where_python_hands_contexts_down(
    request_, events
):
    """Builds without the GIL do so: ``sys.flags`` says whether, since Python 3.14."""

    def registers():
        try:
            after_this_response(events.append, "ran")
        except RuntimeError:
            events.append("refused")

    request_(lambda environ: in_a_thread(registers))
    inherits = getattr(sys.flags, "thread_inherit_context", False)
    assert events == ["ran" if inherits else "refused"]


@pytest.mark.parametrize("function", [after_this_request, after_this_response])
def test_a_context_that_outlived_its_request_cannot_reach_another(function, request_, events):
    request_(lambda environ: events.append(copy_context()))

    def view(environ):
        with pytest.raises(RuntimeError, match="have run already"):
            events[0].run(function, print)

    request_(view)


@pytest.mark.parametrize("plain", [[], type("ServersList", (list,), {})()])
def test_a_plain_list_that_somebody_else_put_there_is_refused_with_the_reason(plain, events):
    def app(environ, start_response):
        after_this_response(events.append, "after")
        with pytest.raises(RuntimeError, match=r"is a plain .*made it, and runs its callbacks"):
            after_this_request(print)
        return hello(environ, start_response)

    environ = make_environ(**{"wsgi.after": plain})
    result = AfterResponseMiddleware(app)(environ, lambda *args: None)
    assert (result, len(plain), events) == ([b"hello"], 1, [])


@pytest.mark.parametrize("elsewhere", [in_a_thread, in_a_greenlet])
def test_what_was_given_the_context_reaches_the_request_it_came_from(elsewhere):
    def app(environ, start_response):
        elsewhere(copy_context().run, remember, environ["PATH_INFO"][1:])
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    assert request(application, "first") == own_cookie("first")
    assert request(application, "second") == own_cookie("second")


def greenlets_at_once(count, fn):
    greenlets = [gevent.spawn(fn, number) for number in range(count)]
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    return [greenlet.value for greenlet in greenlets]


@pytest.mark.parametrize(
    ("many", "count", "pause"),
    [
        (at_once, 64, threading.Barrier(64, timeout=60).wait),
        (greenlets_at_once, 1000, gevent.sleep),
    ],
    ids=["threads", "greenlets"],
)
def test_of_many_at_once_each_changes_its_own_response(many, count, pause, events):
    """Each waits for the others in the app, in the response callback and in the callback."""

    @AfterResponseMiddleware
    def application(environ, start_response):
        name = environ["PATH_INFO"][1:]
        pause()

        @after_this_request
        def register_another(response):
            pause()
            remember(name)

        after_this_response(lambda: (pause(), events.append((name, threading.get_ident()))))
        pause()
        return hello(environ, start_response)

    def send(number):
        return request(application, number), (str(number), threading.get_ident())

    sent = many(count, send)
    assert [got for got, _ in sent] == [own_cookie(number) for number in range(count)]
    assert sorted(events) == sorted(place for _, place in sent)


# Async views, which asgiref runs in an event loop of its own

REGISTERED: list[str] = []


async def register(name):
    await asyncio.sleep(0)
    remember(name)
    after_this_response(REGISTERED.append, name)


async def register_in_a_task(name):
    await asyncio.sleep(0)
    await asyncio.gather(register(name))


def async_flask():
    app = flask.Flask("example")

    @app.route("/<name>")
    async def view(name):
        await register_in_a_task(name)
        return "hello"

    return AfterResponseMiddleware(app)


@contextmanager
def async_django():
    from django.http import HttpResponse

    async def view(request, name):
        await register_in_a_task(name)
        return HttpResponse("hello")

    with django_app(view, "<name>") as app:
        yield AfterResponseMiddleware(app)


@pytest.mark.parametrize("make", [lambda: nullcontext(async_flask()), async_django])
def test_async_views_change_their_own_response_and_no_other(make):
    REGISTERED.clear()
    with make() as application:
        sent = at_once(8, lambda number: request(application, number))
    assert sent == [own_cookie(number) for number in range(8)]
    assert sorted(REGISTERED) == [str(number) for number in range(8)]


def test_a_request_made_within_an_async_view_changes_its_own_response():
    """In the event loop itself, or in a thread, where the inner view may be async too."""
    app = flask.Flask("outer")
    seen = []

    @AfterResponseMiddleware
    def inner(environ, start_response):
        remember("inner")
        return hello(environ, start_response)

    @app.route("/")
    async def view():
        seen.append(request(inner, "inner"))
        await asyncio.sleep(0)
        seen.append(await asyncio.to_thread(request, async_flask(), "thread"))
        await register("outer")
        return "hello"

    assert request(AfterResponseMiddleware(app), "") == own_cookie("outer")
    assert seen == [own_cookie("inner"), own_cookie("thread")]
