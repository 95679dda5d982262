"""``wsgi.file_wrapper`` where it is a function or a type in C, and where another thread closes.

The types here stand for those of the servers: ``operator.itemgetter`` is a type in C whose objects
take no attribute. The real ones are in ``tests/servers``.
"""

from __future__ import annotations

import operator
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Exchange, FailingFile, File, Refuses, make_environ, send_file

from wsgi_after import AfterResponseMiddleware


class Server:
    """Its wrapper is a function that returns the file, or a type in C, and it closes the file."""

    def __init__(self, kind):
        self.kind = kind
        self.files = []

    def function(self, file):
        self.files.append(file)
        return file

    @property
    def file_wrapper(self):
        return self.function if self.kind == "function" else operator.itemgetter

    def file(self, result):
        """The file that this server finds in what it got back."""
        return result if self.kind == "function" else result.__reduce__()[1][0]


@pytest.fixture(params=["function", "type in C"])
def server(request):
    return Server(request.param)


def send(server, file, events, **options):
    return send_file(server.file_wrapper, file, events, **options)


def test_the_servers_own_object_comes_back(server, events):
    result = send(server, File(events), events).result
    if server.kind == "function":
        assert result is server.files[0]
    else:
        assert type(result) is operator.itemgetter
    server.file(result).close()


def test_the_file_that_the_server_finds_is_like_the_apps(server, events):
    found = server.file(send(server, File(events), events).result)
    assert [found.tell(), found.read(3), list(found)] == [0, b"con", [b"tent\n"]]
    with pytest.raises(AttributeError, match="no_such_name"):
        found.no_such_name  # noqa: B018
    found.close()


@pytest.mark.parametrize("app", ["bare", "wrapped"])
def test_whether_an_object_is_a_file_is_answered_as_before(app, server, events):
    """Middlewares for mod_wsgi ask; of a function the question is an error."""

    def asks(environ, start_response):
        file_wrapper = environ["wsgi.file_wrapper"]
        made = file_wrapper(File([]))
        try:
            events.append([isinstance(thing, file_wrapper) for thing in (made, [b"text"])])
        except TypeError:
            events.append("TypeError")
        return [b"text"]

    application = asks if app == "bare" else AfterResponseMiddleware(asks)
    list(application(make_environ(**{"wsgi.file_wrapper": server.file_wrapper}), None))
    assert events == ["TypeError" if server.kind == "function" else [True, False]]


def test_its_close_closes_the_file_and_runs_the_callbacks_once(server, events):
    found = server.file(send(server, File(events), events).result)
    found.close()
    found.close()
    assert events == ["file closed", "callback None None"]


def test_a_file_whose_close_fails_does_not_cost_the_callbacks(server, events):
    found = server.file(send(server, FailingFile(events), events).result)
    with pytest.raises(OSError, match="on purpose"):
        found.close()
    assert events == ["file closed", "callback None OSError('on purpose')"]


def test_what_the_app_makes_of_the_servers_object_is_wrapped_as_ever(events):
    exchange = send(Server("function"), File(events), events, give_back=lambda made: iter(made))
    assert exchange.finish() == [b"content\n"]
    assert events == ["file closed", "callback True None"]


def test_of_several_files_the_one_that_is_returned_counts(server, events):
    other = File(events)
    made = []

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append("callback"))
        start_response("200 OK", [])
        made.extend(environ["wsgi.file_wrapper"](file) for file in (File(events), other))
        return made[1]

    environ = make_environ(**{"wsgi.file_wrapper": server.file_wrapper})
    exchange = Exchange(AfterResponseMiddleware(app), environ)
    assert exchange.result is made[1]
    server.file(made[0]).close()
    server.file(made[1]).close()
    assert events == ["file closed", "file closed", "callback"]


def test_an_environ_that_is_sent_again_gets_the_servers_wrapper_again(server, events):
    exchange = send(server, File(events), events)
    server.file(exchange.result).close()
    environ = exchange.environ
    again = Exchange(AfterResponseMiddleware(exchange_app(events)), environ)
    assert environ["wsgi.file_wrapper"]._file_wrapper == server.file_wrapper
    server.file(again.result).close()
    assert events == ["file closed", "callback None None", "file closed", "callback again"]


def exchange_app(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append("callback again"))
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](File(events))

    return app


def test_a_wrapper_that_is_switched_off_stays_as_it_is(events):
    def app(environ, start_response):
        events.append(environ["wsgi.file_wrapper"])
        start_response("200 OK", [])
        return iter([b"1"])

    environ = make_environ(**{"wsgi.file_wrapper": None})
    assert Exchange(AfterResponseMiddleware(app), environ).finish() == [b"1"]
    assert events == [None]


def test_a_result_with_slots_is_wrapped_as_ever(events):
    class Slots:
        __slots__ = ("file",)

        def __init__(self, file):
            self.file = file

        def __iter__(self):
            return iter(self.file)

        def close(self):
            self.file.close()

    server = Server("function")
    server.function = Slots
    exchange = send(server, File(events), events)
    assert exchange.environ["wsgi.file_wrapper"] is Slots
    assert exchange.finish() == [b"content\n"]
    assert events == ["file closed", "callback True None"]


WAITRESS = {"waitress.client_disconnected": None}


@pytest.fixture
def io_thread():
    """A thread that is running already, to close in."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.get_ident).result(10)
        yield pool


def wait_for_callbacks():
    for thread in threading.enumerate():
        if thread.name == "wsgi_after":
            thread.join(10)


def test_waitress_does_not_wait_for_callbacks_where_it_closes_in_its_io_thread(events, io_thread):
    release = threading.Event()
    exchange = send(Server("function"), File(events), events, **WAITRESS)
    exchange.environ["wsgi.after"].insert(0, lambda: release.wait(10))
    io_thread.submit(exchange.result.close).result(10)
    assert events == ["file closed"]
    release.set()
    wait_for_callbacks()
    assert events == ["file closed", "callback None None"]


def test_there_too_an_executor_that_was_given_gets_the_job(events, io_thread):
    with ThreadPoolExecutor(1) as executor:
        exchange = send(Server("function"), File(events), events, executor=executor, **WAITRESS)
        name = executor.submit(lambda: threading.current_thread().name).result(10)
        exchange.environ["wsgi.after"](lambda: events.append(threading.current_thread().name))
        io_thread.submit(exchange.result.close).result(10)
    assert events == ["file closed", "callback None None", name]


def test_there_too_an_error_of_the_files_close_reaches_server_and_callbacks(events, io_thread):
    exchange = send(Server("function"), FailingFile(events), events, **WAITRESS)
    with pytest.raises(OSError, match="on purpose"):
        io_thread.submit(exchange.result.close).result(10)
    wait_for_callbacks()
    assert events == ["file closed", "callback None OSError('on purpose')"]


def test_without_another_thread_to_be_had_they_run_in_place(events, io_thread, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    exchange = send(Server("function"), File(events), events, **WAITRESS)
    monkeypatch.setattr("threading.Thread.start", start)
    io_thread.submit(exchange.result.close).result(10)
    assert events == ["file closed", "callback None None"]


def test_a_file_without_a_close_runs_its_callbacks_there_too(events, io_thread):
    exchange = send(Server("function"), [b"no file"], events, **WAITRESS)
    io_thread.submit(exchange.result.close).result(10)
    wait_for_callbacks()
    assert events == ["callback None None"]


def test_there_too_what_an_executor_refuses_gets_a_thread_of_its_own(events, io_thread):
    exchange = send(Server("function"), File(events), events, executor=Refuses(), **WAITRESS)
    exchange.environ["wsgi.after"](lambda: events.append(threading.current_thread().name))
    io_thread.submit(exchange.result.close).result(10)
    wait_for_callbacks()
    assert events == ["file closed", "callback None None", "wsgi_after"]


def test_in_its_own_thread_waitress_runs_the_callbacks_in_place(events):
    exchange = send(Server("function"), File(events), events, **WAITRESS)
    exchange.result.close()
    assert events == ["file closed", "callback None None"]


def test_a_file_that_is_dropped_runs_its_callbacks_where_it_is(server, events):
    exchange = send(server, File(events), events)
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
        exchange.environ.clear()
        server.files.clear()
    assert events == ["file closed", "callback None None"]
