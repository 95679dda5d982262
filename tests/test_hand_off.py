"""``executor=``: one job for a request; no callback is lost or run twice, and nothing is kept."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from conftest import Exchange, Refuses, hello, is_freed, make_environ, messages, registers

from wsgi_after import AfterResponseMiddleware, after_this_response, run_callbacks
from wsgi_after._core.finish import finish

pytestmark = pytest.mark.usefixtures("throttles")


class Queue:
    """An executor that keeps its jobs, for the test to run."""

    def __init__(self):
        self.jobs = []
        self.futures = []

    def submit(self, fn, *args):
        self.jobs.append((fn, *args))
        self.futures.append(Future())
        return self.futures[-1]

    def run(self):
        """Run the first job, as a worker does."""
        (fn, *args), future = self.jobs.pop(0), self.futures.pop(0)
        try:
            future.set_result(fn(*args))
        except BaseException as error:
            future.set_exception(error)


@pytest.fixture
def queue():
    return Queue()


def serve(executor, *callbacks, app=hello, **extra):
    """Serve one request to an app that registers these; return its list after ``close()``."""
    exchange = Exchange(registers(*callbacks, app=app, executor=executor), make_environ(**extra))
    assert exchange.finish() == [b"hello"]
    return exchange.environ["wsgi.after"]


def failing():
    raise ValueError("on purpose")


# The job


@pytest.mark.parametrize("executor", [object(), "pool", 4, ThreadPoolExecutor.__mro__])
def test_an_executor_without_submit_is_refused_at_construction(executor):
    with pytest.raises(TypeError, match=r"expects an object with submit\(fn, \*args\)"):
        AfterResponseMiddleware(hello, executor=executor)


def test_a_request_with_callbacks_is_one_job_that_names_it(queue, events, caplog):
    serve(queue)
    after = serve(queue, failing, partial(events.append, 1), PATH_INFO="/failing")
    assert (queue.jobs, events) == ([(run_callbacks, after, "GET /failing")], [])
    queue.run()
    assert events == [1]
    message = f"Callback {__name__}.failing of GET /failing failed."
    assert messages(caplog, logging.ERROR) == [message]


def test_the_list_ends_when_the_job_has_run(queue, events):
    """Until then it is the current list in the job, and takes callbacks."""
    after = serve(queue, partial(after_this_response, events.append, "by a callback"))
    after(events.append, "while it waits")
    queue.run()
    assert events == ["while it waits", "by a callback"]
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(print)
    with pytest.raises(RuntimeError, match="outside a request"):
        after_this_response(print)


def breaks_at_once(environ, start_response):
    failing()


def breaks(environ, start_response):
    start_response("200 OK", [])
    yield b"hello"
    failing()


@pytest.mark.parametrize(("app", "status"), [(breaks_at_once, None), (breaks, "200 OK")])
def test_the_job_knows_what_became_of_the_response(app, status, queue, events):
    def look():
        events.append((after.status, after.completed, repr(after.error)))

    environ = make_environ()
    with pytest.raises(ValueError, match="on purpose"):
        Exchange(registers(look, app=app, executor=queue), environ).finish()
    after = environ["wsgi.after"]
    queue.run()
    assert events == [(status, False, "ValueError('on purpose')")]
    assert after.error is None


QUEUE = Queue()


@pytest.mark.parametrize(
    ("outer", "inner"), [(None, QUEUE), (Refuses(AssertionError), QUEUE), (QUEUE, None)]
)
def test_where_instances_share_a_list_the_innermost_executor_counts(outer, inner, events):
    application = registers(partial(events.append, "app"), executor=inner)
    application.after_response(lambda environ: events.append("inner"))
    after = serve(outer, app=application)
    assert (after.executor, events) == (QUEUE, [])
    QUEUE.run()
    assert events == ["inner", "app"]


# Nothing kept


@pytest.mark.parametrize("ends_by", ["job", "cancellation", "another process"])
def test_with_the_garbage_collector_off_the_environ_is_freed(ends_by, queue):
    # While the job still waits. The server's start_response() and write() must not be kept either.
    assert is_freed(registers(print, executor=queue))
    if ends_by == "job":
        queue.run()
    elif ends_by == "cancellation":
        queue.futures[0].cancel()
    else:
        queue.futures[0].set_result(None)


# Nothing lost: the executor refuses


def pool_that_was_shut_down():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    return pool


@pytest.mark.parametrize(
    ("executor", "error"),
    [
        (Refuses(RuntimeError("full")), "RuntimeError: full"),
        (Refuses(pickle.PicklingError("no")), "PicklingError: no"),
        (Refuses(SystemExit(3)), "SystemExit: 3"),
        (pool_that_was_shut_down(), "RuntimeError: cannot schedule new futures after shutdown"),
    ],
)
def test_what_the_executor_refuses_runs_in_close_with_a_warning(executor, error, events, caplog):
    serve(executor, partial(events.append, 1))
    assert events == [1]
    [warning] = messages(caplog, logging.WARNING)
    assert f"refused the callbacks of GET /path ({error}), so they run in close()" in warning


@pytest.mark.parametrize(
    ("app", "kind"), [(hello, KeyboardInterrupt), (breaks_at_once, ValueError)]
)
def test_an_interrupt_out_of_submit_is_let_out_after_the_callbacks_ran(app, kind, events):
    """But it does not replace an exception of the app."""
    with pytest.raises(kind):
        serve(Refuses(KeyboardInterrupt()), partial(events.append, 1), app=app)
    assert events == [1]


def test_an_executor_that_raised_is_not_asked_again_after_an_interruption(events, monkeypatch):
    """A signal handler raises while the refusal is being logged."""

    class Interrupts(logging.Handler):
        def handle(self, record):
            raise KeyboardInterrupt

    class Counts(Refuses):
        def submit(self, fn, *args):
            events.append("asked")
            super().submit(fn, *args)

    monkeypatch.setattr(logging.getLogger("wsgi_after"), "handlers", [Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        serve(Counts(), partial(events.append, 1))
    assert events == ["asked", 1]


def test_an_executor_that_takes_a_job_and_then_raises_runs_it_once(events):
    """``ThreadPoolExecutor`` does that if it cannot start a thread."""

    class Both(Queue):
        def submit(self, fn, *args):
            super().submit(fn, *args)
            raise RuntimeError("can't start new thread")

    queue = Both()
    serve(queue, partial(events.append, 1), partial(events.append, 2))
    queue.run()
    assert events == [1, 2]


# Nothing twice: the executor accepts a job, then loses it


@pytest.mark.parametrize(
    ("end", "is_lost"),
    [
        (lambda future: future.cancel(), True),
        (lambda future: future.set_exception(OSError("the worker was killed")), True),
        (lambda future: future.set_result(None), False),  # another process has run it
    ],
)
def test_a_job_that_is_lost_is_logged_and_never_run(end, is_lost, queue, events, caplog):
    after = serve(queue, partial(events.append, 1), PATH_INFO="/lost")
    end(queue.futures[0])
    logged = [message[:36] for message in messages(caplog, logging.ERROR)]
    assert logged == ["The callbacks of GET /lost are lost:"] * is_lost
    queue.jobs[0][0](*queue.jobs[0][1:])  # even if it is run after all
    assert events == []
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(print)


class GeventFuture:
    """A future whose ``exception()`` raises the job's exception."""

    def add_done_callback(self, fn):
        fn(self)

    def exception(self):
        raise OSError("the job's")


SPAWN = get_context("spawn")  # a fork of a process with threads is deprecated


@pytest.mark.parametrize("by", ["a shutdown", "pickling", "gevent's future"])
def test_a_job_that_a_real_pool_loses_is_logged(by, events, caplog):
    """A pool of processes accepts a job before it notices that it cannot pickle it."""
    callback, go_on = partial(events.append, 1), threading.Event()
    if by == "a shutdown":
        pool = ThreadPoolExecutor(1)
        pool.submit(go_on.wait)
        serve(pool, callback)
        pool.shutdown(wait=False, cancel_futures=True)
        go_on.set()
    elif by == "pickling":
        with ProcessPoolExecutor(1, mp_context=SPAWN) as processes:
            serve(processes, callback, lambda: None)
    else:
        serve(SimpleNamespace(submit=lambda *job: GeventFuture()), callback)
    assert events == []
    (error,) = messages(caplog, logging.ERROR)
    assert error.startswith("The callbacks of GET /path are lost")


def test_what_a_callback_lets_out_of_the_job_is_logged(queue, events, caplog):
    def interrupt():
        raise KeyboardInterrupt

    serve(queue, interrupt, partial(events.append, "ran"))
    queue.run()
    assert events == ["ran"]
    assert messages(caplog, logging.ERROR) == [
        "An exception of a callback of GET /path left the executor's job after the others had run. "
        "It is of a kind that is not contained, such as KeyboardInterrupt."
    ]
    assert caplog.records[0].exc_info[0] is KeyboardInterrupt


def test_a_future_that_takes_no_callback_does_not_make_the_job_run_twice(events, capsys):
    class BrokenFuture:
        def add_done_callback(self, fn):
            raise OSError("on purpose")

    class Executor(Queue):
        def submit(self, fn, *args):
            super().submit(fn, *args)
            return BrokenFuture()

    queue = Executor()
    serve(queue, partial(events.append, 1))
    assert events == []
    queue.run()
    assert events == [1]
    assert "on purpose" in capsys.readouterr().err


# To another process


class Broker:
    """A queue that sends jobs to other processes, and returns no future."""

    def __init__(self, late):
        self.late = late

    def submit(self, *job):
        self.job = job
        if not self.late:
            self.send()

    def send(self):
        self.sent = pickle.dumps(self.job)


@pytest.mark.parametrize("late", [False, True])
def test_what_comes_after_a_job_has_left_the_process_is_refused(late):
    """Nothing would run a late callback: the broker has a plain list without it."""
    broker = Broker(late)
    after = serve(broker, partial(int, "1"))
    if late:
        after.append(partial(int, "2"))
        broker.send()
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(partial(int, "3"))
    (_, sent, label) = pickle.loads(broker.sent)
    assert (type(sent), label) == (list, "GET /path")
    assert [callback() for callback in sent] == [1, 2][: 1 + late]


def test_a_job_that_was_pickled_for_a_broker_that_cannot_be_reached_runs_here(events):
    class Unreachable(Broker):
        def send(self):
            super().send()
            raise ConnectionError("no broker")

    after = serve(Unreachable(late=False), partial(events.append, "ran"))
    assert (events, after.ended) == (["ran"], True)


def test_a_job_that_has_left_the_process_keeps_no_exception_of_the_app_here():
    environ = make_environ()
    with pytest.raises(ValueError, match="on purpose"):
        Exchange(registers(int, app=breaks_at_once, executor=Broker(late=False)), environ)
    assert (environ["wsgi.after"].ended, environ["wsgi.after"].error) == (True, None)


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy])
def test_a_copy_of_the_list_while_its_job_waits_ends_nothing(copies, queue, events):
    """Debug toolbars and error reporters copy what they can."""
    after = serve(queue, partial(events.append, 1))
    assert copies(after) == after
    after.append(partial(events.append, 2))
    queue.run()
    assert events == [1, 2]


def test_a_finalizer_runs_them_in_place(queue, events):
    exchange = Exchange(registers(partial(events.append, "ran"), executor=queue))
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
    assert (events, queue.jobs) == (["ran"], [])


def test_a_body_that_outlives_an_interruption_leaves_the_list_to_its_job(queue, events):
    """A signal came after the body was made, before it was returned: its finder closes it."""
    exchange = Exchange(registers(lambda: first(), executor=queue))
    after = exchange.environ["wsgi.after"]

    def first():
        exchange.result.close()
        after.append(partial(events.append, "registered by the first"))

    finish(after, KeyboardInterrupt())  # as the middleware does then
    queue.run()
    assert (events, after.ended) == (["registered by the first"], True)


# uWSGI, which reuses the environ


@pytest.mark.parametrize("given", ["outer", "inner", "none"])
def test_where_the_server_reuses_the_environ_the_app_gets_a_copy_with_an_executor(
    given, queue, events
):
    """A call that a middleware in between binds to the environ keeps its other arguments."""

    def look(environ, *args, **kwargs):
        events.append((environ.get("PATH_INFO"), args, kwargs))

    def app(environ, start_response):
        environ["wsgi.after"](lambda: look(environ))
        return hello(environ, start_response)

    def between(environ, start_response):
        environ["wsgi.after"](look, environ, 1, two=2)
        return inner(environ, start_response)

    inner = AfterResponseMiddleware(app, executor=queue if given == "inner" else None)
    application = AfterResponseMiddleware(between, executor=queue if given == "outer" else None)
    application.after_response(look)
    exchange = Exchange(application, make_environ(**{"uwsgi.version": b"2.0.31"}))
    exchange.finish()
    exchange.environ.clear()  # as uWSGI does before it takes the next request
    if given != "none":
        queue.run()
    assert events == [("/path", (), {}), ("/path", (1,), {"two": 2}), ("/path", (), {})]


# Slow callbacks


@pytest.fixture
def clock(monkeypatch):
    """The current time, which a callback may advance."""
    clock = [1000.0]
    for module in ("run", "logs"):
        monkeypatch.setattr(f"wsgi_after._core.{module}.monotonic", lambda: clock[0])
    return clock


def sleep(clock, seconds):
    clock[0] += seconds


def test_a_slow_callback_in_close_is_reported_once_a_minute(clock, caplog):
    slow = partial(sleep, clock, 1.5)
    for _ in range(2):
        serve(None, slow, slow)
    assert len(messages(caplog, logging.WARNING)) == 1
    clock[0] += 60
    serve(None, slow)
    first, second = messages(caplog, logging.WARNING)
    assert first.startswith(f"Callback {__name__}.sleep of GET /path took 1.5 seconds in close().")
    assert "Pass executor=" in first
    assert first.endswith("put its work into a queue.")
    assert second.endswith(" There were 4 slow callbacks since this was last logged.")


def test_a_second_is_not_slow_and_in_an_executor_nothing_is(clock, queue, caplog):
    serve(None, partial(sleep, clock, 1))
    serve(queue, partial(sleep, clock, 30))
    queue.run()
    assert caplog.records == []
