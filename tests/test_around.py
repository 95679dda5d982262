"""``around=``: a context manager around each callback."""

from __future__ import annotations

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from logging import ERROR
from threading import get_ident
from types import SimpleNamespace

import pytest
from conftest import Exchange, hello, is_freed, make_environ, messages, registers
from interleave import interruptions

from wsgi_after import AfterResponseMiddleware, run_callbacks
from wsgi_after._core import process
from wsgi_after.integration import open_request
from wsgi_after.moment import KEY, Slot


@pytest.fixture
def around(events):
    """Records its arguments and the exceptions that it sees."""

    @contextmanager
    def around(callback, after):
        events.append(("enter", callback, after.status))
        try:
            yield
        except BaseException as error:
            events.append(("saw", type(error)))
            raise
        finally:
            events.append("leave")

    return around


@pytest.fixture
def brief(events):
    """Records when it is entered and left."""

    @contextmanager
    def around(callback, after):
        events.append("in")
        yield
        events.append("out")

    return around


def fails():
    raise ValueError("on purpose")


class Fails:
    """A context manager that raises at a given place."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def __call__(self, callback, after):
        if self.where == "call":
            raise self.error
        return object() if self.where == "no context manager" else self

    def __enter__(self):
        if self.where == "enter":
            raise self.error

    def __exit__(self, *details):
        if self.where == "exit":
            raise self.error


async def not_run(): ...


def test_it_is_entered_around_each_callback_and_sees_what_that_raises(events, around, caplog):
    first = partial(events.append, "first")
    Exchange(registers(first, fails, not_run, around=around)).finish()
    enter = [("enter", fn, "200 OK") for fn in (first, fails, not_run)]
    assert events == [
        *(enter[0], "first", "leave"),
        *(enter[1], ("saw", ValueError), "leave"),
        *(enter[2], "leave"),
    ]
    failed, returned = messages(caplog, ERROR)
    assert failed == f"Callback {__name__}.fails of GET /path failed."
    assert "returned a coroutine" in returned


def test_it_is_around_app_wide_callbacks_and_those_that_a_callback_registers(events, brief):
    application = AfterResponseMiddleware(hello, around=brief)
    application.after_response(lambda environ: environ["wsgi.after"](events.append, "nested"))
    Exchange(application).finish()
    assert events == ["in", "out", "in", "nested", "out"]


def test_it_is_around_the_callbacks_in_a_pool(events, around, caplog):
    first = partial(events.append, "first")
    with ThreadPoolExecutor(1) as pool:
        Exchange(registers(first, around=around, executor=pool)).finish()
        pool.submit(int).result()
        Exchange(registers(first, around=Fails("enter", OSError()), executor=pool)).finish()
    assert events == [("enter", first, "200 OK"), "first", "leave", "first"]
    [message] = messages(caplog, ERROR)
    assert "of GET /path" in message


@pytest.mark.parametrize("pooled", [False, True])
def test_it_is_entered_in_the_thread_and_context_of_the_callback(pooled, events):
    variable = ContextVar("variable", default=None)

    @contextmanager
    def around(callback, after):
        token = variable.set(get_ident())
        yield
        variable.reset(token)

    def note():
        events.append(variable.get() == get_ident())

    with ThreadPoolExecutor(1) as pool:
        application = registers(note, note, around=around, executor=pool if pooled else None)
        Exchange(application).finish()
    assert (events, variable.get()) == ([True, True], None)


def test_it_belongs_to_the_instance_that_made_the_list(events):
    def named(name):
        return lambda callback, after: events.append(name) or nullcontext()

    inner = registers(partial(events.append, "callback"), around=named("inner"))
    Exchange(AfterResponseMiddleware(inner, around=named("outer"))).finish()
    Exchange(AfterResponseMiddleware(inner)).finish()
    assert events == ["outer", "callback", "callback"]


def test_a_request_that_is_opened_by_hand_has_it_too(events, around):
    environ = make_environ()
    callback = partial(events.append, "callback")
    with open_request(environ, around=around) as request:
        request.after.append(callback)
    request.closer()()
    assert events == [("enter", callback, None), "callback", "leave"]


def test_it_is_not_pickled(around):
    sent = []
    queue = SimpleNamespace(submit=lambda fn, after, label: sent.append(pickle.dumps(after)))
    Exchange(registers(os.getpid, around=around, executor=queue)).finish()
    assert pickle.loads(sent[0]) == [os.getpid]


def test_nothing_is_kept(around):
    assert is_freed(registers(int, around=around))
    assert is_freed(registers(fails, around=lambda callback, after: suppress(ValueError)))


@pytest.mark.parametrize("callback_fails", [False, True])
@pytest.mark.parametrize("where", ["call", "no context manager", "enter", "exit"])
@pytest.mark.parametrize("error", [OSError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_if_entering_or_leaving_raises_that_is_logged_and_each_callback_runs_once(
    error, where, callback_fails, events, caplog
):
    """An exception that must go on does so when all have run."""

    def callback():
        events.append("callback")
        if callback_fails:
            raise ValueError

    def around(callback, after):
        return fails(callback, after) if not events else nullcontext()  # for the first only

    fails = Fails(where, error)
    goes_on = isinstance(error, KeyboardInterrupt) and where != "no context manager"
    exchange = Exchange(registers(callback, partial(events.append, "last"), around=around))
    with pytest.raises(KeyboardInterrupt) if goes_on else nullcontext():
        exchange.finish()
    assert events == ["callback", "last"]
    told = [
        "failed" if "failed." in message else "around" if "passed as around=" in message else ""
        for message in messages(caplog, ERROR)
    ]
    assert told == [*["around"] * (not goes_on), *["failed"] * callback_fails]


def interrupts():
    raise KeyboardInterrupt


@pytest.mark.parametrize("callback", [fails, interrupts])
def test_it_may_suppress_a_failure_but_not_what_has_to_go_on(callback, events, caplog):
    def around(callback, after):
        return suppress(BaseException)

    exchange = Exchange(registers(callback, partial(events.append, "last"), around=around))
    with pytest.raises(KeyboardInterrupt) if callback is interrupts else nullcontext():
        exchange.finish()
    assert (events, messages(caplog, ERROR)) == (["last"], [])


def test_what_it_raises_in_place_of_a_failure_is_logged_and_the_failure_is_too(caplog):
    @contextmanager
    def around(callback, after):
        try:
            yield
        except ValueError as error:
            raise OSError from error

    Exchange(registers(fails, around=around)).finish()
    kinds = [record.exc_info[0] for record in caplog.records]
    assert kinds == [OSError, ValueError]


def generator(callback, after):
    yield


async def coroutine(callback, after):
    pass


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (nullcontext(), r"around= expects .*, not nullcontext: <contextlib\.null"),
        (generator, r"without @contextlib\.contextmanager"),
        (coroutine, "around= expects a function"),
        (lambda callback: nullcontext(), "takes the callback and the list"),
    ],
)
def test_something_else_is_a_type_error(wrong, told):
    with pytest.raises(TypeError, match=told):
        AfterResponseMiddleware(hello, around=wrong)
    with pytest.raises(TypeError, match=told):
        open_request({}, around=wrong)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, TimeoutError])
def test_whatever_a_handler_of_a_signal_raises_wherever_all_callbacks_run_once(
    error, caplog, events
):
    @contextmanager
    def around(callback, after):
        yield

    def noted():
        events.append("fails")
        fails()

    def make():
        events.clear()
        callbacks = partial(events.append, "first"), noted, partial(events.append, "last")
        request = Exchange(registers(*callbacks, around=around))
        assert list(request.result) == [b"hello"]
        return request.result.close

    caplog.set_level(100, "wsgi_after")
    went_on = (type(None), error) if error is TimeoutError else (error,)
    wrong = []
    for place, interruption in enumerate(interruptions(make, error)):
        came_out = type(interruption.came_out)
        interruption.forget()
        if not events:  # close() had not begun, and the traceback held the body
            gc.collect()
            Exchange(AfterResponseMiddleware(hello)).finish()  # ends what the collector has found
        if events != ["first", "fails", "last"] or came_out not in went_on:
            wrong.append((place, events[:], came_out))
    assert (wrong, place > 50) == ([], True)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("where", ["enter", "callback", "exit"])
def test_in_a_child_that_was_forked_meanwhile_nothing_runs(where, raises, events, monkeypatch):
    """Only increment the counter of forks: seeing what the child does needs no process."""

    def fork(here):
        if here == where:
            monkeypatch.setattr(process, "forks", process.forks + 1)
            if raises:
                raise ZeroDivisionError

    @contextmanager
    def around(callback, after):
        fork("enter")
        yield
        fork("exit")

    def first():
        events.append("first")
        fork("callback")

    exchange = Exchange(registers(first, partial(events.append, "last"), around=around))
    with pytest.raises(ZeroDivisionError) if raises else nullcontext():
        exchange.finish()
    assert events == ["first"] * (where != "enter")


class Aside(partial):
    is_aside = True


def on_success(events, after):
    after.on_success(events.append, "fn")


def by_the_app_itself(events, after):
    on_success(events, after)
    run_callbacks(after)  # before there is a status


def aside(events, after):
    after.append(Aside(events.append, "aside"))


@pytest.mark.parametrize(
    ("register", "status", "expected"),
    [
        (on_success, "200 OK", ["in", "fn", "out"]),
        (on_success, "500 E", []),
        (by_the_app_itself, "200 OK", []),
        (aside, "200 OK", ["aside"]),
    ],
)
def test_it_is_not_entered_for_what_is_not_to_run_or_no_callback(
    register, status, expected, events, brief
):
    def app(environ, start_response):
        register(events, environ["wsgi.after"])
        start_response(status, [])
        return []

    Exchange(AfterResponseMiddleware(app, around=brief)).finish()
    assert events == expected


def test_at_a_moment_the_servers_sign_of_life_comes_first(events, brief):
    slot = Slot(before_each=partial(events.append, "alive"))
    application = registers(partial(events.append, "fn"), around=brief)
    Exchange(application, make_environ(**{KEY: slot})).finish()
    events.append("closed")
    slot.run()
    assert events == ["closed", "alive", "in", "fn", "out"]


def test_a_callback_before_which_a_signal_handler_raised_runs_all_the_same(events):
    """Like the interruptions above, which tools that measure coverage cannot see."""
    exchange = Exchange(registers(partial(events.append, "fn"), around=lambda *_: nullcontext()))
    after = exchange.environ["wsgi.after"]
    call = after._call

    def interrupted(taken, request):
        if "interrupted" not in events:
            events.append("interrupted")
            raise KeyboardInterrupt
        return call(taken, request)

    after._call = interrupted
    with pytest.raises(KeyboardInterrupt):
        exchange.finish()
    assert events == ["interrupted", "fn"]
