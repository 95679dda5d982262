"""What SECURITY.rst claims, each sentence of it that a test can hold."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import socket
import threading

import pytest
from conftest import Exchange, Loses, Refuses, hello, make_environ, served
from documents import ROOT, TESTS

from wsgi_after import AfterResponseMiddleware, CallbackList
from wsgi_after.executor import BoundedThreadPoolExecutor

SECURITY = ROOT / "SECURITY.rst"

FORGED = "/path\r\nCRITICAL:root:all is lost\x1b[2J\x00\u2028"


def fail():
    raise ValueError("secret")


def app(environ, start_response):
    environ["wsgi.after"].extend([fail, Unprintable(), functools.partial(Unprintable())])
    return hello(environ, start_response)


class Unprintable:
    """A callback whose repr has what a client sent."""

    def __repr__(self):
        return FORGED

    def __call__(self):
        raise ValueError


@pytest.mark.parametrize("executor", [None, Refuses(RuntimeError(FORGED)), Loses()])
@pytest.mark.parametrize("name", ["PATH_INFO", "REQUEST_METHOD", "SCRIPT_NAME"])
@pytest.mark.usefixtures("throttles")
def test_no_client_forges_a_line_of_the_log(name, executor, caplog):
    """Control characters are escaped, and line separators: in the request, the name, the error."""
    environ = make_environ(**{name: FORGED})
    Exchange(AfterResponseMiddleware(app, executor=executor), environ).finish()
    assert caplog.messages
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert getattr(record, "request_line", "").isprintable()
        assert getattr(record, "callback", "").isprintable()


@pytest.mark.usefixtures("throttles")
def test_the_report_of_a_slow_callback_is_escaped(caplog, monkeypatch):
    monkeypatch.setattr("wsgi_after._core.finish.PATIENCE", -1)
    Exchange(AfterResponseMiddleware(app), make_environ(PATH_INFO=FORGED)).finish()
    assert any("took" in message for message in caplog.messages)
    assert all(message.isprintable() for message in caplog.messages)


def test_the_warning_of_a_response_that_was_never_closed_is_escaped():
    exchange = Exchange(AfterResponseMiddleware(app), make_environ(PATH_INFO=FORGED))
    with pytest.warns(ResourceWarning, match="never closed") as warned:
        del exchange.result
    assert str(warned[0].message).isprintable()


def test_a_text_that_cannot_be_made_is_replaced_in_the_log(caplog):
    class Broken:
        __module__ = property()

        def __repr__(self):
            raise ValueError

        def __call__(self):
            raise ValueError

    def app(environ, start_response):
        environ["wsgi.after"].append(Broken())
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    assert "Broken object at" in caplog.messages[0]


@pytest.mark.parametrize("header", ["wsgi.after", "wsgi-after", "WSGI_AFTER", "HTTP_wsgi.after"])
def test_no_request_header_reaches_the_key(header):
    """PEP 3333 has each header arrive as HTTP_ and its name in capitals."""
    seen = []

    def app(environ, start_response):
        forged = [name for name, value in environ.items() if value == "forged"]
        seen.append(
            (type(environ["wsgi.after"]), list(environ["wsgi.after"]), "wsgi.after" in forged)
        )
        return hello(environ, start_response)

    with (
        served(AfterResponseMiddleware(app)) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.sendall(f"GET / HTTP/1.0\r\n{header}: forged\r\n\r\n".encode())
        assert client.makefile("rb").read().endswith(b"hello")
    assert seen == [(CallbackList, [], False)]


def test_callbacks_have_the_rights_of_the_app_and_run_in_its_process(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append((os.getpid(), os.getuid())))
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == [(os.getpid(), os.getuid())]


def test_the_pool_holds_no_more_than_it_was_told_to():
    """104 by default: 4 run, 100 wait, and what comes on top runs in close()."""
    pool = BoundedThreadPoolExecutor()
    go_on = threading.Event()
    started = [threading.Event() for _ in range(4)]

    def job(event):
        event.set()
        go_on.wait(10)

    try:
        for event in started:
            pool.submit(job, event)
        assert all(event.wait(10) for event in started)
        for _ in range(100):
            pool.submit(go_on.wait, 10)
        with pytest.raises(RuntimeError, match="full"):
            pool.submit(print)
    finally:
        go_on.set()
        pool.shutdown()


def test_a_full_pool_has_the_callbacks_run_in_close(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(threading.current_thread()))
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app, executor=Refuses())).finish()
    assert events == [threading.current_thread()]


def test_no_query_header_or_body_is_logged(caplog):
    """Of what a client sends, a message has method and path alone."""
    caplog.set_level(logging.DEBUG)
    secrets = {
        "QUERY_STRING": "secret",
        "HTTP_COOKIE": "secret",
        "wsgi.input": io.BytesIO(b"secret"),
    }
    for executor in (None, Refuses(), Loses()):
        application = AfterResponseMiddleware(app, executor=executor)
        Exchange(application, make_environ(**secrets)).finish()
    assert caplog.messages
    assert not [message for message in caplog.messages if "secret" in message]


@pytest.mark.usefixtures("throttles")
def test_refusals_do_not_flood_the_log(caplog):
    def app(environ, start_response):
        environ["wsgi.after"].append(int)
        return hello(environ, start_response)

    for _ in range(100):
        Exchange(AfterResponseMiddleware(app, executor=Refuses())).finish()
    assert len(caplog.messages) == 1


def test_security_rst_names_tests_that_exist():
    text = SECURITY.read_text(encoding="utf-8")
    defined = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    named = re.findall(r"``(test_\w+)``", text)
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in defined] == []
    assert [
        path for path in re.findall(r"``(tests/[\w/]+\.py)``", text) if not (ROOT / path).is_file()
    ] == []
