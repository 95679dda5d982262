"""uWSGI's moment without uWSGI: which requests are left to the hook, and what it does.

A namespace stands in for uWSGI's module, and the test calls the hook, as uWSGI does between two
requests. ``tests/servers/test_uwsgi_moment.py`` has uWSGI itself.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import greenlet
import pytest
from conftest import Exchange, hello, registers

from wsgi_after import AfterResponseMiddleware, uwsgi
from wsgi_after._core import hand_off

ENVIRON = {"uwsgi.version": b"2", "PATH_INFO": "/me"}


class Server:
    """uWSGI's module, and what uWSGI does with it."""

    def __init__(self, **opt):
        self.logvars = {}
        self.module = SimpleNamespace(
            opt=opt, get_logvar=self.logvars.get, set_logvar=self.logvars.__setitem__
        )

    def end(self, exchange):
        """End a request: ``close()``, then clear the environ, then call the hook."""
        exchange.finish()
        exchange.environ.clear()
        self.call_hook()

    def call_hook(self):
        self.module.after_req_hook()
        self.logvars.clear()


@pytest.fixture
def start(monkeypatch):
    """Make this process look like uWSGI's, with these options; return the server."""

    def start(hook=None, **opt):
        server = Server(**opt)
        if hook is not None:
            server.module.after_req_hook = hook
        monkeypatch.setitem(sys.modules, "uwsgi", server.module)
        monkeypatch.setattr(hand_off, "find_slot", None)
        fresh = {"seen": set(), "pending": {}, "running": set(), "previous": None}
        for name, value in fresh.items():
            monkeypatch.setattr(uwsgi, name, value)
        uwsgi.install()
        return server

    return start


def request(events, app=hello):
    """A request with a callback, to a new middleware."""

    def registering(environ, start_response):
        environ["wsgi.after"].append(lambda: events.append(environ.get("PATH_INFO")))
        return app(environ, start_response)

    return Exchange(AfterResponseMiddleware(registering), ENVIRON.copy())


def test_the_first_request_runs_in_close_and_the_next_behind_it_with_its_environ(start, events):
    server = start()
    for _ in range(2):
        exchange = request(events)
        exchange.finish()
        events.append("closed")
        exchange.environ.clear()
        server.call_hook()
    assert (events, exchange.environ) == (["/me", "closed", "closed", "/me"], {})


def served(server, events, **options):
    """A request that follows another one, so that its thread is trusted."""
    server.call_hook()
    return request(events, **options)


def test_a_hook_that_was_there_is_called_behind_the_callbacks(start, events):
    server = start(hook=lambda: events.append("theirs"))
    server.end(served(server, events))
    assert events == ["theirs", "/me", "theirs"]


def test_a_hook_over_ours_that_calls_ours_runs_the_callbacks_once(start, events):
    server = start()
    ours = server.module.after_req_hook
    server.module.after_req_hook = lambda: (events.append("theirs"), ours())
    uwsgi.install()  # as the next constructor does: ours now calls theirs, which calls ours
    server.end(served(server, events))
    assert events == ["theirs", "/me", "theirs"]


def test_a_hook_that_fails_does_not_keep_the_request(start):
    def fails():
        raise ZeroDivisionError

    server = start(hook=fails)
    with pytest.raises(ZeroDivisionError):
        server.call_hook()
    assert uwsgi.running == set()


def test_a_request_that_another_server_made_is_none_of_its_own(start, events):
    exchange = served(start(), events)
    del exchange.environ["uwsgi.version"]
    exchange.finish()
    assert events == ["/me"]


def test_a_request_within_a_callback_runs_in_close(start, events):
    server = start()
    server.call_hook()
    callback = lambda: (request(events).finish(), events.append("outer"))  # noqa: E731
    server.end(Exchange(registers(callback), ENVIRON.copy()))
    assert events == ["/me", "outer"]


@pytest.mark.parametrize(
    ("option", "expected"), [({}, []), ({"reload-on-exception": True}, ["/me"])]
)
def test_where_an_exception_ends_the_worker_it_runs_before(start, events, option, expected):
    server = start(**option)
    with pytest.raises(ZeroDivisionError):
        served(server, events, app=lambda *args: 1 / 0)
    assert events == expected
    server.call_hook()
    assert len(events) == 1


def test_an_environ_that_is_a_copy_is_left_as_it_is(start, events):
    server = start()
    exchange = served(server, events)
    exchange.finish()
    server.call_hook()
    assert (events, exchange.environ["PATH_INFO"]) == (["/me"], "/me")


@pytest.mark.parametrize("option", ["async", "loop", "tornado"])
def test_where_requests_take_turns_in_one_thread_nothing_is_set(start, option):
    server = start(**{option: b"4"})
    assert not hasattr(server.module, "after_req_hook")


def test_with_ugreen_a_request_is_known_by_a_variable_for_the_log(start, events):
    server = start(**{"async": b"4", "ugreen": True})
    server.end(served(server, events))
    assert events == ["/me"]


def test_with_gevent_only_the_greenlet_of_a_request_is_trusted(start, events):
    server = start(gevent=b"10")
    served(server, events).finish()

    class OfUwsgi(greenlet.greenlet):
        uwsgi_wsgi_req = True

    OfUwsgi(lambda: (server.end(request(events)), events.append("ended"))).switch()
    assert events == ["/me", "/me", "ended"]


def test_in_another_process_it_sets_nothing(start):
    start()
    del sys.modules["uwsgi"]
    uwsgi.install()
    assert uwsgi.options() is None
