"""Waitress with the server's own moment: no client waits, and a SIGTERM loses nothing."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import threading
from importlib.metadata import entry_points

import pytest
from conftest import hello
from documents import blocks

from wsgi_after import AfterResponseMiddleware
from wsgi_after.waitress import Dispatcher, serve, serve_paste

from .client import Connection
from .descriptions import PYTHON, package
from .expectations import CALLBACKS, GONE, IN_TIME, KINDS, Expected
from .harness import control, running
from .measure import attempt, terminate

pytestmark = pytest.mark.servers
PAGE = blocks("waitress.rst")


def commands(where):
    shown = PAGE["serve.py"].replace("8000", str(where.port)).replace("shop", "kinds")
    return [[PYTHON, where.write("served.py", shown)]]


SERVER = package("waitress, our serve", commands, "waitress")


@pytest.fixture(scope="module")
def where():
    with running(SERVER) as place:
        yield place


def test_everything_on_the_page_is_run_by_a_test():
    assert [*PAGE] == ["serve.py", "server.ini"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_client_waits_and_the_bytes_are_those_of_the_bare_app(where, kind):
    timing = GONE if kind == "hang_up" else IN_TIME
    bare, wrapped = (attempt(where, mode, kind, Expected(timing)) for mode in ("bare", "wrapped"))
    reports = [report for reports in wrapped.reports for report in reports]
    assert wrapped.timing == timing
    assert [r["event"] for r in reports] == CALLBACKS * len(wrapped.watches)
    assert kind == "hang_up" or wrapped.wire == bare.wire
    if kind != "large_file":
        assert [r["here"][:3] for r in reports] == [r["called"][:3] for r in reports]


def test_the_next_request_of_the_connection_does_not_wait(where):
    watch = control().watch(patience=10)
    with Connection(where.port) as client:
        client.request(f"/wrapped/list_with_length?{watch.query}")
        client.read_response("GET", watch.headers.set)
        assert watch.slow.wait(10)
        client.request("/bare/list_with_length", connection="close")
        client.read_to_end()
        ended = watch.done.is_set()
        watch.end.set()
        assert watch.done.wait(10)
    assert (ended, client.received.count(b"HTTP/1.1 200 OK")) == (False, 2)


def test_a_callback_finishes_after_sigterm():
    with running(SERVER) as place:
        assert terminate(place, "wrapped") == "finishes"


# In this process


def test_serve_runs_the_callbacks_and_ends_at_sigterm(events):
    def app(environ, start_response):
        environ["wsgi.after"](events.append, "callback")
        environ["wsgi.after"](done.set)
        start_response("200 OK", [])
        return iter([b"chunk"])

    def visit():
        with Connection(port) as client:
            client.request("/", connection="close")
            client.read_to_end()
        done.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=visit)
        thread.start()
        application = AfterResponseMiddleware(app)
        code = serve_paste(application, {}, sockets=[listener], graceful_timeout="5")
        thread.join()
    events.append(code)
    assert (events, signal.getsignal(signal.SIGTERM)) == (["callback", 0], signal.SIG_DFL)


class Ends(Exception):
    """Raised by a handler of the program's own."""


def end(*args):
    raise Ends


def in_the_main_thread(listener):
    with pytest.raises(Ends):
        serve(AfterResponseMiddleware(hello), sockets=[listener], graceful_timeout=5)


def in_another_thread(listener):
    def refuse():
        with pytest.raises(ValueError, match="unknown"):
            serve(AfterResponseMiddleware(hello), sockets=[listener], unknown="option")

    thread = threading.Thread(target=refuse)
    thread.start()
    thread.join()
    with pytest.raises(Ends):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("where", [in_the_main_thread, in_another_thread])
def test_a_handler_of_the_programs_own_stays(where):
    before = signal.signal(signal.SIGTERM, end)
    stopper = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM])
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if where is in_the_main_thread:
                stopper.start()
            where(listener)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        stopper.cancel()
        signal.signal(signal.SIGTERM, before)


def test_the_server_of_a_paste_file_is_ours():
    parser = configparser.ConfigParser()
    parser.read_string(PAGE["server.ini"])
    name = parser["server:main"]["use"].partition("#")[2]
    [point] = entry_points(group="paste.server_runner", name=name)
    assert point.load() is serve_paste


def test_the_time_at_the_end_can_be_given_by_who_ends_it():
    assert Dispatcher(30).shutdown(timeout=0) is True
