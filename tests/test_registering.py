"""Callbacks on success, once per request, and at once where there is no request."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
from conftest import Exchange
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

from wsgi_after import AfterResponseMiddleware, after_this_response_or_now, current_list


def respond(view, status="200 OK", **options):
    """Serve a request whose app calls ``view(after)``; return its list."""

    def app(environ, start_response):
        view(environ["wsgi.after"])
        start_response(status, [])
        return [b"body"]

    exchange = Exchange(AfterResponseMiddleware(app, **options))
    exchange.finish()
    return exchange.environ["wsgi.after"]


# on_success


@pytest.mark.parametrize(("status", "ok"), [("200 OK", True), ("302 F", True), ("404 N", False)])
def test_what_is_registered_on_success_keeps_its_place(status, ok, events):
    def view(after):
        assert after.ok is None
        after(events.append, 1)
        assert after.on_success(events.append, 2) == events.append
        after[-1]()  # the response has not started
        after(events.append, 3)

    after = respond(view, status)
    assert (events, after.ok) == ([1, 2, 3] if ok else [1, 3], ok)


def test_an_app_that_fails_in_its_body_is_no_success_for_good(events):
    def app(environ, start_response):
        environ["wsgi.after"].on_success(events.append, 1)
        start_response("200 OK", [])
        yield b"chunk"
        raise ZeroDivisionError

    exchange = Exchange(AfterResponseMiddleware(app))
    with pytest.raises(ZeroDivisionError):
        exchange.finish()
    after = exchange.environ["wsgi.after"]
    assert (events, after.ok, after.error) == ([], False, None)


# once


def test_a_call_is_made_once_whether_the_equal_one_waits_or_has_run(events):
    def view(after):
        after.once(events.append, [1])
        after.once(partial(events.append, [1]))
        after(after.once, events.append, [1])
        after.on_success(after.once, events.append, 2)
        after.once(after.on_success, events.append, 2)
        after.once(events.append, 3)
        after.remove(partial(events.append, 3))
        after.once(events.append, 3)

    respond(view)
    assert events == [[1], 2, 3]


def called_here(after, callback):
    """As if each of two threads had taken one of two equal entries."""
    after.once(callback)
    first = after.pop()
    after.once(callback)
    first()
    after.pop()()


def registered_twice(after, callback):
    """As if two threads registered equal calls at the same instant."""
    after.once(callback)
    after.append(after[0])


@pytest.mark.parametrize("view", [called_here, registered_twice])
def test_of_two_equal_entries_one_calls_the_function(view, events):
    respond(lambda after: view(after, partial(events.append, 1)))
    assert events == [1]


def test_one_that_depends_on_success_does_not_stand_for_one_that_does_not(events):
    def view(after):
        after.once(after.on_success, events.append, 1)
        after.once(events.append, 1)

    respond(view)
    respond(view, "500 E")
    assert events == [1, 1]


def test_equal_calls_have_one_hash(events):
    def view(after):
        after.once(events.append, [1])
        after.on_success(events.append, [1])
        assert {hash(entry) for entry in after} == {hash(events.append)}

    respond(view)


@pytest.mark.parametrize("method", ["on_success", "once"])
def test_what_is_not_callable_is_refused(method):
    def view(after):
        other = after.once if method == "on_success" else after.on_success
        for arguments in [(3,), (other,), (other, 3)]:
            with pytest.raises(TypeError, match="must be callable"):
                getattr(after, method)(*arguments)

    respond(view)


# In executors, and in Pyramid


class Leaves:
    """An executor that sends its jobs out of this process."""

    def __init__(self):
        self.jobs = []

    def submit(self, fn, *args):
        self.jobs.append(pickle.dumps((fn, args)))


class Wrapped(partial):
    """Like the entries of the module for Pyramid."""

    def __call__(self):
        return self.func()


@pytest.mark.parametrize(("status", "jobs"), [("200 OK", 1), ("500 E", 0)])
def test_it_is_decided_before_a_hand_over(status, jobs):
    executor = Leaves()

    def view(after):
        after.on_success(after.once, print, "one")
        after[:] = [Wrapped(after[0])]
        after.once(after.on_success, print, "one")

    respond(view, status, executor=executor)
    assert len(executor.jobs) == jobs


def write(path, text):
    with open(path, "a") as file:
        file.write(text)


@pytest.mark.parametrize(("status", "expected"), [("200 OK", "once ok "), ("500 Error", "once ")])
def test_in_a_pool_of_processes(status, expected, tmp_path):
    path = str(tmp_path / "written")

    def view(after):
        after.once(write, path, "once ")
        after.on_success(write, path, "ok ")
        after.once(write, path, "once ")

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        respond(view, status, executor=pool)
    assert (tmp_path / "written").read_text() == expected


@pytest.mark.parametrize(("status", "expected"), [(200, [1, 2]), (404, [2])])
def test_in_pyramid_whose_module_wraps_each_callback(status, expected, events):
    def view(request):
        request.after.on_success(request.after.once, events.append, 1)
        request.after.once(request.after.on_success, events.append, 1)
        request.after.once(events.append, 2)
        request.after.once(events.append, 2)
        return Response(status=status)

    with Configurator() as config:
        config.include("wsgi_after.pyramid")
        config.add_route("index", "/")
        config.add_view(view, route_name="index")
    TestApp(config.make_wsgi_app()).get("/", status=status)
    assert events == expected


# after_this_response_or_now


def test_without_a_request_it_is_called_at_once_and_raises(events):
    assert current_list() is None
    after_this_response_or_now(events.append, 1)
    with pytest.raises(ZeroDivisionError):
        after_this_response_or_now(lambda: 1 / 0)
    with pytest.raises(TypeError, match="must be callable"):
        after_this_response_or_now(3)
    assert events == [1]


def test_in_a_request_it_waits_for_the_response(events):
    def view(after):
        assert current_list() is after
        after_this_response_or_now(events.append, "callback")
        events.append("view")

    respond(view)
    assert events == ["view", "callback"]


def test_in_a_streaming_body_it_is_called_at_once(events):
    def app(environ, start_response):
        start_response("200 OK", [])
        after_this_response_or_now(events.append, "now")
        events.append("later")
        yield b"chunk"

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["now", "later"]


FORKS = """
import os
from wsgi_after import AfterResponseMiddleware, after_this_response_or_now

def app(environ, start_response):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        try:
            after_this_response_or_now(os.write, 1, b"now")
        finally:
            os._exit(0 if environ["wsgi.after"] == [] else 1)
    start_response("200 OK", [])
    return []

AfterResponseMiddleware(app)({}, print).close()
"""


def test_in_a_forked_child_it_is_called_at_once():
    """In a process of its own: another test may have loaded code that hooks into forks."""
    assert subprocess.check_output([sys.executable, "-c", FORKS]).startswith(b"now")
