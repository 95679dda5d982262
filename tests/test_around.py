"""``around=``: a context manager around each callback."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from logging import ERROR
from threading import get_ident

import pytest
from commands import environment
from conftest import Exchange, hello, is_freed, make_environ, messages, registers
from interleave import interruptions

from wsgi_after import AfterResponseMiddleware, run_callbacks
from wsgi_after._core import process
from wsgi_after.integration import open_request
from wsgi_after.moment import KEY, Slot


@pytest.fixture
def around(events):
    """Tells what it was given, and what it sees."""

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


def fails():
    raise ValueError("on purpose")


def test_it_is_entered_around_each_callback_and_sees_what_that_raises(events, around, caplog):
    first = partial(events.append, "first")
    Exchange(registers(first, fails, around=around)).finish()
    enter = [("enter", fn, "200 OK") for fn in (first, fails)]
    seen = ("saw", ValueError)
    assert events == [enter[0], "first", "leave", enter[1], seen, "leave"]
    assert messages(caplog, ERROR) == [f"Callback {__name__}.fails of GET /path failed."]


def test_it_is_around_app_wide_callbacks_and_those_that_a_callback_registers(events):
    def around(callback, after):
        events.append("enter")
        return nullcontext()

    def nested(environ):
        environ["wsgi.after"].append(partial(events.append, "nested"))

    application = AfterResponseMiddleware(hello, around=around)
    application.after_response(nested)
    Exchange(application).finish()
    assert events == ["enter", "enter", "nested"]


def test_it_is_around_the_callbacks_in_a_pool(events, around, caplog):
    def fails_to_enter(callback, after):
        raise OSError

    first = partial(events.append, "first")
    with ThreadPoolExecutor(1) as pool:
        Exchange(registers(first, around=around, executor=pool)).finish()
        pool.submit(int).result()
        Exchange(registers(first, around=fails_to_enter, executor=pool)).finish()
    assert events == [("enter", first, "200 OK"), "first", "leave", "first"]
    [message] = messages(caplog, ERROR)
    assert "builtins.list.append of GET /path" in message or "of GET /path" in message


@pytest.mark.parametrize("pooled", [False, True])
def test_it_is_entered_in_the_thread_and_context_of_the_callback(pooled, events):
    variable = ContextVar("variable", default=None)

    @contextmanager
    def around(callback, after):
        token = variable.set(get_ident())
        try:
            yield
        finally:
            variable.reset(token)

    def note():
        events.append(variable.get() == get_ident())

    with ThreadPoolExecutor(1) as pool:
        options = {"executor": pool} if pooled else {}
        Exchange(registers(note, partial(note), around=around, **options)).finish()
    assert events == [True, True]
    assert variable.get() is None


def test_it_belongs_to_the_instance_that_made_the_list(events):
    def named(name):
        return lambda callback, after: events.append(name) or nullcontext()

    inner = registers(partial(events.append, "callback"), around=named("inner"))
    Exchange(AfterResponseMiddleware(inner, around=named("outer"))).finish()
    assert events == ["outer", "callback"]
    events.clear()
    Exchange(AfterResponseMiddleware(inner)).finish()
    assert events == ["callback"]


def test_a_request_that_is_opened_by_hand_has_it_too(events, around):
    environ = make_environ()
    callback = partial(events.append, "callback")
    with open_request(environ, around=around) as request:
        request.after.append(callback)
    request.closer()()
    assert events == [("enter", callback, None), "callback", "leave"]


def test_it_is_not_pickled(around):
    class Sends:
        def submit(self, fn, callbacks, label):
            self.sent = pickle.dumps(callbacks)

    queue = Sends()
    Exchange(registers(os.getpid, around=around, executor=queue)).finish()
    assert pickle.loads(queue.sent) == [os.getpid]


def test_nothing_is_kept(around):
    assert is_freed(registers(int, around=around))
    assert is_freed(registers(fails, around=lambda callback, after: suppress(ValueError)))


class Fails:
    """A context manager that raises where it is told to."""

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


@pytest.mark.parametrize("callback_fails", [False, True])
@pytest.mark.parametrize("where", ["call", "no context manager", "enter", "exit"])
def test_if_entering_or_leaving_raises_that_is_logged_and_each_callback_runs_once(
    events, caplog, where, callback_fails
):
    def callback():
        events.append("callback")
        if callback_fails:
            raise ValueError

    app = registers(callback, partial(events.append, "last"), around=Fails(where, OSError()))
    Exchange(app).finish()
    assert events == ["callback", "last"]
    told = [
        "failed" if "failed." in message else "around" if "passed as around=" in message else ""
        for message in messages(caplog, ERROR)
    ]
    assert told == ["around", *["failed"] * callback_fails, "around"]


@pytest.mark.parametrize("callback_fails", [False, True])
@pytest.mark.parametrize("where", ["call", "enter", "exit"])
def test_what_has_to_go_on_goes_on_after_all_callbacks_ran_once(
    events, caplog, where, callback_fails
):
    def callback():
        events.append("callback")
        if callback_fails:
            raise ValueError

    fails = Fails(where, KeyboardInterrupt())
    app = registers(
        callback,
        partial(events.append, "last"),
        around=lambda callback, after: (
            nullcontext() if events else fails(callback, after)  # for the first only
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        Exchange(app).finish()
    assert events == ["callback", "last"]
    assert len(messages(caplog, ERROR)) == callback_fails


def test_it_may_suppress_a_failure_but_not_what_has_to_go_on(events, caplog):
    def interrupts():
        raise KeyboardInterrupt

    last = partial(events.append, "last")
    around = lambda callback, after: suppress(BaseException)  # noqa: E731
    Exchange(registers(fails, last, around=around)).finish()
    with pytest.raises(KeyboardInterrupt):
        Exchange(registers(interrupts, last, around=around)).finish()
    assert (events, messages(caplog, ERROR)) == (["last"] * 2, [])


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


def test_a_coroutine_function_is_told_as_ever(around, caplog):
    async def callback():
        pass

    Exchange(registers(callback, around=around)).finish()
    [message] = messages(caplog, ERROR)
    assert "returned a coroutine" in message


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
def test_whatever_a_handler_of_a_signal_raises_wherever_all_callbacks_run_once(error, caplog):
    events = []

    @contextmanager
    def around(callback, after):
        yield

    def fails():
        events.append("fails")
        raise ValueError

    def make():
        events.clear()
        callbacks = partial(events.append, "first"), fails, partial(events.append, "last")
        request = Exchange(registers(*callbacks, around=around))
        assert list(request.result) == [b"hello"]
        return request.result.close

    caplog.set_level(100, "wsgi_after")
    wrong = []
    for place, interruption in enumerate(interruptions(make, error)):
        came_out = type(interruption.came_out)
        interruption.forget()
        if not events:  # the traceback held the body, where close() had not begun
            gc.collect()
            Exchange(AfterResponseMiddleware(hello)).finish()  # ends what the collector has found
        if events != ["first", "fails", "last"] or came_out not in went_on(error):
            wrong.append((place, events[:], came_out))
    assert (wrong, place > 50) == ([], True)


def went_on(error):
    return (type(None), error) if error is TimeoutError else (error,)


FORKS = """
import os, sys
from contextlib import contextmanager
sys.path.insert(0, {tests!r})
from conftest import Exchange, registers

parent = os.getpid()
events = os.open("events", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
def tell(text):
    os.write(events, (text if os.getpid() == parent else "CHILD " + text).encode() + b"\\n")

def fork():
    if os.fork():
        os.wait()
    elif {raises}:
        raise ValueError

@contextmanager
def around(callback, after):
    if {where!r} == "enter" and callback is first: fork()
    yield
    if {where!r} == "exit" and callback is first: fork()

def first():
    tell("first")
    if {where!r} == "callback": fork()

def last():
    tell("last")

try:
    Exchange(registers(first, last, around=around)).finish()
except ValueError:
    pass
tell("end")
os._exit(0)
"""


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("where", ["enter", "callback", "exit"])
def test_in_a_child_that_was_forked_meanwhile_nothing_runs(tmp_path, where, raises):
    source = FORKS.format(tests=os.path.dirname(__file__), where=where, raises=raises)
    argv = [sys.executable, "-c", source]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "events").read_text().split("\n")[:-1]
    assert sorted(told) == ["CHILD end", "end", "first", "last"]


@pytest.mark.parametrize(("status", "expected"), [("200 OK", ["in", "fn", "out"]), ("500 E", [])])
def test_it_is_not_entered_for_a_callback_that_is_not_to_run(status, expected, events):
    @contextmanager
    def around(callback, after):
        events.append("in")
        yield
        events.append("out")

    def app(environ, start_response):
        environ["wsgi.after"].on_success(events.append, "fn")
        start_response(status, [])
        return []

    Exchange(AfterResponseMiddleware(app, around=around)).finish()
    assert events == expected


def test_at_a_moment_the_servers_sign_of_life_comes_first(events):
    @contextmanager
    def around(callback, after):
        events.append("in")
        yield
        events.append("out")

    slot = Slot(before_each=partial(events.append, "alive"))
    application = registers(partial(events.append, "fn"), around=around)
    Exchange(application, make_environ(**{KEY: slot})).finish()
    events.append("closed")
    slot.run()
    assert events == ["closed", "alive", "in", "fn", "out"]


@pytest.mark.parametrize("fails", [False, True])
def test_in_a_child_that_entering_forked_nothing_runs(fails, events, monkeypatch):
    """Only the counter of forks is moved: no process is needed to see what the child does."""

    @contextmanager
    def forks(callback, after):
        monkeypatch.setattr(process, "forks", process.forks + 1)
        yield
        if fails:
            raise ZeroDivisionError

    exchange = Exchange(registers(partial(events.append, "fn"), around=forks))
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        exchange.finish()
    assert events == []


def test_a_callback_before_which_a_signal_handler_raised_runs_all_the_same(events):
    """As the interruptions above, which no tool that measures coverage can see."""
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


def test_what_is_aside_is_no_callback_to_be_around(events):
    class Aside(partial):
        is_aside = True

    @contextmanager
    def around(callback, after):
        events.append("in")
        yield

    application = registers(Aside(events.append, "aside"), around=around)
    Exchange(application).finish()
    assert events == ["aside"]


def test_an_app_that_runs_its_list_itself_does_not_enter_what_is_not_to_run(events):
    def app(environ, start_response):
        environ["wsgi.after"].on_success(events.append, "fn")
        run_callbacks(environ["wsgi.after"])  # before there is a status
        return hello(environ, start_response)

    def around(callback, after):
        events.append("in")
        return nullcontext()

    Exchange(AfterResponseMiddleware(app, around=around)).finish()
    assert events == []
