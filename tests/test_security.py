"""The claims of SECURITY.rst: each sentence that a test can check."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import threading

import pytest
from conftest import Exchange, Loses, Refuses, make_environ, registers
from documents import ROOT, TESTS

from wsgi_after.executor import BoundedThreadPoolExecutor

FORGED = "/path\r\nCRITICAL:root:all is lost\x1b[2J\x00\u2028"


def fail():
    raise ValueError("secret")


class Unprintable:
    """A callback whose repr contains what a client sent."""

    def __repr__(self):
        return FORGED

    def __call__(self):
        raise ValueError


FAILING = fail, Unprintable(), functools.partial(Unprintable())


def exchange(*callbacks, executor=None, **environ):
    return Exchange(registers(*callbacks, executor=executor), make_environ(**environ))


@pytest.mark.parametrize("executor", [None, Refuses(RuntimeError(FORGED)), Loses()])
@pytest.mark.parametrize("name", ["PATH_INFO", "REQUEST_METHOD", "SCRIPT_NAME"])
@pytest.mark.usefixtures("throttles")
def test_no_client_forges_a_line_of_the_log(name, executor, caplog):
    """Control characters and line separators are escaped: in the request, the name, the error."""
    exchange(*FAILING, executor=executor, **{name: FORGED}).finish()
    assert caplog.messages
    for record in caplog.records:
        extra = [getattr(record, name, "") for name in ("request_line", "callback")]
        assert "".join([record.getMessage(), *extra]).isprintable()


@pytest.mark.usefixtures("throttles")
def test_the_report_of_a_slow_callback_is_escaped(caplog, monkeypatch):
    monkeypatch.setattr("wsgi_after._core.finish.PATIENCE", -1)
    exchange(Unprintable(), PATH_INFO=FORGED).finish()
    assert any("took" in message for message in caplog.messages)
    assert all(message.isprintable() for message in caplog.messages)


def test_the_warning_of_a_response_that_was_never_closed_is_escaped():
    request = exchange(fail, PATH_INFO=FORGED)
    with pytest.warns(ResourceWarning, match="never closed") as warned:
        del request.result
    assert str(warned[0].message).isprintable()


def test_callbacks_have_the_rights_of_the_app_and_run_in_its_process(events):
    exchange(lambda: events.append((os.getpid(), os.getuid()))).finish()
    assert events == [(os.getpid(), os.getuid())]


def test_the_pool_holds_no_more_than_it_was_told_to():
    """104 by default: 4 run, 100 wait, and further callbacks run in close()."""
    go_on = threading.Event()
    with BoundedThreadPoolExecutor() as pool:
        try:
            for _ in range(104):
                pool.submit(go_on.wait, 10)
            with pytest.raises(RuntimeError, match="full"):
                pool.submit(print)
        finally:
            go_on.set()


def test_no_query_header_or_body_is_logged(caplog):
    """Of what a client sends, a message has only the method and the path."""
    caplog.set_level(logging.DEBUG)
    secrets = dict.fromkeys(("QUERY_STRING", "HTTP_COOKIE"), "secret")
    for executor in (None, Refuses(), Loses()):
        body = io.BytesIO(b"secret")
        exchange(*FAILING, executor=executor, **secrets, **{"wsgi.input": body}).finish()
    assert caplog.messages
    assert not [message for message in caplog.messages if "secret" in message]


@pytest.mark.usefixtures("throttles")
def test_refusals_do_not_flood_the_log(caplog):
    for _ in range(100):
        exchange(int, executor=Refuses()).finish()
    assert len(caplog.messages) == 1


def test_security_rst_names_tests_that_exist():
    text = (ROOT / "SECURITY.rst").read_text(encoding="utf-8")
    defined = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    named = re.findall(r"``(test_\w+)``", text)
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in defined] == []
    paths = re.findall(r"``(tests/[\w/]+\.py)``", text)
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_a_text_that_cannot_be_made_is_replaced_in_the_log(caplog):
    class Broken:
        __module__ = property()

        def __repr__(self):
            raise ValueError

    exchange(Broken()).finish()
    assert "Broken object at" in caplog.messages[0]
