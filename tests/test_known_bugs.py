"""Known bugs of other packages: the page that lists them, and those that only this module tests."""

from __future__ import annotations

import logging
import threading
from asyncio import CancelledError
from functools import partial

import gevent
import pytest
from conftest import Exchange, make_environ
from documents import TESTS, parse
from docutils import nodes
from werkzeug.wsgi import ClosingIterator

from wsgi_after import AfterResponseMiddleware, after_this_response


def test_each_bug_on_the_page_has_a_test():
    [table] = parse("known-bugs.rst").findall(nodes.table)
    header, *rows = ([entry.astext() for entry in row] for row in table.findall(nodes.row))
    assert header == ["no.", "bug", "where", "test"]
    assert {int(number) for number, *_ in rows} == set(range(1, 16))
    for *_, proof in rows:
        module, test = proof.split(".")
        [path] = TESTS.rglob(f"{module}.py")
        assert f"\ndef {test}(" in path.read_text(encoding="utf-8")


def test_bug_3_a_falsy_iterable_is_not_closed(events):
    class Empty(list):
        def close(self):
            events.append("closed")

    Exchange(AfterResponseMiddleware(lambda environ, start_response: Empty())).finish()
    assert events == ["closed"]


def test_bug_14_a_body_streamed_from_another_thread_has_no_request_or_another_one(events):
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


def recipe(app):
    """The recipe that people copy: a list in the environ, run by a ClosingIterator."""

    def application(environ, start_response):
        environ["wsgi.after"] = callbacks = []
        iterable = app(environ, start_response)
        return ClosingIterator(iterable, lambda: [callback() for callback in callbacks])

    return application


def cancelled():
    raise CancelledError


def timed_out():
    raise gevent.Timeout(1)


def generator():
    yield pytest.fail("nobody iterates over it")


@pytest.mark.parametrize(
    ("callback", "let_out"),
    [(cancelled, CancelledError), (timed_out, gevent.Timeout), (generator, None)],
)
def test_what_the_copied_recipe_lets_out_or_loses_is_told(callback, let_out, events, caplog):
    def app(environ, start_response):
        environ["wsgi.after"].extend([callback, partial(events.append, "next")])
        start_response("200 OK", [])
        return [b"body"]

    try:
        Exchange(recipe(app)).finish()
    except BaseException as error:
        events.append(type(error))
    assert (events, caplog.messages) == (["next"] if let_out is None else [let_out], [])
    events.clear()

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["next"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
