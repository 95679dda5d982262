"""Helpers that several test modules share: a small server, apps, executors, a check for leaks.

See also: :mod:`commands` runs the commands that the documentation shows, :mod:`documents` reads
its pages, :mod:`reporting` prints the output of a test run; :mod:`databases`, :mod:`mail` and
:mod:`servers.harness` start third-party servers.
"""

from __future__ import annotations

import gc
import io
import operator
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper, setup_testing_defaults

import hypothesis
import pytest
from reporting import Reporter
from servers.descriptions import SERVERS

from wsgi_after import AfterResponseMiddleware
from wsgi_after._core.logs import Throttle

# HYPOTHESIS_PROFILE chooses how many examples are tried. "quick" and "ci" try the same ones each
# time, so that only a change can make them fail; "long" looks for new failures. No deadlines:
# machines differ.
for name, examples in (("quick", 100), ("ci", 3_000), ("long", 100_000)):
    hypothesis.settings.register_profile(
        name, max_examples=examples, derandomize=name != "long", deadline=None
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter(config, [server.name for server in SERVERS]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use more processes than there are cores: tests that drive servers wait most of the time.

    On CI, add only one: all servers are installed there, and we do not control their timeouts.
    """
    return (os.cpu_count() or 1) + (1 if os.environ.get("CI") else 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On CI, rerun a failed test once if it drives a server; the report shows that.

    The machine is loaded, and how a server reacts to a signal depends on timing beyond our control.
    """
    if os.environ.get("CI"):
        for item in items:
            if item.get_closest_marker("servers"):
                item.add_marker(pytest.mark.flaky(reruns=1))


def make_environ(**extra: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": "/path", **extra}
    setup_testing_defaults(environ)
    return environ


class Exchange:
    """One request to ``application``: call it, read the body, close it, as a server does."""

    def __init__(self, application: Callable[..., Any], environ: dict[str, Any] | None = None):
        self.environ = make_environ() if environ is None else environ
        self.started: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []
        self.result = application(self.environ, self.start_response)

    def start_response(self, *args: Any) -> Callable[[bytes], Any]:
        self.started.append(args)
        return self.write

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def finish(self) -> list[bytes]:
        try:
            return list(self.result)
        finally:
            self.result.close()


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def registers(*callbacks: Any, app: Any = hello, **options: Any) -> AfterResponseMiddleware:
    """An app that registers these callbacks in each request, in a middleware with these options."""

    def registering(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ["wsgi.after"].extend(callbacks)
        return app(environ, start_response)

    return AfterResponseMiddleware(registering, **options)


def at_once(count: int, fn: Callable[[int], Any]) -> list[Any]:
    """Call ``fn(number)`` in ``count`` threads at the same time; return the results."""
    together = Barrier(count, timeout=60)

    def call(number: int) -> Any:
        together.wait()
        return fn(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def in_a_thread(fn: Callable[..., Any], *args: Any) -> Any:
    """Call ``fn`` in a thread of its own; return its result."""
    return at_once(1, lambda number: fn(*args))[0]


@contextmanager
def django_app(view: Callable[..., Any], route: str = "") -> Iterator[Any]:
    """Django's WSGI application, with this view and no middleware."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.utils import override_settings
    from django.urls import path

    if not settings.configured:
        settings.configure()
        django.setup()
    urls = type("Urls", (), {"urlpatterns": [path(route, view)]})
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=[], ALLOWED_HOSTS=["*"]):
        yield WSGIHandler()


class File(io.BytesIO):
    """A file that records when it is closed."""

    def __init__(self, events: list[Any]) -> None:
        super().__init__(b"content\n")
        self.events = events

    def close(self) -> None:
        if not self.closed:
            self.events.append("file closed")
        super().close()


class FailingFile(File):
    """A file that records when it is closed, and raises."""

    def close(self) -> None:
        super().close()
        raise OSError("on purpose")


def returns_the_file(file: Any) -> Any:
    """The ``wsgi.file_wrapper`` of uWSGI, which closes the file."""
    return file


#: By kind: a ``wsgi.file_wrapper``, and what finds the object that the server closes in its result.
FILE_WRAPPERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "class": (FileWrapper, lambda made: made),
    "function": (returns_the_file, lambda made: made),
    # Its objects take no attribute.
    "type in C": (operator.itemgetter, lambda made: made.__reduce__()[1][0]),
}


def send_file(
    file_wrapper: Any,
    file: Any,
    events: list[Any],
    *,
    give_back: Callable[[Any], Any] = lambda made: made,
    executor: Any = None,
    **extra: Any,
) -> Exchange:
    """A request for a file, sent by this ``wsgi.file_wrapper``; with one callback.

    :param give_back: turns the result of the wrapper into what the app returns.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        after = environ["wsgi.after"]
        after.append(lambda: events.append(f"callback {after.completed} {after.error!r}"))
        start_response("200 OK", [("Content-Length", "8")])
        return give_back(environ["wsgi.file_wrapper"](file))

    environ = make_environ(**{"wsgi.file_wrapper": file_wrapper}, **extra)
    return Exchange(AfterResponseMiddleware(app, executor=executor), environ)


class Immediately:
    """An executor that runs a job when it is submitted, and returns nothing."""

    def submit(self, fn: Callable[..., object], *args: object) -> None:
        fn(*args)


class Refuses:
    """An executor that takes no job.

    :param error: the exception to raise; if it is a class, each job gets a new instance.
    """

    def __init__(self, error: type[BaseException] | BaseException = RuntimeError) -> None:
        self.error = error

    def submit(self, fn: Callable[..., object], *args: object) -> None:
        raise self.error


class Loses:
    """An executor that accepts each job, and cancels it."""

    def submit(self, fn: Callable[..., object], *args: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future


class SilentHandler(WSGIRequestHandler):
    """A handler that logs no requests."""

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(app: Callable[..., Any]) -> Iterator[int]:
    """Serve an app with wsgiref, in a thread; yield the port."""
    with make_server("127.0.0.1", 0, app, handler_class=SilentHandler) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def forgets_close(app: Any) -> Any:
    """A common bug of middlewares: a generator around an iterable that it does not close."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        return (chunk for chunk in app(environ, start_response))

    return middleware


class Marker:
    """An object in an environ, to see when that is freed: a dict has no weak references."""


@contextmanager
def collector_off() -> Iterator[None]:
    """In the block, let reference counting alone free objects."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_freed(application: Callable[..., Any], **extra: Any) -> bool:
    """Whether the environ of a request is freed at its end, without the garbage collector."""
    environ = make_environ(marker=Marker(), **extra)
    marker = weakref.ref(environ["marker"])
    with collector_off():
        with suppress(KeyboardInterrupt):
            Exchange(application, environ).finish()
        del environ
        return marker() is None


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The messages logged at exactly this level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture
def events() -> list[Any]:
    """The events of a test, in order; compare the whole list."""
    return []


@pytest.fixture
def throttles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the limits of messages that are logged at most once a minute."""
    monkeypatch.setattr("wsgi_after._core.logs.refusals", Throttle())
    monkeypatch.setattr("wsgi_after._core.logs.slow_ones", Throttle())


@pytest.fixture
def request_() -> Callable[..., list[bytes]]:
    """Send a request to a function ``view(environ)``, and return the body."""

    def request(view: Callable[[dict[str, Any]], Any], **extra: Any) -> list[bytes]:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            view(environ)
            return hello(environ, start_response)

        return Exchange(AfterResponseMiddleware(app), make_environ(**extra)).finish()

    return request
