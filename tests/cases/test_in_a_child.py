"""Forked children and rare orders, simulated in this process, because coverage does not see them.

A fork changes ``process.forks``. Real forks are in ``test_processes.py``.
"""

from __future__ import annotations

import pickle
import sys
import threading
from functools import partial

import pytest
from conftest import Exchange, Immediately, hello, make_environ, registers

from wsgi_after import AfterResponseMiddleware, CallbackList, exits, run_callbacks
from wsgi_after._core import process, unclosed
from wsgi_after._core.body import Body
from wsgi_after._core.prepare import ResponseCallback
from wsgi_after.testing import wait_for_callbacks


@pytest.fixture
def fork(monkeypatch):
    """When called: act as a forked child from now on."""
    monkeypatch.setattr(process, "forks", process.forks)
    return process._forked


def test_the_list_of_the_parent_is_left_alone(fork, events):
    exchange = Exchange(registers(partial(events.append, "ran")))
    fork()
    exchange.finish()
    with pytest.raises(RuntimeError, match="belongs to the process that made it"):
        run_callbacks(exchange.environ["wsgi.after"])
    assert events == []


@pytest.mark.parametrize("place", ["callback returns", "callback", "on_error", "submit", "waits"])
def test_what_forks_runs_no_other_callback_and_what_it_raises_goes_on(place, fork, events):
    def forks(*args):
        fork()
        if place != "callback returns":
            raise OSError("of the child")

    def fails():
        raise ValueError

    class Executor:
        submit = forks

    first = {"on_error": fails, "submit": int}.get(place, forks)
    application = registers(
        *(first, partial(events.append, "ran")),
        on_error=forks if place == "on_error" else None,
        executor=Executor() if place == "submit" else None,
    )
    exchange = Exchange(application)
    if place == "waits":
        unclosed.waiting.append(exchange.result)
        with pytest.warns(ResourceWarning):
            raised = unclosed.close_waiting()
        assert str(raised) == "of the child"
    elif place == "callback returns":
        exchange.finish()
    else:
        with pytest.raises(OSError, match="of the child"):
            exchange.finish()
    assert events == []


def test_a_job_that_an_executor_brings_to_a_child_runs_there(fork, events):
    class Forks(Immediately):
        def submit(self, fn, *args):
            fork()
            super().submit(fn, *args)

    Exchange(registers(partial(events.append, "ran"), executor=Forks())).finish()
    assert events == ["ran"]


def test_what_waits_and_is_the_parents_is_left_alone(fork, events):
    exchange = Exchange(registers(partial(events.append, "ran")))
    unclosed.waiting.append(exchange.result)
    fork()
    assert (unclosed.close_waiting(), [*unclosed.waiting], events) == (None, [], [])


def test_another_thread_may_take_the_last_one_that_waits(monkeypatch):
    class Taken(list):
        def popleft(self):
            raise IndexError

    monkeypatch.setattr(unclosed, "waiting", Taken([None]))
    assert unclosed.close_waiting() is None


def test_a_close_that_the_collector_calls_is_for_later(monkeypatch, events):
    exchange = Exchange(registers(partial(events.append, "ran")))
    monkeypatch.setattr(unclosed.collector, "thread", threading.get_ident())
    exchange.result.close()
    monkeypatch.setattr(unclosed.collector, "thread", None)
    events.append("collected")
    with pytest.warns(ResourceWarning):
        unclosed.close_waiting()
    assert events == ["collected", "ran"]


def test_an_interruption_of_a_job_that_was_pickled_loses_it_and_says_so(caplog, events):
    class Sends:
        def submit(self, *job):
            pickle.dumps(job)
            raise KeyboardInterrupt

    exchange = Exchange(registers(int, executor=Sends()))
    pickle.dumps(exchange.environ["wsgi.after"])  # without effect: nobody has the job
    with pytest.raises(KeyboardInterrupt):
        exchange.finish()
    # Bodies that simulated children of other tests left may be collected, and logged, in this one.
    assert len([message for message in caplog.messages if "are lost" in message]) == 1


def test_what_is_not_bound_to_the_environ_stays_as_it_is(events):
    inner = AfterResponseMiddleware(hello, executor=Immediately())
    environ = make_environ(**{"uwsgi.version": b"2.0.31"})
    Exchange(registers(lambda: events.append("ran"), app=inner), environ).finish()
    assert events == ["ran"]


def test_of_start_response_and_who_registers_too_late_one_has_the_function(events):
    late = ResponseCallback(lambda response: events.append("late"), once=False)
    early = ResponseCallback(lambda response: events.append("early"), once=False)
    assert late.take_back()

    def app(environ, start_response):
        environ["wsgi.after"]._response_callbacks = [late, early]
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    assert (events, early.take_back()) == (["early"], False)


def test_what_has_run_already_is_not_refused():
    CallbackList()._take_back([print])


@pytest.mark.parametrize("used", [True, False])
def test_children_of_multiprocessing_are_watched_where_it_is_used(used, monkeypatch):
    from multiprocessing import util

    watched = []
    monkeypatch.setattr(util, "register_after_fork", lambda *args: watched.append(args[0]))
    if not used:
        monkeypatch.delitem(sys.modules, "multiprocessing.util")
    exits._forked(Body)
    assert watched == [Body] * used


def test_nobody_is_asked_where_nobody_is_named(monkeypatch, events):
    """As in a process that never imports ``wsgi_after.testing``."""
    monkeypatch.setattr("wsgi_after._core.hand_off.capturing", None)
    Exchange(registers(partial(events.append, "ran"))).finish()
    assert events == ["ran"]


def test_who_waits_for_callbacks_looks_again_until_they_have_run(events, monkeypatch):
    exchange = Exchange(registers(partial(events.append, "ran")))
    monkeypatch.setattr("wsgi_after.testing.sleep", lambda seconds: exchange.finish())
    wait_for_callbacks(30)
    assert events == ["ran"]
