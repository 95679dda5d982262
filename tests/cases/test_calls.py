"""Rule 2: lists are shared within a call, never across calls."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType

import pytest
from conftest import Exchange, Immediately, make_environ
from webob import Request

from wsgi_after import AfterResponseMiddleware, CallbackList, run_callbacks

KEY = "wsgi.after"


class App:
    """Answers its calls in turn; the callback of each tells the number, and its own status.

    :param answers: of each call the status, and what makes the body; or what is raised.
    """

    def __init__(self, events, *answers):
        self.events = events
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, environ, start_response):
        self.calls += 1
        after, call, answer = environ[KEY], self.calls, self.answers.pop(0)
        after.append(lambda: self.events.append(f"callback {call}: {after.status}"))
        if isinstance(answer, BaseException):
            raise answer
        status, body = answer
        start_response(status, [])
        return body()


def closed(body):
    list(body)
    body.close()


def begun(body):
    chunks = iter(body)
    next(chunks)
    return chunks


def read(body):
    with suppress(ValueError):
        list(body)


def fails(*chunks):
    yield from chunks
    raise ValueError("of the body")


def one_chunk():
    return [b"chunk"]


def deliver(body, events):
    """Read and close a body, as a server does."""
    events.extend(chunk.decode() for chunk in body)
    body.close()


FIRST = {
    "raised": (ValueError("on purpose"), None),
    "closed": (("503 Busy", one_chunk), closed),
    "closed, begun": (("503 Busy", one_chunk), lambda body: (begun(body), body.close())),
    "exhausted": (("503 Busy", one_chunk), list),
    "begun": (("503 Busy", one_chunk), begun),
    "unread": (("503 Busy", one_chunk), lambda body: None),
    "ran its list itself": (("503 Busy", one_chunk), None),
}


@pytest.mark.parametrize("first", FIRST)
def test_a_retry_outside_has_a_list_of_its_own(first, events):
    """However the first try ended, and even if nobody has ended it yet: then it ends last."""
    answer, reads = FIRST[first]
    app = App(events, answer, ("200 OK", lambda: [b"page"]))
    wrapped = AfterResponseMiddleware(app)
    kept = []

    def retry(environ, start_response):
        try:
            kept.append(wrapped(environ, start_response))
            if reads is None:
                run_callbacks(environ[KEY])
            else:
                kept.append(reads(kept[0]))
        except ValueError:
            pass
        events.append("retry")
        return wrapped(environ, start_response)

    deliver(Exchange(retry).result, events)
    if kept:
        kept[0].close()
    tried = f"callback 1: {None if first == 'raised' else '503 Busy'}"
    over = first in {"raised", "closed", "closed, begun", "ran its list itself"}
    expected = ["retry", "page", "callback 2: 200 OK"]
    assert events == ([tried, *expected] if over else [*expected, tried])


def test_a_retry_between_two_instances_is_within_the_outer_ones_call(events):
    app = App(events, ValueError("on purpose"), ("200 OK", lambda: [b"page"]))
    inner = AfterResponseMiddleware(app)
    inner.after_response(lambda environ: events.append("app-wide, inner"))

    def retry(environ, start_response):
        with pytest.raises(ValueError, match="on purpose"):
            inner(environ, start_response)
        return inner(environ, start_response)

    outer = AfterResponseMiddleware(retry)
    outer.after_response(lambda environ: events.append("app-wide, outer"))
    deliver(Exchange(outer).result, events)
    callbacks = ["app-wide, inner", "callback 1: 200 OK", "app-wide, inner", "callback 2: 200 OK"]
    assert events == ["page", "app-wide, outer", *callbacks]


@pytest.mark.parametrize("outside", [True, False])
def test_an_error_page_by_a_second_call_has_its_own_status(outside, events):
    """An application of its own for errors: outside of all instances, or within one's call."""
    broken = AfterResponseMiddleware(App(events, ValueError("on purpose")))
    page = AfterResponseMiddleware(App(events, ("500 Error", lambda: [b"sorry"])))

    def errors(environ, start_response):
        try:
            return broken(environ, start_response)
        except ValueError:
            return page(environ, start_response)

    deliver(Exchange(errors if outside else AfterResponseMiddleware(errors)).result, events)
    callbacks = ["callback 1: None", "callback 1: 500 Error"]
    if outside:
        assert events == [callbacks[0], "sorry", callbacks[1]]
    else:
        assert events == ["sorry", "callback 1: 500 Error", "callback 1: 500 Error"]


ASKS = {
    "get_response": lambda request, app: request.get_response(app).app_iter,
    "call_application": lambda request, app: request.call_application(app)[2],
}


@pytest.mark.parametrize("ask", ASKS)
def test_webob_sends_one_request_twice(ask, events):
    app = AfterResponseMiddleware(App(events, *[("200 OK", lambda: iter([b"page"]))] * 2))
    request = Request.blank("/")
    deliver(ASKS[ask](request, app), events)
    deliver(ASKS[ask](request, app), events)
    assert events == ["page", "callback 1: 200 OK", "page", "callback 2: 200 OK"]


@pytest.mark.parametrize("ask", ASKS)
def test_webob_within_an_app_shares_its_list(ask, events):
    inner = AfterResponseMiddleware(App(events, *[("200 OK", lambda: [b"part"])] * 2))

    def app(environ, start_response):
        request = Request(environ)
        parts = [*ASKS[ask](request, inner), *ASKS[ask](request.copy(), inner)]
        start_response("201 Created", [])
        return [*parts, b"page"]

    deliver(Exchange(AfterResponseMiddleware(app)).result, events)
    assert events == ["part", "part", "page", "callback 1: 201 Created", "callback 2: 201 Created"]


def no_app(environ, start_response):
    start_response("200 OK", [])
    return []


#: How far the first call is when a second one with its environ begins; and whether an instance
#: that is another one then shares its list. The same one never does.
STATES = {
    "unread": (one_chunk, lambda body: None, False),
    "iter() was called": (one_chunk, iter, False),
    "begun": (one_chunk, begun, True),
    "begun by next()": (one_chunk, next, True),
    "begun, stopped": (one_chunk, lambda body: begun(body).close(), True),
    "begun a second time": (one_chunk, lambda body: (list(body), begun(body)), True),
    "exhausted": (one_chunk, list, False),
    "exhausted by next()": (one_chunk, lambda body: (next(body), next(body, None)), False),
    "failed at once": (fails, read, False),
    "failed": (lambda: fails(b""), read, False),
    "closed, unread": (one_chunk, lambda body: body.close(), False),
    "closed, begun": (one_chunk, lambda body: (begun(body), body.close()), False),
}


@pytest.mark.parametrize("of", ["the same instance", "another instance", "another, a copy"])
@pytest.mark.parametrize("state", STATES)
def test_who_shares_a_list_when_the_call_that_made_it_has_returned(state, of, events):
    body, reads, is_shared = STATES[state]
    first = AfterResponseMiddleware(App(events, ("200 OK", body), ("201 Created", one_chunk)))
    second = first if of == "the same instance" else AfterResponseMiddleware(no_app)
    exchange = Exchange(first)
    environ = exchange.environ
    after = environ[KEY]
    kept = reads(exchange.result)
    if "copy" in of:
        environ = copy.deepcopy(environ)
    result = Exchange(second, environ).result
    assert (environ[KEY] is after) == (is_shared and "another" in of)
    del kept
    exchange.result.close()
    if environ[KEY] is not after:
        result.close()


def shared(environ):
    """Whether another instance shares the list of this environ, and what it says of its own."""
    after = environ[KEY]
    result = AfterResponseMiddleware(no_app)(environ, lambda *args: bool)
    if environ[KEY] is after:
        return type(result) is list  # nothing of ours is around it: whoever made the list ends it
    result.close()
    return False


COPIES = {
    "the environ": lambda environ: environ,
    "copy()": dict.copy,
    "dict()": dict,
    "dict(**)": lambda environ: dict(**environ),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "of a proxy": lambda environ: {**MappingProxyType(environ)},
    "WebOb's": lambda environ: Request(environ).copy_get().environ,
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("thread", ["this thread", "another thread"])
def test_a_copied_environ_is_of_the_same_call_until_that_has_returned(copied, thread, events):
    """The mark is on the list: a context variable would not reach other threads."""
    copies = []

    def ask():
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(shared, copies[0])
        events.append(call.result() if thread == "another thread" else shared(copies[0]))

    def app(environ, start_response):
        copies.append(COPIES[copied](environ))
        environ[KEY].append(ask)
        ask()
        start_response("200 OK", [])
        return one_chunk()

    exchange = Exchange(AfterResponseMiddleware(app))
    copies[:] = [COPIES[copied](exchange.environ)]
    ask()
    exchange.finish()
    ask()
    assert events == [True, False, False, False]


@pytest.mark.parametrize("executor", [None, Immediately()])
def test_an_internal_redirect_is_within_the_call(executor, events):
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        environ[KEY](events.append, f"callback of {path}")
        if path == "/path":
            return wrapped({**environ, "PATH_INFO": "/target"}, start_response)
        start_response("200 OK", [])
        return [b"page"]

    wrapped = AfterResponseMiddleware(app, executor=executor)
    wrapped.after_response(lambda environ: events.append(f"app-wide for {environ['PATH_INFO']}"))
    deliver(Exchange(wrapped).result, events)
    paths = "/path", "/target"
    assert events == [
        "page",
        *[f"{what} {path}" for path in paths for what in ("app-wide for", "callback of")],
    ]


@pytest.mark.parametrize("of", ["the same instance", "another instance"])
def test_a_request_made_in_mid_body(of, events):
    """For another instance it belongs to the call that is being read; for the same it is new."""

    def body(environ):
        yield b"before"
        part = (first if of == "the same instance" else other)(environ, lambda *args: bool)
        yield b"".join(part)
        getattr(part, "close", bool)()
        yield b"behind"

    def app(environ, start_response):
        nested = environ.setdefault("nested", [])
        nested.append(environ[KEY])
        environ[KEY].append(lambda: events.append(f"callback {len(nested)}"))
        start_response("200 OK", [])
        return body(environ) if len(nested) == 1 else [b"part"]

    first, other = AfterResponseMiddleware(app), AfterResponseMiddleware(app)
    deliver(Exchange(first).result, events)
    if of == "the same instance":
        assert events == ["before", "part", "callback 2", "behind", "callback 2"]
    else:
        assert events == ["before", "part", "behind", "callback 2", "callback 2"]


class Pending:
    """An executor that runs its jobs when it is told."""

    def __init__(self):
        self.jobs = []

    def submit(self, fn, *args):
        self.jobs.append(lambda: fn(*args))


@pytest.mark.parametrize("first", ["raised", "closed", "closed, begun"])
def test_a_call_while_the_job_of_an_earlier_one_is_pending_has_its_own(first, events):
    answer, reads = FIRST[first]
    executor = Pending()
    app = App(events, answer, ("200 OK", lambda: [b"page"]))
    wrapped = AfterResponseMiddleware(app, executor=executor)
    environ = make_environ()
    with suppress(ValueError):
        reads(Exchange(wrapped, environ).result)
    deliver(Exchange(wrapped, environ).result, events)
    for job in reversed(executor.jobs):
        job()
    tried = f"callback 1: {None if first == 'raised' else '503 Busy'}"
    assert events == ["page", "callback 2: 200 OK", tried]


class TheirList(list):
    """A list of a server of its own kind."""


@pytest.mark.parametrize("kind", [list, TheirList, CallbackList])
@pytest.mark.parametrize("first", [[], [lambda: None]])
def test_a_list_of_the_server_is_used_by_every_call_until_it_has_ended(kind, first, events):
    """The server runs it: nothing is wrapped, and what the app raises runs nothing."""
    present = kind(first)
    environ = make_environ(**{KEY: present})
    app = AfterResponseMiddleware(no_app)
    app.after_response(lambda environ: events.append("app-wide"))
    broken = AfterResponseMiddleware(lambda environ, start_response: 1 / 0)
    results = [app(environ, lambda *args: bool), app(environ, lambda *args: bool)]
    with pytest.raises(ZeroDivisionError):
        broken(environ, lambda *args: bool)
    assert (results, environ[KEY] is present, events) == ([[], []], True, [])
    run_callbacks(present)
    getattr(app(environ, lambda *args: bool), "close", bool)()
    assert len(events) == 2 + (kind is CallbackList)  # which has ended: the call had its own list
    assert (environ[KEY] is present) == (kind is not CallbackList)
