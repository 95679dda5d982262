"""Bugs of others in this field, each with the test that keeps it out of here.

The first line of each docstring says where the bug was seen.
"""

from __future__ import annotations

import io
import logging
import threading
import weakref
from functools import partial
from wsgiref.util import FileWrapper

import pytest
from conftest import Exchange, Marker, collector_off, hello, make_environ, registers

from wsgi_after import AfterResponseMiddleware, after_this_response

OVER = ["iterable closed", "callback"]


class Body:
    """A body whose iterator is another object, both of them with a ``close``."""

    def __init__(self, events, chunks=(b"1", b"2")):
        self.events = events
        self.chunks = chunks

    def __iter__(self):
        try:
            yield from self.chunks
        except GeneratorExit:
            self.events.append("iterator closed")
            raise

    def close(self):
        self.events.append("iterable closed")


@pytest.fixture
def send(events):
    """Send a request to an app that returns this body, and has one callback."""

    def send(body, **extra):
        def app(environ, start_response):
            start_response("200 OK", [])
            return body

        application = registers(partial(events.append, "callback"), app=app)
        return Exchange(application, make_environ(**extra))

    return send


def test_bug_1_the_iterator_is_closed_in_place_of_the_iterable(send, events):
    """Werkzeug #1259, raven #885, ddtrace, talisker."""
    send(Body(events)).finish()
    assert events == OVER


@pytest.mark.parametrize("read", [0, 1])
def test_bug_2_an_early_close_does_not_reach_the_app_or_reaches_it_twice(read, send, events):
    """Backlash #19, opentelemetry-python #2606 and, before the first chunk, its -wsgi, instana."""
    result = send(Body(events)).result
    iterator = iter(result)
    for _ in range(read):
        next(iterator)
    result.close()
    result.close()
    assert events == OVER
    iterator.close()


def test_bug_3_close_is_never_called(send, events):
    """Asgiref #587, hypercorn #155, tornado #824, elastic-apm, repoze.tm2, Paste."""
    exchange = send(Body(events))
    list(exchange.result)
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
    assert events == OVER


def test_bug_3_a_falsy_iterable_is_not_closed(send, events):
    """Webob #74."""

    class Empty(Body):
        def __len__(self):
            return 0

    send(Empty(events, ())).finish()
    assert events == OVER


def test_bug_4_the_end_is_taken_to_be_at_exhaustion_or_comes_twice(send, events):
    """Newrelic #1401, raven #850; ddtrace #4202, opentelemetry-python #148, werkzeug."""
    result = send(Body(events)).result
    events.extend(result)
    events.append("exhausted")
    result.close()
    result.close()
    assert events == [b"1", b"2", "exhausted", *OVER]


def test_bug_5_the_inner_close_raises_and_the_callbacks_are_lost_or_the_error_is(send, events):
    """Rack #313; raygun4py #22, instana."""

    class Failing(Body):
        def close(self):
            raise OSError("inner close")

    with pytest.raises(OSError, match="inner close"):
        send(Failing(events)).finish()
    assert events == ["callback"]


def test_bug_6_the_app_raises_before_it_returns_and_the_callbacks_are_lost(events):
    """The copied recipe, and all users of werkzeug's ClosingIterator."""

    def app(environ, start_response):
        raise ValueError("view")

    with pytest.raises(ValueError, match="view"):
        Exchange(registers(partial(events.append, "callback"), app=app))
    assert events == ["callback"]


def test_bug_7_one_failure_skips_the_rest_and_nested_ones_are_dropped(events, caplog):
    """Starlette #3195, puma #3680, frappe #42371, pitchfork #98."""

    def fails():
        after_this_response(events.append, "nested")
        raise ValueError

    Exchange(registers(fails, partial(events.append, "next"))).finish()
    assert events == ["next", "nested"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_bug_8_one_list_is_shared_by_all_requests(events):
    """django-after-response #9, and most copies of the recipe."""

    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, environ["PATH_INFO"]))
        return hello(environ, start_response)

    application = AfterResponseMiddleware(app)
    first, second = (Exchange(application, make_environ(PATH_INFO=path)) for path in ("/1", "/2"))
    second.finish()
    events.append("the second is over")
    first.finish()
    assert events == ["/2", "the second is over", "/1"]


def test_bug_9_a_system_exit_in_the_middle_of_a_callback_ends_the_worker(events, caplog):
    """Gunicorn #3715, raven #675."""
    Exchange(registers(lambda: exit(1), partial(events.append, "next"))).finish()
    assert events == ["next"]
    assert "SystemExit" in caplog.records[0].getMessage()


@pytest.mark.parametrize("sized", [True, False])
def test_bug_10_a_length_is_faked_on_a_stream_or_lost(sized, send):
    """Ddtrace #5858; the many wrappers without __len__, which cost the Content-Length."""
    exchange = send([b"1", b"2"] if sized else (chunk for chunk in (b"1", b"2")))
    assert hasattr(type(exchange.result), "__len__") is sized
    assert not sized or len(exchange.result) == 2
    assert exchange.finish() == [b"1", b"2"]


def test_bug_11_the_file_wrapper_is_lost_or_its_close(send, events):
    """sentry-python #5107, opentelemetry, newrelic; Django #12431 and #9659, uWSGI #2422."""

    class File(Body):
        def read(self, size):
            return b""

    file_wrapper = FileWrapper(File(events))
    result = send(file_wrapper, **{"wsgi.file_wrapper": FileWrapper}).result
    assert result is file_wrapper
    result.close()
    assert events == OVER


def test_bug_11_a_file_wrapper_that_is_a_function_raises_in_isinstance(send, events):
    """Talisker."""
    send(Body(events), **{"wsgi.file_wrapper": lambda file, size=8192: file}).finish()
    assert events == OVER


def test_bug_11_attributes_of_the_apps_object_are_hidden(send):
    """Waitress #359, falcon-sqla #9: ``read``, ``seek`` and ``tell``."""
    exchange = send(io.BytesIO(b"content"))
    result = exchange.result
    assert (result.read(3), result.tell(), result.seek(0)) == (b"con", 3, 0)
    assert exchange.finish() == [b"content"]


@pytest.mark.parametrize("more", [[], [(ValueError, ValueError(), None)]])
def test_bug_12_start_response_has_other_arguments_or_its_write_is_lost(more):
    """ddtrace, repoze.tm2, instana, talisker, WebOb."""

    def app(environ, start_response):
        start_response("500 Oops", [], *more)(b"written")
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    exchange.finish()
    assert (exchange.started, exchange.written) == ([("500 Oops", [], *more)], [b"written"])


def test_bug_13_a_body_is_consumed_before_it_is_returned_or_a_lazy_start_response_is_broken(events):
    """wsgi-request-logger #4; wsgi-intercept #61, werkzeug #1280, talisker #431."""

    def app(environ, start_response):
        events.append("consumed")
        start_response("200 OK", [])
        yield b"1"

    exchange = Exchange(AfterResponseMiddleware(app))
    assert (events, exchange.started) == ([], [])
    exchange.finish()
    assert (events, exchange.started) == (["consumed"], [("200 OK", [])])


def test_bug_14_the_environ_is_kept_past_the_request(events):
    """Uwsgi #1950: the server crashes."""
    application = AfterResponseMiddleware(hello)
    application.after_response(lambda environ: events.append(environ["PATH_INFO"]))
    exchange = Exchange(application, make_environ(marker=Marker()))
    reference = weakref.ref(exchange.environ["marker"])
    with collector_off():
        exchange.finish()
        body = exchange.result
        del exchange
        assert reference() is None
    assert (body, events) == ([b"hello"], ["/path"])


def test_bug_14_a_body_streamed_from_another_thread_has_no_request_or_another_one(events):
    """sentry-python #218."""

    def app(environ, start_response):
        start_response("200 OK", [])
        environ["wsgi.after"].append(lambda: after_this_response(events.append, "its own"))
        yield environ["PATH_INFO"].encode()

    first, second = (
        Exchange(AfterResponseMiddleware(app), make_environ(PATH_INFO=path))
        for path in ("/1", "/2")
    )
    thread = threading.Thread(target=lambda: events.extend(first.finish()))
    thread.start()
    thread.join()
    events.extend(second.finish())
    assert events == ["its own", b"/1", "its own", b"/2"]


def test_bug_15_a_callback_registered_after_the_end_is_silently_lost(send, events):
    """next.js #94974, fastapi #14192."""
    exchange = send([b"1"])
    exchange.finish()
    with pytest.raises(RuntimeError, match="have run already"):
        exchange.environ["wsgi.after"].append(partial(events.append, "late"))
    assert events == ["callback"]
