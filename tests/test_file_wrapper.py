"""``wsgi.file_wrapper`` of each kind of server, and closing in another thread: rules 3 and 8.

Some servers have a class in Python, others a function or a type in C, for which there are stand-ins
here. ``tests/servers`` tests the real ones; ``cases/test_wrapping.py`` sends one file again.
"""

from __future__ import annotations

import threading
import wsgiref.util
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from conftest import (
    FILE_WRAPPERS,
    Exchange,
    FailingFile,
    File,
    Refuses,
    forgets_close,
    make_environ,
    registers,
    returns_the_file,
    send_file,
)
from gunicorn.http.wsgi import FileWrapper as GunicornFileWrapper
from waitress.buffers import ReadOnlyFileBasedBuffer as WaitressFileWrapper

from wsgi_after import AfterResponseMiddleware

WRAPPERS = {
    **FILE_WRAPPERS,
    "gunicorn": (GunicornFileWrapper, lambda made: made),
    "waitress": (WaitressFileWrapper, lambda made: made),
}

each_wrapper = pytest.mark.parametrize(("wrapper", "found"), WRAPPERS.values(), ids=WRAPPERS)


def test_whoever_keeps_the_iterator_of_a_file_alone_can_read_it(events):
    """A function that returns the file, behind a middleware that forgets close()."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](File(events))

    environ = make_environ(**{"wsgi.file_wrapper": returns_the_file})
    assert [*forgets_close(AfterResponseMiddleware(app))(environ, print)] == [b"content\n"]


@each_wrapper
@pytest.mark.parametrize(("kind", "error"), [(File, None), (FailingFile, OSError("on purpose"))])
def test_the_servers_own_object_comes_back_and_its_close_runs_the_callbacks(
    kind, error, wrapper, found, events
):
    """They run once, even if closing the file fails."""
    made = []

    def give_back(result):
        made.append(result)
        return result

    exchange = send_file(wrapper, kind(events), events, give_back=give_back)
    assert exchange.result is made.pop()
    file = found(exchange.result)
    for _ in "12":
        with nullcontext() if error is None else pytest.raises(OSError, match="on purpose"):
            file.close()
    assert events == ["file closed", f"callback None {error!r}"]


# Not waitress: its object has a close() of its own, and is gone before that could be called.
@pytest.mark.parametrize("name", ["class", "gunicorn", "function", "type in C"])
def test_a_file_wrapper_that_is_dropped_runs_its_callbacks(name, events):
    wrapper, _ = WRAPPERS[name]
    exchange = send_file(wrapper, File(events), events)
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
        exchange.environ.clear()
    assert events == ["file closed", "callback None None"]


@each_wrapper
def test_of_several_files_the_one_that_is_returned_counts(wrapper, found, events):
    """Sending an environ again does not wrap the server's wrapper twice."""
    made = []

    def app(environ, start_response):
        made[:] = [environ["wsgi.file_wrapper"](File(events)) for _ in "12"]
        return made[1]

    application = registers(lambda: events.append("callback"), app=app)
    environ = make_environ(**{"wsgi.file_wrapper": wrapper})
    for _ in range(2):
        assert Exchange(application, environ).result is made[1]
        for result in made:
            found(result).close()
    assert getattr(environ["wsgi.file_wrapper"], "_file_wrapper", wrapper) is wrapper
    assert events == ["file closed", "file closed", "callback"] * 2


@pytest.mark.parametrize("kind", ["function", "type in C"])
def test_the_file_that_the_server_finds_is_like_the_apps(kind, events):
    wrapper, found = WRAPPERS[kind]
    file = found(send_file(wrapper, File(events), events).result)
    assert [file.tell(), file.read(3), list(file)] == [0, b"con", [b"tent\n"]]
    with pytest.raises(AttributeError, match="no_such_name"):
        file.no_such_name  # noqa: B018
    file.close()


class Slots:
    """A file wrapper that takes no attribute, although it is written in Python."""

    __slots__ = ("file",)

    def __init__(self, file):
        self.file = file

    def __iter__(self):
        return iter(self.file)

    def close(self):
        self.file.close()


@pytest.mark.parametrize(
    ("wrapper", "give_back"),
    [(wsgiref.util.FileWrapper, lambda made: made.filelike), (Slots, lambda made: made)],
)
def test_what_the_server_cannot_send_by_itself_is_wrapped_as_ever(wrapper, give_back, events):
    exchange = send_file(wrapper, File(events), events, give_back=give_back)
    assert exchange.finish() == [b"content\n"]
    assert events == ["file closed", "callback True None"]


def test_a_file_is_its_own_iterator_as_it_is_bare(events):
    exchange = send_file(returns_the_file, File(events), events, give_back=iter)
    assert isinstance(exchange.result, type(exchange.environ["wsgi.file_wrapper"](File([]))))
    exchange.finish()
    assert events == ["file closed", "callback None None"]


def test_a_wrapper_that_is_switched_off_stays_as_it_is():
    exchange = Exchange(registers(), make_environ(**{"wsgi.file_wrapper": None}))
    assert exchange.finish() == [b"hello"]
    assert exchange.environ["wsgi.file_wrapper"] is None


def test_a_file_wrapper_without_a_close_gets_one(events):
    class Bare:
        def __init__(self, file):
            pass

    exchange = send_file(Bare, None, events)
    exchange.result.close()
    assert events == ["callback None None"]


def test_a_close_of_a_file_wrapper_that_cannot_be_looked_up_costs_no_callbacks(events):
    """The server gets its error where the bare app would raise it: when ``close()`` is called."""

    class Unbound(wsgiref.util.FileWrapper):
        @property
        def close(self):
            raise ValueError("unbound")

        @close.setter
        def close(self, close):
            pass

    exchange = send_file(Unbound, File(events), events)
    assert list(exchange.result) == [b"content\n"]
    with pytest.raises(ValueError, match="unbound"):
        exchange.result.close()
    assert events == ["callback True ValueError('unbound')"]


# Waitress, which closes a large file in the thread that serves all sockets

WAITRESS = {"waitress.client_disconnected": None}


@pytest.fixture
def io_thread():
    """A thread to close in, which is already running."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.get_ident).result(10)
        yield pool


def wait_for_callbacks():
    for thread in threading.enumerate():
        if thread.name == "wsgi_after":
            thread.join(10)


def test_waitress_does_not_wait_for_callbacks_where_it_closes_in_its_io_thread(events, io_thread):
    release = threading.Event()
    exchange = send_file(returns_the_file, File(events), events, **WAITRESS)
    exchange.environ["wsgi.after"].insert(0, lambda: release.wait(10))
    io_thread.submit(exchange.result.close).result(10)
    assert events == ["file closed"]
    release.set()
    wait_for_callbacks()
    assert events == ["file closed", "callback None None"]


@pytest.mark.parametrize(
    ("closes_in", "executor", "runs_in"),
    [
        ("io thread", None, "wsgi_after"),
        ("io thread", Refuses(), "wsgi_after"),
        ("io thread", "pool", "pool_0"),
        ("its own thread", None, "MainThread"),
    ],
)
@pytest.mark.parametrize("file", [File, FailingFile, lambda events: [b"no close"]])
def test_there_callbacks_run_by_the_executor_or_in_a_thread_of_their_own(
    file, closes_in, executor, runs_in, events, io_thread
):
    """The server and the callbacks get the error of closing the file."""
    fails = file is FailingFile
    with ThreadPoolExecutor(1, "pool") as pool:
        executor = pool if executor == "pool" else executor
        exchange = send_file(returns_the_file, file(events), events, executor=executor, **WAITRESS)
        exchange.environ["wsgi.after"](lambda: events.append(threading.current_thread().name))
        with pytest.raises(OSError, match="on purpose") if fails else nullcontext():
            if closes_in == "io thread":
                io_thread.submit(exchange.result.close).result(10)
            else:
                exchange.result.close()
        wait_for_callbacks()
    error = OSError("on purpose") if fails else None
    closed = ["file closed"] * hasattr(file, "close")
    assert events == [*closed, f"callback None {error!r}", runs_in]


def test_without_another_thread_to_be_had_they_run_in_place(events, io_thread, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    exchange = send_file(returns_the_file, File(events), events, **WAITRESS)
    monkeypatch.setattr("threading.Thread.start", start)
    io_thread.submit(exchange.result.close).result(10)
    assert events == ["file closed", "callback None None"]
