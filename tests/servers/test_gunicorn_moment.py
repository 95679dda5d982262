"""The worker classes for gunicorn: callbacks run when the response is out, and none is lost.

The oldest gunicorn is in a virtual environment that ``.ci/install-servers`` makes within this one.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from conftest import hello
from documents import blocks, parse
from docutils import nodes
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn

import wsgi_after.gunicorn
from wsgi_after import AfterResponseMiddleware
from wsgi_after.moment import KEY

from .client import Connection
from .descriptions import gunicorn, package
from .expectations import CALLBACKS, IN_HTTP_1_0, KINDS
from .harness import control, require, running, send
from .measure import ask_in_http_1_0, ask_twice, nobody_waits, received_bare, terminate
from .test_deployment_pages import start

servers = pytest.mark.servers
PAGE = blocks("gunicorn.rst")
OPTIONS = {"Sync": (), "GThread": ("--threads=4",), "Gevent": ()}
WAIT = 10  # seconds to wait for what should take none
#: The Python that runs each release of gunicorn: the oldest that the page names, and the newest.
PYTHONS = {
    "20.0.4": Path(sys.prefix) / "gunicorn-20.0.4/bin/python",
    "27.0.1": Path(sys.executable),
}


def server(name, *options, app=None, release="27.0.1"):
    """A gunicorn with one of our worker classes.

    :param app: the source of an app, in place of the app of the matrix.
    """
    worker = f"--worker-class=wsgi_after.gunicorn.{name}"
    start = gunicorn(worker, *OPTIONS[name], *options, app="other" if app else "kinds")
    python = PYTHONS[release]

    def commands(where):
        if app:
            where.write("other.py", app)
        [[_, _, _, *arguments]] = start(where)
        return [[python, "-m", "gunicorn.app.wsgiapp", *arguments]]  # as "gunicorn", the program

    described = package(name, commands, "gunicorn", "gevent")
    return dataclasses.replace(described, programs=(str(python),))


def require_release(release):
    require([] if PYTHONS[release].exists() else [str(PYTHONS[release])])


# The servers themselves


servers_of_each_release = pytest.mark.parametrize("release", PYTHONS)


@servers
@servers_of_each_release
def test_the_page_names_the_releases_that_run(release):
    [text] = [
        node.astext()
        for node in parse("gunicorn.rst").findall(nodes.paragraph)
        if "Measured with" in node.astext()
    ]
    require_release(release)
    code = "import gunicorn; print(gunicorn.__version__)"
    found = subprocess.check_output([PYTHONS[release], "-c", code], text=True).strip()
    assert (found, found in text) == (release, True)


@servers
@pytest.mark.parametrize("name", OPTIONS)
def test_no_client_waits_and_callbacks_run_in_the_requests_own_thread(name):
    """On the oldest release; test_who_waits.py has the newest. SIGTERM lets a callback finish."""
    with running(server(name, release="20.0.4")) as where:
        received = {kind: nobody_waits(where, kind) for kind in KINDS}
        bare = received_bare(where, "error_before_return")
        ended = terminate(where, "wrapped")
    assert (received["error_before_return"], ended) == (bare, "finishes")


@servers
@servers_of_each_release
@pytest.mark.parametrize("name", OPTIONS)
def test_a_response_in_http_1_0_ends_first(name, release):
    with running(server(name, release=release)) as where:
        had = {kind: ask_in_http_1_0(where, kind, WAIT).had for kind in IN_HTTP_1_0}
    assert had == dict.fromkeys(IN_HTTP_1_0, (False, True))


@servers
@servers_of_each_release
def test_with_threads_the_next_request_on_the_connection_does_not_wait(release):
    with running(server("GThread", release=release)) as where:
        assert ask_twice(where, WAIT).had == (False, True)


@servers
@pytest.mark.parametrize(("release", "lingers"), [("20.0.4", False), ("27.0.1", True)])
def test_sync_lingers_before_its_callbacks_on_the_newest_release(release, lingers):
    with running(server("Sync", release=release)) as where:
        watch = control().watch(WAIT)
        with Connection(where.port) as client:
            client.request(f"/wrapped/list_with_length?{watch.query}")
            client.read_to_end()
            watch.end.set()
            begun = watch.slow.wait(1 if lingers else WAIT)
            assert watch.done.wait(WAIT), where.log.read_text()
    assert (begun, watch.had, watch.events) == (not lingers, (False, True), CALLBACKS)


SLOW = """
from concurrent.futures import ThreadPoolExecutor
import kinds
from wsgi_after import AfterResponseMiddleware

def in_a_pool(*args):
    with ThreadPoolExecutor() as pool:
        pool.submit(kinds.say, *args).result()

def app(environ, start_response):
    query = kinds.query_of(environ)
    for event in ("slow", "slow", "slow"):
        environ["wsgi.after"](kinds.say, query, event)
    environ["wsgi.after"](in_a_pool, query, "last")
    return kinds.list_with_length(environ, start_response)

application = kinds.beside_about(AfterResponseMiddleware(app))
"""


@servers
@servers_of_each_release
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GThread", ["--max-requests=1", "--timeout=1", "--graceful-timeout=20"]),
        ("Sync", ["--timeout=3"]),
    ],
)
def test_slow_callbacks_run_for_longer_than_the_timeout(name, options, release):
    """In a worker that ends, they can still start threads. In Sync, the timeout is for each one."""
    with running(server(name, *options, app=SLOW, release=release)) as where:
        watch = send(where, "", patience=1.5)
        assert watch.done.wait(WAIT), where.log.read_text()
        log = where.log.read_text()
    assert (watch.events, "WORKER TIMEOUT" in log) == (["slow", "slow", "slow", "last"], False)


@servers
@servers_of_each_release
def test_a_sync_worker_refuses_threads_and_names_the_class_that_has_them(release, tmp_path):
    require_release(release)
    command = ["-m", "gunicorn.app.wsgiapp", "--bind=127.0.0.1:0"]
    options = ["--worker-class=wsgi_after.gunicorn.Sync", "--threads=2"]
    done = subprocess.run(
        [PYTHONS[release], *command, *options, "wsgiref.simple_server:demo_app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(wsgi_after.__file__))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "use --worker-class wsgi_after.gunicorn.GThread" in done.stderr) == (
        1,
        True,
    )


@servers
def test_gunicorn_starts_with_the_worker_class_as_its_page_shows():
    def commands(where):
        return [
            start({"start": PAGE["after"], "gunicorn.conf.py": PAGE["gunicorn.conf.py"]}, where)
        ]

    with running(package("GThread", commands, "gunicorn")) as where:
        nobody_waits(where, "error_before_return")


@servers
def test_gevent_is_not_loaded_for_the_other_classes():
    code = "import sys, wsgi_after.gunicorn; print('gevent' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


# The classes, in this process


@pytest.fixture
def make_worker():
    """Make a worker of a class, as gunicorn's arbiter does, and load the app."""
    made = []

    def make(name, app, *listeners, **settings):
        config = Config()
        for setting, value in settings.items():
            config.set(setting, value)
        loaded = SimpleNamespace(wsgi=lambda: AfterResponseMiddleware(app))
        worker_class = getattr(wsgi_after.gunicorn, name)
        worker = worker_class(0, os.getppid(), list(listeners), loaded, 30, config, Logger(config))
        worker.load_wsgi()
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.tmp.close()
        for descriptor in worker.PIPE:
            os.close(descriptor)


@contextmanager
def requested(text):
    """A connection on which this text was sent: both ends, and the listener."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=WAIT) as client,
    ):
        accepted, address = listener.accept()
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        with accepted:
            yield listener, client, accepted, address


def everything(client):
    """What a server sent until it closed the connection."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def raises(environ, start_response):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(("app", "status"), [(hello, b"200"), (raises, b"500")])
@pytest.mark.parametrize("name", ["Sync", "Gevent"])
def test_a_callback_finds_the_connection_closed(name, app, status, make_worker, events):
    def registering(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(everything(client).split()[1]))
        return app(environ, start_response)

    worker = make_worker(name, registering)
    with requested(b"GET / HTTP/1.0\r\n\r\n") as (listener, client, accepted, address):
        worker.handle(listener, accepted, address)
    assert (events, wsgi_after.gunicorn.opened.get()) == ([status], None)


def test_on_gevent_a_callback_finds_the_response_sent(make_worker, events):
    def registering(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(client.recv(1 << 16).split()[1]))
        return hello(environ, start_response)

    worker = make_worker("Gevent", registering)
    both = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
    with requested(both) as (listener, client, accepted, address):
        worker.handle(listener, accepted, address)
    assert events == [b"200", b"200"]


def test_a_connection_without_a_request_has_no_slot(make_worker):
    worker = make_worker("Sync", hello)
    with requested(b"") as (listener, client, accepted, address):
        worker.handle(listener, accepted, address)
        assert everything(client) == b""


def test_with_threads_the_connection_is_given_back_before_the_callbacks_run(make_worker, events):
    given_back = Event()

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(given_back.wait(WAIT)))
        environ["wsgi.after"].append(lambda: events.append(threading.get_ident() == thread))
        thread = threading.get_ident()
        return hello(environ, start_response)

    worker = make_worker("GThread", app, threads=2)
    with (
        worker.get_thread_pool() as pool,
        requested(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as (_, _, accepted, address),
    ):
        conn = TConn(worker.cfg, accepted, address, accepted.getsockname())
        assert pool.submit(worker.handle, conn).result(WAIT)
        given_back.set()
    assert events == [True, True]


def test_the_future_of_a_request_has_what_was_raised(make_worker):
    with make_worker("GThread", hello).get_thread_pool() as pool:
        assert isinstance(pool.submit(raises, {}, None).exception(WAIT), RuntimeError)


@pytest.fixture
def gate():
    """What the app, or a callback, signals and waits for."""
    return SimpleNamespace(running=Event(), release=Event(), done=Event())


@pytest.fixture
def end_while(make_worker, gate, events, monkeypatch):
    """Send a request to a worker with threads, and end the worker while the gate says it runs.

    The first sign of life after gunicorn's own end opens the gate, or else the worker's end does.
    """

    def end_while(app, graceful_timeout):
        def served(environ, start_response):
            given_up.append(environ["gunicorn.socket"])
            return app(environ, start_response)

        def notify():
            if worker.poller.get_map() is None:  # gunicorn's own end is over
                gate.release.set()

        given_up = []  # a worker whose time is over leaves connections open
        with socket.create_server(("127.0.0.1", 0)) as listener:
            worker = make_worker("GThread", served, listener, graceful_timeout=graceful_timeout)
            monkeypatch.setattr(worker, "init_signals", lambda: None)  # for the main thread only
            monkeypatch.setattr(worker, "notify", notify)
            thread = threading.Thread(target=worker.init_process)
            thread.start()
            with Connection(listener.getsockname()[1]) as client:
                client.request("/")
                assert gate.running.wait(WAIT)
                worker.handle_exit(signal.SIGTERM, None)
                thread.join(WAIT)
                events.append("ended")
                gate.release.set()
                assert gate.done.wait(WAIT)
        for connection in given_up:
            connection.close()

    return end_while


@pytest.mark.parametrize(
    ("graceful_timeout", "order"), [(20, ["callback", "ended"]), (0, ["ended", "callback"])]
)
def test_a_worker_with_threads_waits_for_callbacks_with_signs_of_life(
    graceful_timeout, order, end_while, gate, events
):
    def app(environ, start_response):
        environ["wsgi.after"].extend([gate.running.set, partial(gate.release.wait, WAIT)])
        environ["wsgi.after"].extend([lambda: events.append("callback"), gate.done.set])
        return hello(environ, start_response)

    end_while(app, graceful_timeout)
    assert events == order


def test_requests_and_callbacks_have_one_graceful_timeout_together(end_while, gate, events):
    def app(environ, start_response):
        environ["wsgi.after"].extend([lambda: events.append("callback"), gate.done.set])
        gate.running.set()
        gate.release.wait(WAIT)
        return hello(environ, start_response)

    end_while(app, graceful_timeout=1)
    assert events == ["ended", "callback"]


def test_a_stream_of_http_2_gets_no_slot(make_worker, events):
    """A separate method of gunicorn serves it, in which more streams may wait."""
    worker = make_worker("GThread", lambda environ, start_response: events.append(environ[KEY]))
    with suppress(Exception):
        worker.wsgi({"PATH_INFO": "/"}, lambda *args: None)
    assert events == [None]


def test_only_one_thread_is_allowed_for_a_sync_worker():
    check = wsgi_after.gunicorn.Sync.check_config
    check(SimpleNamespace(threads=1), None)
    with pytest.raises(RuntimeError, match="GThread"):
        check(SimpleNamespace(threads=2), None)


def test_another_name_is_not_made():
    with pytest.raises(AttributeError, match="Tornado"):
        wsgi_after.gunicorn.Tornado  # noqa: B018
