"""docs/limits.rst: each section names its tests; this file has those that no other file has."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from time import thread_time

import pytest
from commands import ask, run, serving
from conftest import Exchange
from documents import DOCS, TESTS, blocks, executed
from flask import Flask
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from wsgi_after import AfterResponseMiddleware
from wsgi_after.flask import AfterResponse

from .control import Watch
from .descriptions import GRANIAN, HYPERCORN, package
from .harness import control, require, running

PAGE = (DOCS / "limits.rst").read_text(encoding="utf-8")
servers = pytest.mark.servers
WAIT = 30  # seconds to wait for what should take none


def test_each_section_names_tests_that_are_there():
    sections = re.split(r"(?m)^-{4,}$", PAGE)[1:]
    assert [
        section for section in sections if "\n.. " not in section or ".py::" not in section
    ] == []
    missing = []
    for file, name in re.findall(r"(?m)^\.\. ([\w/]+\.py)::(\S+)$", PAGE):
        source = (TESTS / file).read_text(encoding="utf-8")
        if name != "*" and f"def {name}(" not in source:
            missing.append((file, name))
    assert missing == []


# Apps with a callback that connects to the test, and ends when the test answers.


@contextmanager
def waiting_app(path, source: str) -> Iterator[socket.socket]:
    """Write ``source``, whose ``wait()`` connects to the test; yield the listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        path.write_text(
            "import socket\n\ndef wait():\n"
            f"    socket.create_connection({listener.getsockname()}).recv(1)\n{source}"
        )
        yield listener


FLASK = """
from flask import Flask
from wsgi_after.flask import AfterResponse, after_this_response

app = Flask(__name__)
AfterResponse(app)

@app.get("/")
def index():
    after_this_response(wait)
    after_this_response(print, "the next callback", flush=True)
    return "Hello"
"""


def test_the_reloader_of_flask_kills_a_callback_that_is_running(tmp_path):
    shop = tmp_path / "shop.py"
    with waiting_app(shop, FLASK) as listener:
        with serving("flask --app shop --debug run --port 8000", tmp_path) as port:
            assert ask(port, "/") == (200, "Hello")
            callback, _ = listener.accept()
            with callback:
                callback.settimeout(WAIT)
                shop.write_text(shop.read_text() + "\n")
                assert callback.recv(1) == b""  # its process is gone
        log = (tmp_path / "log").read_text()
    assert ("the next callback" in log, "wsgi_after" in log, "failed" in log) == (False,) * 3


# Sessions


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders_of_limits"

    id: Mapped[int] = mapped_column(primary_key=True)
    mailed: Mapped[bool] = mapped_column(default=False)


def test_a_scoped_session_is_removed_by_the_last_callback():
    options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    engine = create_engine("sqlite://", **options)
    Base.metadata.create_all(engine)
    session = scoped_session(sessionmaker(engine))
    names = executed(blocks("limits.rst")["scoped.py"], Order=Order, Session=session)
    Exchange(AfterResponseMiddleware(names["order"])).finish()
    assert session.registry.has() is False
    with sessionmaker(engine)() as other:
        assert other.scalars(select(Order.mailed)).all() == [True]
    engine.dispose()


# Order


def test_what_wraps_a_flask_app_before_the_extension_is_inside_it(events):
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "Hello")
    inner = app.wsgi_app

    def drops(environ, start_response):
        """Like a middleware that drops close()."""
        result = inner(environ, start_response)
        return [*result]

    app.wsgi_app = drops
    AfterResponse(app)
    app.after_response(lambda: events.append("callback"))
    exchange = Exchange(app)
    events.append("the server has the response")
    exchange.finish()
    assert events == ["the server has the response", "callback"]


# HTTP/2


def ask_in_http_2(port, paths, watch):
    """Request all paths on one connection; the watch records what the client has of the last."""
    from h2.connection import H2Connection
    from h2.events import ResponseReceived, StreamEnded

    client = H2Connection()
    client.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "127.0.0.1")]
    streams = {2 * number + 1: path for number, path in enumerate(paths)}
    for stream, path in streams.items():
        client.send_headers(stream, [*head, (":path", path)], end_stream=True)
    last, open_ = max(streams), set(streams)
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as sock:
        sock.sendall(client.data_to_send())
        while open_:
            for event in client.receive_data(sock.recv(65536)):
                if isinstance(event, StreamEnded):
                    open_.remove(event.stream_id)
                if isinstance(event, ResponseReceived) and event.stream_id == last:
                    watch.headers.set()
                if isinstance(event, StreamEnded) and event.stream_id == last:
                    watch.end.set()
            sock.sendall(client.data_to_send())
    assert watch.done.wait(WAIT)
    return watch.had


HTTP_2 = "--threads 4 --http2-cleartext prior-knowledge --http-protocols h2,h1"


@servers
@pytest.mark.parametrize(
    ("name", "commands"), [("granian", GRANIAN), ("hypercorn", HYPERCORN)], ids=lambda v: str(v)[:9]
)
def test_in_http_2_the_client_waits_for_the_end_of_its_stream(name, commands):
    """It has the headers by then. In HTTP/1.1, Content-Length tells it where the end is."""
    with running(package(name, commands, name, "h2")) as where:
        watch = control().watch()
        path = f"/wrapped/list_with_length?{watch.query}"
        assert ask_in_http_2(where.port, [path], watch) == (True, False)


STREAMS = """
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    if environ["PATH_INFO"] == "/page":
        environ["wsgi.after"](wait)
    start_response("200 OK", [("Content-Length", "5")])
    return [b"Hello"]

application = AfterResponseMiddleware(app)
"""


@servers
def test_in_http_2_another_stream_of_the_connection_waits_on_gunicorn(tmp_path):
    require([] if find_spec("h2") else ["h2"])
    command = f"gunicorn --bind 127.0.0.1:8000 {HTTP_2} streams:application"
    watch = Watch("")
    watch.done.set()
    with (
        waiting_app(tmp_path / "streams.py", STREAMS) as listener,
        serving(command, tmp_path) as port,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(ask_in_http_2, port, ["/page", "/style"], watch)
        callback, _ = listener.accept()
        with callback:
            assert not watch.end.wait(1)
            callback.sendall(b".")
        asking.result(WAIT)
        assert watch.end.is_set()


# An upload


REFUSES = """
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.after"](wait)
    start_response("413 Content Too Large", [("Content-Length", "0")])
    return []

application = AfterResponseMiddleware(app)
"""


@servers
@pytest.mark.parametrize(
    ("options", "is_stuck"),
    [("--threads 4", True), ("--threads 4 --worker-class wsgi_after.gunicorn.GThread", False)],
)
def test_a_client_that_sends_before_it_reads_is_stuck_while_a_callback_runs(
    options, is_stuck, tmp_path
):
    def upload(port):
        with (
            suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client,
        ):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
            client.sendall(bytes(50_000_000))

    command = f"gunicorn --bind 127.0.0.1:8000 {options} refuses:application"
    with (
        waiting_app(tmp_path / "refuses.py", REFUSES) as listener,
        serving(command, tmp_path) as port,
        ThreadPoolExecutor(1) as pool,
    ):
        uploading = pool.submit(upload, port)
        callback, _ = listener.accept()
        with callback:
            if is_stuck:
                with pytest.raises(TimeoutError):
                    uploading.result(timeout=1)
            else:
                uploading.result(timeout=WAIT)
            callback.sendall(b".")
        uploading.result(timeout=WAIT)


# A fork, an iterator, and many callbacks


FORKS = """
import os, threading
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    environ["wsgi.after"](lambda: print(os.getpid() == parent, flush=True))
    start_response("200 OK", [])
    return []

def hold():
    local.response = AfterResponseMiddleware(app)({"PATH_INFO": "/"}, lambda *_: None)
    held.set()
    go_on.wait()

parent, local = os.getpid(), threading.local()
held, go_on = threading.Event(), threading.Event()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
if not os.fork():
    os._exit(0)
os.wait()
go_on.set()
thread.join()
"""


def test_a_fork_closes_in_the_child_what_a_local_of_another_thread_holds(tmp_path):
    (tmp_path / "forks.py").write_text(FORKS)
    assert run("python -W ignore forks.py", tmp_path).split() == ["False", "True"]


def test_an_iterator_that_raises_is_not_asked_again():
    class GoesOn:
        chunks = iter([b"one", TimeoutError("no event"), b"two"])

        def __iter__(self):
            return self

        def __next__(self):
            chunk = next(self.chunks)
            if isinstance(chunk, Exception):
                raise chunk
            return chunk

    def app(environ, start_response):
        start_response("200 OK", [])
        return GoesOn()

    found = []
    exchange = Exchange(AfterResponseMiddleware(app))
    for body in (app({}, lambda *_: None), exchange.result):
        chunks = iter(body)
        for _ in range(3):
            try:
                found.append(next(chunks))
            except (StopIteration, TimeoutError) as error:
                found.append(type(error))
        GoesOn.chunks = iter([b"one", TimeoutError("no event"), b"two"])
    exchange.result.close()
    assert found == [b"one", TimeoutError, b"two", b"one", TimeoutError, StopIteration]


def test_the_time_of_very_many_callbacks_grows_as_the_square():
    def seconds(number):
        def app(environ, start_response):
            environ["wsgi.after"].extend([int] * number)
            start_response("200 OK", [])
            return []

        exchange = Exchange(AfterResponseMiddleware(app))
        began = thread_time()
        exchange.finish()
        return thread_time() - began

    # 32 times as many take 120 to 310 times as long; a busy machine may slow some runs down.
    few = min(seconds(5_000) for _ in range(10))
    assert seconds(160_000) > 2 * 32 * few
