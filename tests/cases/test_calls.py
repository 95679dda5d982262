"""Rule 2: lists are shared within a call, never across calls."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import Exchange, Immediately, make_environ
from webob import Request

from wsgi_after import AfterResponseMiddleware, CallbackList, run_callbacks

KEY = "wsgi.after"
TRIED, PAGE = ("503 Busy", [b"tried"]), ("200 OK", [b"page"])


class App:
    """Answers its calls in turn, each with a status and a body, or with an exception.

    The callback of each call records the number of the call and the status of its response.
    """

    def __init__(self, events, *answers):
        self.events, self.answers, self.calls = events, [*answers], 0

    def __call__(self, environ, start_response):
        self.calls += 1
        after, call, answer = environ[KEY], self.calls, self.answers.pop(0)
        after.append(lambda: self.events.append(f"callback {call}: {after.status}"))
        if isinstance(answer, Exception):
            raise answer
        start_response(answer[0], [])
        return answer[1]


def no_app(environ, start_response):
    start_response("200 OK", [])
    return []


def begun(body):
    chunks = iter(body)
    next(chunks)
    return chunks


def read(body):
    with suppress(ValueError):
        list(body)


class Fails:
    """A body that raises after these chunks, each time that it is read."""

    def __init__(self, *chunks):
        self.chunks = chunks

    def __iter__(self):
        yield from self.chunks
        raise ValueError("of the body")


def close(body):
    """Close a body, if it has ``close()``: the body of a call that shared a list is not wrapped."""
    getattr(body, "close", bool)()


def deliver(body, events):
    """Read and close a body, as a server does."""
    events.extend(chunk.decode() for chunk in body)
    body.close()


#: What is done with the first response before the environ is sent again; whether it is over then.
FIRST = {
    "closed": (lambda body: (read(body), body.close()), True),
    "closed, begun": (lambda body: (begun(body), body.close()), True),
    "exhausted": (read, False),
    "begun": (begun, False),
    "unread": (lambda body: None, False),
}


@pytest.mark.parametrize("first", [*FIRST, "raised", "raised, another", "ran its list itself"])
def test_a_retry_outside_has_a_list_of_its_own(first, events):
    """Even if the first response is not over yet: then its callbacks run when it is."""
    raised = first.startswith("raised")
    app = App(events, ValueError("on purpose") if raised else TRIED, PAGE)
    instance, environ = AfterResponseMiddleware(app), make_environ()
    reads, is_over = FIRST.get(first, (lambda body: run_callbacks(environ[KEY]), True))
    kept = []
    with suppress(ValueError):
        kept.append(Exchange(instance, environ).result)
        kept.append(reads(kept[0]))
    again = AfterResponseMiddleware(app) if "another" in first else instance
    deliver(Exchange(again, environ).result, events)
    if kept:
        kept[0].close()
    tried = f"callback 1: {None if raised else '503 Busy'}"
    then = ["page", "callback 2: 200 OK"]
    assert events == ([tried, *then] if is_over else [*then, tried])


@pytest.mark.parametrize("answer", [TRIED, ValueError("on purpose")], ids=["closed", "raised"])
def test_a_retry_while_the_first_ones_job_is_pending_has_a_list_of_its_own(answer, events):
    jobs, environ = [], make_environ()
    queue = SimpleNamespace(submit=lambda fn, *args: jobs.append(partial(fn, *args)))
    app = AfterResponseMiddleware(App(events, answer, PAGE), executor=queue)
    with suppress(ValueError):
        Exchange(app, environ).finish()
    deliver(Exchange(app, environ).result, events)
    for job in reversed(jobs):
        job()
    tried = f"callback 1: {'503 Busy' if answer is TRIED else None}"
    assert events == ["page", "callback 2: 200 OK", tried]


def test_a_retry_between_two_instances_is_within_the_outer_ones_call(events):
    inner = AfterResponseMiddleware(App(events, ValueError("on purpose"), PAGE))
    inner.after_response(lambda environ: events.append("app-wide, inner"))

    def retry(environ, start_response):
        with pytest.raises(ValueError, match="on purpose"):
            inner(environ, start_response)
        return inner(environ, start_response)

    outer = AfterResponseMiddleware(retry)
    outer.after_response(lambda environ: events.append("app-wide, outer"))
    deliver(Exchange(outer).result, events)
    assert events == [
        *("page", "app-wide, outer"),
        *("app-wide, inner", "callback 1: 200 OK", "app-wide, inner", "callback 2: 200 OK"),
    ]


@pytest.mark.parametrize("executor", [None, Immediately()])
def test_an_internal_redirect_is_within_the_call(executor, events):
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        environ[KEY](events.append, path)
        if path == "/path":
            return wrapped({**environ, "PATH_INFO": "/target"}, start_response)
        start_response("200 OK", [])
        return [b"page"]

    wrapped = AfterResponseMiddleware(app, executor=executor)
    wrapped.after_response(lambda environ: events.append(f"app-wide {environ['PATH_INFO']}"))
    deliver(Exchange(wrapped).result, events)
    assert events == ["page", "app-wide /path", "/path", "app-wide /target", "/target"]


#: The state of the first response when its environ is sent again: what the app returned, what was
#: done with it, and whether another instance then shares its list.
STATES = {
    **{state: ([b"a"], reads, state == "begun") for state, (reads, _) in FIRST.items()},
    "iter() was called": ([b"a"], iter, False),
    "begun by next()": ([b"a"], next, True),
    "begun, stopped": ([b"a"], lambda body: begun(body).close(), True),
    "begun a second time": ([b"a"], lambda body: (list(body), begun(body)), True),
    "exhausted by next()": ([b"a"], lambda body: (next(body), next(body, None)), False),
    "failed at once": (Fails(), read, False),
    "failed": (Fails(b"a"), read, False),
    "closed, unread": ([b"a"], lambda body: body.close(), False),
}


@pytest.mark.parametrize("by", ["the same instance", "another", "another, in a copy"])
@pytest.mark.parametrize("state", STATES)
def test_who_shares_a_list_when_the_call_that_made_it_has_returned(state, by, events):
    body, reads, is_shared = STATES[state]
    first = AfterResponseMiddleware(App(events, ("200 OK", body), PAGE))
    exchange = Exchange(first)
    after, kept = exchange.environ[KEY], reads(exchange.result)
    environ = copy.deepcopy(exchange.environ) if "copy" in by else exchange.environ
    second = Exchange(first if "same" in by else AfterResponseMiddleware(no_app), environ).result
    assert (environ[KEY] is after) == (is_shared and "another" in by)
    del kept
    close(exchange.result)
    close(second)


COPIES = {
    "the environ": lambda environ: environ,
    "copy()": dict.copy,
    "copy.deepcopy": copy.deepcopy,
    "WebOb's": lambda environ: Request(environ).copy_get().environ,
}


@pytest.mark.parametrize("thread", ["this thread", "another thread"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copied_environ_is_of_the_same_call_until_that_has_returned(copied, thread, events):
    """The list itself holds the state: a context variable would not reach other threads."""

    def asks(environ):
        after = environ[KEY]
        close(AfterResponseMiddleware(no_app)(environ, lambda *args: bool))
        events.append(environ[KEY] is after)

    def ask(environ):
        if thread == "this thread":
            asks(copied(environ))
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asks, copied(environ)).result()

    def app(environ, start_response):
        ask(environ)
        environ[KEY](ask, environ)
        return no_app(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(app))
    ask(exchange.environ)
    exchange.finish()
    ask(exchange.environ)
    assert events == [True, False, False, False]


@pytest.mark.parametrize("by", ["the same instance", "another"])
def test_a_request_made_in_mid_body(by, events):
    """For another instance it is part of the call whose body is read; for the same, it is new."""

    def body(environ):
        yield b"before"
        part = (first if "same" in by else other)(environ, lambda *args: bool)
        yield from part
        close(part)
        yield b"behind"

    def app(environ, start_response):
        nested = environ["nested"] = "nested" in environ
        environ[KEY](events.append, "callback of the part" if nested else "callback")
        start_response("200 OK", [])
        return [b"part"] if nested else body(environ)

    first, other = AfterResponseMiddleware(app), AfterResponseMiddleware(app)
    deliver(Exchange(first).result, events)
    if "same" in by:
        assert events == ["before", "part", "callback of the part", "behind", "callback"]
    else:
        assert events == ["before", "part", "behind", "callback", "callback of the part"]


class TheirList(list):
    """A server's own subclass of ``list``."""


@pytest.mark.parametrize("kind", [list, TheirList, CallbackList])
@pytest.mark.parametrize("first", [[], [lambda: None]], ids=["empty", "not empty"])
def test_a_list_of_the_server_is_used_by_every_call_until_it_has_ended(kind, first, events):
    """The server runs the list: nothing is wrapped, and an app that raises runs no callbacks."""
    present = kind(first)
    environ = make_environ(**{KEY: present})
    app = AfterResponseMiddleware(no_app)
    app.after_response(lambda environ: events.append("app-wide"))
    results = [Exchange(app, environ).result, Exchange(app, environ).result]
    with pytest.raises(ZeroDivisionError):
        Exchange(AfterResponseMiddleware(lambda *args: 1 / 0), environ)
    assert (results, environ[KEY] is present, events) == ([[], []], True, [])
    run_callbacks(present)
    close(Exchange(app, environ).result)
    assert len(events) == 2 + (kind is CallbackList)  # a CallbackList has ended: new list
    assert (environ[KEY] is present) == (kind is not CallbackList)
