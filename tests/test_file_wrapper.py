"""``wsgi.file_wrapper`` of the servers that have a Python class for it: rule 8 of the contract."""

from __future__ import annotations

import wsgiref.util
from functools import partial

import pytest
from conftest import Exchange, FailingFile, File, make_environ, send_file
from gunicorn.http.wsgi import FileWrapper as GunicornFileWrapper
from waitress.buffers import ReadOnlyFileBasedBuffer as WaitressFileWrapper

from wsgi_after import AfterResponseMiddleware

CLASSES = [wsgiref.util.FileWrapper, GunicornFileWrapper, WaitressFileWrapper]


@pytest.mark.parametrize("file_wrapper", CLASSES)
def test_the_servers_own_object_comes_back_and_its_close_runs_the_callbacks(file_wrapper, events):
    exchange = send_file(file_wrapper, File(events), events)
    assert type(exchange.result) is file_wrapper
    exchange.result.close()
    exchange.result.close()
    assert events == ["file closed", "callback None None"]


@pytest.mark.parametrize("file_wrapper", CLASSES)
def test_a_file_whose_close_fails_does_not_cost_the_callbacks(file_wrapper, events):
    exchange = send_file(file_wrapper, FailingFile(events), events)
    with pytest.raises(OSError, match="on purpose"):
        exchange.result.close()
    assert events == ["file closed", "callback None OSError('on purpose')"]


def test_a_file_wrapper_without_a_close_gets_one(events):
    class Bare:
        def __init__(self, file):
            pass

    exchange = send_file(Bare, None, events)
    exchange.result.close()
    assert events == ["callback None None"]


def test_a_file_wrapper_that_is_dropped_runs_its_callbacks(events):
    exchange = send_file(wsgiref.util.FileWrapper, File(events), events)
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
    assert events == ["file closed", "callback None None"]


def test_an_iterable_that_is_no_file_wrapper_is_wrapped_as_ever(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "callback"))
        return iter([b"1"])

    environ = make_environ(**{"wsgi.file_wrapper": wsgiref.util.FileWrapper})
    assert Exchange(AfterResponseMiddleware(app), environ).finish() == [b"1"]
    assert events == ["callback"]


def test_a_close_of_a_file_wrapper_that_cannot_be_looked_up_costs_no_callbacks(events):
    """The server gets what it raises where the bare app has it: in place of ``close()``."""

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
