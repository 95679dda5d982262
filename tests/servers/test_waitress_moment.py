"""Waitress with the server's own moment: no client waits, and a SIGTERM loses nothing."""

from __future__ import annotations

import configparser
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conftest import hello, messages
from documents import blocks

from wsgi_after import AfterResponseMiddleware
from wsgi_after.waitress import Dispatcher, serve, serve_paste

from .client import Connection
from .descriptions import PYTHON, package
from .expectations import IN_HTTP_1_0, KINDS
from .harness import control, require, running, wait_until
from .measure import ask_in_http_1_0, ask_twice, nobody_waits, terminate

pytestmark = pytest.mark.servers
PAGE = blocks("waitress.rst")
WAIT = 10  # seconds to wait for what should take none
#: The Python that runs waitress 1.4.4, in a virtual environment that ``.ci/install-servers`` makes.
OLDEST = Path(sys.prefix) / "waitress-1.4.4/bin/python"


def server(seconds=30, python=PYTHON):
    """The server of the page.

    :param seconds: its ``graceful_timeout``.
    """

    def commands(where):
        shown = PAGE["serve.py"].replace("8000", str(where.port)).replace("shop", "kinds")
        shown = shown.replace("graceful_timeout=30", f"graceful_timeout={seconds}")
        return [[python, where.write("served.py", shown)]]

    described = package("waitress, our serve", commands, "waitress")
    return dataclasses.replace(described, programs=(str(python),))


SERVER = server()


@pytest.fixture(scope="module")
def where():
    with running(SERVER) as place:
        yield place


def test_everything_on_the_page_is_run_by_a_test():
    assert [*PAGE] == ["serve.py", "server.ini"]


@pytest.mark.parametrize("kind", ["list_with_length", *IN_HTTP_1_0])
def test_a_client_of_http_1_0_does_not_wait(where, kind):
    """test_who_waits tests the other kinds, and HTTP/1.1."""
    assert ask_in_http_1_0(where, kind, WAIT).had == (False, True)


def test_the_next_request_of_the_connection_does_not_wait(where):
    assert ask_twice(where, WAIT).had == (False, True)


def test_no_client_waits_on_the_oldest_release_either():
    require([] if OLDEST.exists() else [str(OLDEST)])
    with running(server(python=OLDEST)) as place:
        for kind in KINDS:  # it closes both files in the thread of all sockets
            nobody_waits(place, kind, elsewhere=kind in {"small_file", "large_file"})
        assert terminate(place, "wrapped") == "finishes"


@pytest.mark.parametrize(("seconds", "again"), [(0.2, False), (30, True)])
def test_a_callback_that_is_lost_at_the_end_is_logged(seconds, again):
    """When its time is over, or at a second SIGTERM."""

    def is_told():
        if again:
            os.kill(place.pid, signal.SIGTERM)
        return "has ended while GET /wrapped/list_with_length or" in place.log.read_text()

    watch = control().watch(patience=WAIT)
    with running(server(seconds)) as place, Connection(place.port) as client:
        client.request(f"/wrapped/list_with_length?{watch.query}")
        assert watch.slow.wait(WAIT)
        os.kill(place.pid, signal.SIGTERM)
        wait_until(is_told, place.log)
    assert watch.events == ["first", "slow"]  # the second had begun


# In this process


def serve_one(serve, app, ends, **options):
    """Serve a request, and send SIGTERM to this process when ``ends()`` has returned."""

    def visit():
        with Connection(listener.getsockname()[1]) as client:
            client.request("/late", connection="close")
            client.read_response("GET", lambda: None)
            ends()
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=visit)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread.start()
        code = serve(AfterResponseMiddleware(app), sockets=[listener], **options)
    thread.join()
    return code


def test_serve_runs_the_callbacks_and_ends_at_sigterm(events):
    def app(environ, start_response):
        environ["wsgi.after"](events.append, "callback")
        environ["wsgi.after"](done.set)
        start_response("200 OK", [])
        return iter([b"chunk"])

    done = threading.Event()
    for_paste = partial(serve_paste, global_conf={})
    events.append(serve_one(for_paste, app, partial(done.wait, WAIT), graceful_timeout="5"))
    assert (events, signal.getsignal(signal.SIGTERM)) == (["callback", 0], signal.SIG_DFL)


def test_serve_logs_whose_callbacks_have_not_finished_in_time(caplog, monkeypatch):
    """Even if the configuration of logging has disabled the logger."""
    monkeypatch.setattr(logging.getLogger("wsgi_after"), "disabled", True)

    def app(environ, start_response):
        for callback in (begun.set, partial(go_on.wait, WAIT), ended.set):
            environ["wsgi.after"](callback)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    begun, go_on, ended = (threading.Event() for _ in range(3))
    serve_one(serve, app, partial(begun.wait, WAIT), graceful_timeout=0)
    [told] = messages(caplog, logging.ERROR)
    go_on.set()
    assert ended.wait(WAIT)
    assert told.startswith("waitress has ended while GET /late or its callbacks we")


class Ends(Exception):
    """Raised by the program's own handler."""


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
