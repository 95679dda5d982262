"""``after_this_request`` and ``after_this_response`` from code that does not have the environ.

In threads, greenlets and async views each request is reached by its own code, and by no other's.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from conftest import Exchange, hello, make_environ

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response

PLAIN = ("Content-Type", "text/plain")


def remember(name):
    """What a library does: it has a name, and no environ."""
    after_this_request(lambda response: response.set_cookie("name", name))


def cookie(exchange):
    headers = exchange.started[0][1]
    return [value for name, value in headers if name == "Set-Cookie"]


def own_cookie(name):
    return [f"name={name}; Path=/"]


def request(application, name):
    exchange = Exchange(application, make_environ(PATH_INFO=f"/{name}"))
    exchange.finish()
    return cookie(exchange)


def test_a_library_changes_the_response_of_the_request_it_runs_in():
    def app(environ, start_response):
        remember("a")
        return hello(environ, start_response)

    assert request(AfterResponseMiddleware(app), "a") == own_cookie("a")


def test_after_this_request_takes_the_callback_back(request_):
    def callback(response):
        """Leave the response as it is."""

    def view(environ):
        assert after_this_request(callback) is callback

    request_(view)


OUTSIDE = r"{}\(\) was called outside a request.*hold on to environ\[.wsgi.after.\] and {}"


@pytest.mark.parametrize(
    ("function", "instead"),
    [
        (after_this_request, r"call on_prepare\(\) of that"),
        (after_this_response, "append to that"),
    ],
)
class TestOutside:
    """Where no app is being called, the error says what to use."""

    def test_without_a_request(self, function, instead):
        with pytest.raises(RuntimeError, match=OUTSIDE.format(function.__name__, instead)):
            function(print)

    def test_in_a_streaming_body(self, function, instead):
        def app(environ, start_response):
            with pytest.raises(RuntimeError, match=OUTSIDE.format(function.__name__, instead)):
                function(print)
            return (yield from hello(environ, start_response))

        assert Exchange(AfterResponseMiddleware(app)).finish() == [b"hello"]

    def test_in_a_thread_without_the_context(self, function, instead, request_):
        caught = []

        def work():
            with pytest.raises(RuntimeError, match=OUTSIDE.format(function.__name__, instead)):
                function(print)
            caught.append(True)

        def view(environ):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

        request_(view)
        assert caught == [True]

    def test_in_a_thread_with_the_context_that_outlived_the_request(
        self, function, instead, request_, events
    ):
        """It cannot reach another request, whichever is being served by then."""
        request_(lambda environ: events.append(copy_context()))

        def view(environ):
            with pytest.raises(RuntimeError, match="have run already"):
                events[0].run(function, print)

        request_(view)


@pytest.mark.parametrize("plain", [[], type("ServersList", (list,), {})()])
def test_a_plain_list_that_somebody_else_put_there_is_refused_with_the_reason(plain, events):
    def app(environ, start_response):
        after_this_response(events.append, "after")
        with pytest.raises(RuntimeError, match=r"is a plain .*put it there before ours"):
            after_this_request(print)
        return hello(environ, start_response)

    environ = make_environ(**{"wsgi.after": plain})
    result = AfterResponseMiddleware(app)(environ, lambda *args: None)
    assert (result, len(plain), events) == ([b"hello"], 1, [])


def test_a_thread_that_was_given_the_context_reaches_the_request_it_came_from():
    def app(environ, start_response):
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(remember, "thread"))
        thread.start()
        thread.join()
        return hello(environ, start_response)

    assert request(AfterResponseMiddleware(app), "") == own_cookie("thread")


def test_64_threads_each_change_their_own_response(events):
    """All are in the app at once, and again before its response starts."""
    together = threading.Barrier(64, timeout=60)

    @AfterResponseMiddleware
    def application(environ, start_response):
        together.wait()
        remember(environ["PATH_INFO"][1:])
        after_this_response(events.append, (environ["PATH_INFO"][1:], threading.get_ident()))
        together.wait()
        return hello(environ, start_response)

    def send(number):
        return request(application, str(number)), (str(number), threading.get_ident())

    with ThreadPoolExecutor(64) as pool:
        sent = list(pool.map(send, range(64)))
    assert [got for got, _ in sent] == [own_cookie(number) for number in range(64)]
    assert sorted(events) == sorted(after for _, after in sent)


def test_1000_greenlets_each_change_their_own_response(events):
    """Each gives way to the others in the app, in a generator, and in the response callback."""
    import gevent

    @AfterResponseMiddleware
    def application(environ, start_response):
        name = environ["PATH_INFO"][1:]
        gevent.sleep(0)
        remember(name)
        after_this_request(lambda response: gevent.sleep(0))
        gevent.sleep(0)

        @after_this_request
        def register_another(response):
            gevent.sleep(0)
            after_this_request(lambda response: response.headers.add("X-Name", name))

        after_this_response(lambda: (gevent.sleep(0), events.append(name)))
        start_response("200 OK", [])
        gevent.sleep(0)
        return iter([name.encode()])

    def send(number):
        exchange = Exchange(application, make_environ(PATH_INFO=f"/{number}"))
        return exchange.finish(), exchange.started[0][1]

    greenlets = [gevent.spawn(send, number) for number in range(1000)]
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    for number, greenlet in enumerate(greenlets):
        headers = [("Set-Cookie", f"name={number}; Path=/"), ("X-Name", str(number))]
        assert greenlet.value == ([b"%d" % number], headers)
    assert sorted(events, key=int) == [str(number) for number in range(1000)]


def test_a_greenlet_spawned_in_a_request_reaches_it_only_with_its_context():
    """A greenlet starts with an empty context, as a thread does."""
    import gevent

    def refused():
        with pytest.raises(RuntimeError, match="outside a request"):
            remember("stray")

    @AfterResponseMiddleware
    def application(environ, start_response):
        gevent.spawn(refused).get(timeout=60)
        name = environ["PATH_INFO"][1:]
        gevent.spawn(copy_context().run, remember, name).get(timeout=60)
        return hello(environ, start_response)

    greenlets = [gevent.spawn(request, application, str(number)) for number in range(10)]
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    assert [greenlet.value for greenlet in greenlets] == [own_cookie(n) for n in range(10)]


# Async views, which asgiref runs in an event loop of its own


def flask_app():
    import flask

    app = flask.Flask("example")

    @app.route("/<name>")
    async def view(name):
        await asyncio.sleep(0)
        remember(name)
        await asyncio.gather(register_more(name))
        return "hello"

    return AfterResponseMiddleware(app)


def django_app():
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler

    if not settings.configured:
        settings.configure()
        django.setup()
    return AfterResponseMiddleware(WSGIHandler())


@pytest.fixture
def django_urls():
    """What Django looks for, whatever the rest of the settings are."""
    from django.http import HttpResponse
    from django.test import utils as test_utils
    from django.urls import path

    async def view(request, name):
        await asyncio.sleep(0)
        remember(name)
        await asyncio.gather(register_more(name))
        return HttpResponse("hello")

    urls = type("Urls", (), {"urlpatterns": [path("<name>", view)]})
    django_app()
    settings = {"ROOT_URLCONF": urls, "MIDDLEWARE": [], "ALLOWED_HOSTS": ["*"]}
    with test_utils.override_settings(**settings):
        yield


async def register_more(name):
    await asyncio.sleep(0)
    after_this_request(lambda response: response.headers.add("X-Name", name))
    after_this_response(REGISTERED.append, name)


REGISTERED: list[str] = []


@pytest.mark.parametrize("make", [flask_app, django_app])
def test_async_views_change_their_own_response_and_no_other(make, django_urls):
    REGISTERED.clear()
    application = make()
    together = threading.Barrier(8, timeout=60)

    def send(number):
        together.wait()
        exchange = Exchange(application, make_environ(PATH_INFO=f"/{number}"))
        assert exchange.finish() == [b"hello"]
        return cookie(exchange), dict(exchange.started[0][1])["X-Name"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [(own_cookie(n), str(n)) for n in range(8)]
    assert sorted(REGISTERED) == [str(number) for number in range(8)]


def test_a_request_made_within_an_async_view_changes_its_own_response():
    """In the event loop itself, or in a thread, where the inner view may be async too."""
    import flask

    app = flask.Flask("outer")
    seen = []

    @AfterResponseMiddleware
    def inner(environ, start_response):
        remember("inner")
        return hello(environ, start_response)

    @app.route("/")
    async def view():
        remember("outer")
        seen.append(request(inner, "inner"))
        await asyncio.sleep(0)
        seen.append(await asyncio.to_thread(request, flask_app(), "thread"))
        await register_more("outer")
        return "hello"

    exchange = Exchange(AfterResponseMiddleware(app), make_environ(PATH_INFO="/"))
    exchange.finish()
    assert seen == [own_cookie("inner"), own_cookie("thread")]
    assert cookie(exchange) == own_cookie("outer")
