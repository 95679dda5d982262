"""``executor=``: one job for a request, nothing lost, nothing twice, nothing kept."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
import weakref
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
from conftest import (
    Exchange,
    Immediately,
    Marker,
    Refuses,
    collector_off,
    hello,
    is_freed,
    make_environ,
    messages,
)

from wsgi_after import (
    AfterResponseMiddleware,
    CallbackList,
    after_this_response,
    run_callbacks,
)
from wsgi_after.integration import current_list

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


def serve(executor, *registered, app=None, **extra):
    """One request to an app that registers these; return its exchange, which has ended."""

    def register(environ, start_response):
        for callback in registered:
            environ["wsgi.after"].append(callback)
        return (app or hello)(environ, start_response)

    application = AfterResponseMiddleware(register, executor=executor)
    exchange = Exchange(application, make_environ(**extra))
    assert exchange.finish() == [b"hello"]
    return exchange


def failing():
    raise ValueError("on purpose")


# The job


@pytest.mark.parametrize("executor", [object(), "pool", 4, ThreadPoolExecutor.__mro__])
def test_an_executor_without_submit_is_refused_at_construction(executor):
    with pytest.raises(TypeError, match=r"expects an object with submit\(fn, \*args\)"):
        AfterResponseMiddleware(hello, executor=executor)


def test_a_request_is_one_job_that_names_it(queue, events):
    exchange = serve(queue, partial(events.append, 1), partial(events.append, 2))
    assert queue.jobs == [(run_callbacks, exchange.environ["wsgi.after"], "GET /path")]
    assert events == []
    queue.run()
    assert events == [1, 2]


def test_a_request_without_callbacks_is_no_job(queue):
    serve(queue)
    assert queue.jobs == []


def test_a_failing_callback_is_logged_with_its_request_and_the_others_run(queue, events, caplog):
    serve(queue, failing, partial(events.append, "ran"), PATH_INFO="/failing")
    queue.run()
    assert events == ["ran"]
    message = f"Callback {failing.__module__}.failing of GET /failing failed."
    assert messages(caplog, logging.ERROR) == [message]


def test_the_list_ends_when_the_job_has_run(queue, events):
    after = serve(queue, partial(events.append, 1)).environ["wsgi.after"]
    after(events.append, "until then")
    queue.run()
    assert events == [1, "until then"]
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(print)


def test_in_the_job_the_current_request_is_the_jobs_own(queue, events):
    serve(queue, partial(after_this_response, events.append, "registered by a callback"))
    queue.run()
    assert events == ["registered by a callback"]
    with pytest.raises(RuntimeError, match="outside a request"):
        after_this_response(print)


def test_the_job_knows_what_became_of_the_response(queue, events):
    def broken(environ, start_response):
        start_response("200 OK", [])
        yield b"hello"
        failing()

    def look():
        events.append((after.status, after.completed, repr(after.error)))

    with pytest.raises(ValueError, match="on purpose") as raised:
        serve(queue, look, app=broken)
    frame = raised.tb.tb_next.tb_frame
    after = frame.f_locals["exchange"].environ["wsgi.after"]
    queue.run()
    assert events == [("200 OK", False, "ValueError('on purpose')")]
    assert after.error is None


@pytest.mark.parametrize("executor", ["queue", None])
def test_an_app_that_raises_before_it_returns_has_its_callbacks_run_by_the_same_rule(
    executor, queue, events
):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "callback"))
        failing()

    application = AfterResponseMiddleware(app, executor=queue if executor else None)
    with pytest.raises(ValueError, match="on purpose"):
        Exchange(application)
    assert events == ([] if executor else ["callback"])
    assert len(queue.jobs) == (1 if executor else 0)


@pytest.mark.parametrize("outer", [None, Refuses(AssertionError)])
def test_where_instances_share_a_list_the_innermost_executor_counts(outer, queue, events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "app"))
        return hello(environ, start_response)

    inner = AfterResponseMiddleware(app, executor=queue)
    inner.after_response(lambda environ: events.append("inner"))
    exchange = Exchange(AfterResponseMiddleware(inner, executor=outer))
    assert exchange.environ["wsgi.after"].executor is queue
    exchange.finish()
    queue.run()
    assert events == ["inner", "app"]


def test_an_inner_instance_without_an_executor_leaves_the_outer_ones(queue, events):
    serve(queue, partial(events.append, 1), app=AfterResponseMiddleware(hello))
    assert (events, len(queue.jobs)) == ([], 1)


def test_the_threads_of_an_executor_run_the_jobs_of_many_requests(events):
    def app(environ, start_response):
        environ["wsgi.after"](look, environ)
        return hello(environ, start_response)

    def look(environ):
        events.append((environ["PATH_INFO"], current_list() is environ["wsgi.after"]))

    with ThreadPoolExecutor(4) as pool:
        application = AfterResponseMiddleware(app, executor=pool)
        for number in range(100):
            Exchange(application, make_environ(PATH_INFO=f"/{number}")).finish()
    assert sorted(events) == sorted((f"/{number}", True) for number in range(100))


# Nothing kept


@pytest.mark.parametrize("ends_by", ["job", "cancellation", "another process"])
def test_with_the_garbage_collector_off_the_environ_is_freed(ends_by, queue):
    def app(environ, start_response):
        environ["wsgi.after"].append(print)
        return hello(environ, start_response)

    assert is_freed(AfterResponseMiddleware(app, executor=queue))  # with the job still waiting
    if ends_by == "job":
        queue.run()
    elif ends_by == "cancellation":
        queue.futures[0].cancel()
    else:
        queue.futures[0].set_result(None)


def test_a_job_that_waits_does_not_hold_what_is_the_servers(queue):
    class Handler:
        def start_response(self, status, headers):
            return self.write

        def write(self, data):
            """For who does not return an iterable."""

    def app(environ, start_response):
        environ["wsgi.after"].append(print)
        start_response("200 OK", [])
        return []

    with collector_off():
        handler = Handler()
        freed = weakref.ref(handler)
        result = AfterResponseMiddleware(app, executor=queue)(
            make_environ(), handler.start_response
        )
        result.close()
        del handler
        assert freed() is None


def test_app_wide_callbacks_hold_the_environ_until_the_job_has_run(queue, events):
    application = AfterResponseMiddleware(hello, executor=queue)
    application.after_response(lambda environ: events.append(environ["PATH_INFO"]))
    environ = make_environ(marker=Marker())
    marker = weakref.ref(environ["marker"])
    with collector_off():
        Exchange(application, environ).finish()
        del environ
        assert marker() is not None
        queue.run()
        assert marker() is None
    assert events == ["/path"]


# Nothing lost: refused


@pytest.mark.parametrize("error", [RuntimeError("full"), pickle.PicklingError("no"), SystemExit(3)])
def test_what_the_executor_refuses_runs_in_close_with_a_warning(error, events, caplog):
    serve(Refuses(error), partial(events.append, 1), PATH_INFO="/refused")
    assert events == [1]
    (warning,) = messages(caplog, logging.WARNING)
    assert "did not take the callbacks of GET /refused" in warning
    assert warning.endswith(f"{type(error).__name__}: {error}.")


def test_warnings_come_once_a_minute_with_a_count(monkeypatch, caplog):
    now = 1000.0
    monkeypatch.setattr("wsgi_after._core.logs.monotonic", lambda: now)
    for _ in range(3):
        serve(Refuses(RuntimeError("full")), str)
    now += 60
    serve(Refuses(RuntimeError("full")), str)
    first, second = messages(caplog, logging.WARNING)
    assert first.endswith("may wait for them: RuntimeError: full.")
    assert second.endswith(": full. This happened 3 times since this was last logged.")


def test_an_interrupt_out_of_submit_is_let_out_after_the_callbacks_ran(events):
    with pytest.raises(KeyboardInterrupt):
        serve(Refuses(KeyboardInterrupt()), partial(events.append, 1))
    assert events == [1]


def test_an_interrupt_out_of_submit_does_not_replace_the_apps_exception(events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, 1))
        failing()

    application = AfterResponseMiddleware(app, executor=Refuses(KeyboardInterrupt()))
    with pytest.raises(ValueError, match="on purpose"):
        Exchange(application)
    assert events == [1]


def test_an_executor_that_raised_is_not_asked_again_after_an_interruption(events, monkeypatch):
    """A signal handler raises while the refusal is being logged."""
    interruptions = [KeyboardInterrupt]

    def interrupted(request, error):
        if interruptions:
            raise interruptions.pop()

    class Counts:
        def submit(self, fn, *args):
            events.append("asked")
            raise RuntimeError("full")

    monkeypatch.setattr("wsgi_after._core.hand_off.log_refusal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve(Counts(), partial(events.append, 1))
    assert events == ["asked", 1]


def test_a_pool_that_was_shut_down_loses_nothing(events, caplog):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    serve(pool, partial(events.append, 1))
    assert events == [1]
    assert len(messages(caplog, logging.WARNING)) == 1


def test_an_executor_that_takes_a_job_and_then_raises_runs_it_once(events):
    """``ThreadPoolExecutor`` does, where no thread can be started."""

    class Both(Queue):
        def submit(self, fn, *args):
            super().submit(fn, *args)
            raise RuntimeError("can't start new thread")

    queue = Both()
    serve(queue, partial(events.append, 1), partial(events.append, 2))
    queue.run()
    assert events == [1, 2]


def test_two_threads_that_run_one_list_run_each_callback_once(events):
    """One empties it between the other's look and grasp."""

    class Contended(list):
        def pop(self, index):
            super().clear()
            return super().pop(index)

    run_callbacks(Contended([partial(events.append, 1)]))
    assert events == []


# Nothing twice: accepted, then lost


def cancel(future):
    future.cancel()


def fail(future):
    future.set_exception(OSError("the worker was killed"))


@pytest.mark.parametrize("lose", [cancel, fail])
def test_a_job_that_is_lost_is_logged_and_never_run(lose, queue, events, caplog):
    after = serve(queue, partial(events.append, 1), PATH_INFO="/lost").environ["wsgi.after"]
    lose(queue.futures[0])
    (error,) = messages(caplog, logging.ERROR)
    assert error.startswith("The callbacks of GET /lost are lost")
    queue.jobs[0][0](*queue.jobs[0][1:])  # even if it comes to life again
    assert events == []
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(print)


def test_jobs_cancelled_by_a_shutdown_are_logged_as_lost(events, caplog):
    pool, go_on = ThreadPoolExecutor(1), threading.Event()
    pool.submit(go_on.wait)
    serve(pool, partial(events.append, 1))
    pool.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert events == []
    (error,) = messages(caplog, logging.ERROR)
    assert error.startswith("The callbacks of GET /path are lost")


def interrupt():
    raise KeyboardInterrupt


def test_what_a_callback_lets_out_of_the_job_is_logged(queue, events, caplog):
    serve(queue, interrupt, partial(events.append, "ran"))
    queue.run()
    assert events == ["ran"]
    assert messages(caplog, logging.ERROR) == [
        "A callback of GET /path let this out of the executor's job."
    ]
    assert caplog.records[0].exc_info[0] is KeyboardInterrupt


def test_a_future_that_raises_when_asked_is_understood(events, caplog):
    """Gevent's raises the job's exception."""

    class GeventFuture:
        def add_done_callback(self, fn):
            fn(self)

        def exception(self):
            raise OSError("the job's")

    class Executor:
        def submit(self, fn, *args):
            return GeventFuture()

    serve(Executor(), partial(events.append, 1))
    assert events == []
    assert messages(caplog, logging.ERROR)[0].startswith("The callbacks of GET /path are lost")


def test_what_is_no_future_is_not_asked(events):
    """The job of a queue, or nothing at all."""
    serve(Immediately(), partial(events.append, 1))
    assert events == [1]


def test_a_future_that_takes_no_callback_does_not_make_the_job_run_twice(queue, events, capsys):
    class BrokenFuture:
        def add_done_callback(self, fn):
            raise OSError("on purpose")

    queue.submit = lambda fn, *args: (Queue.submit(queue, fn, *args), BrokenFuture())[1]
    serve(queue, partial(events.append, 1))
    assert events == []
    queue.run()
    assert events == [1]
    assert "on purpose" in capsys.readouterr().err


# Copies, and to another process

#: What else a test's environ has can be copied.
ONLY_TEXT = {"wsgi.errors": None}


def test_a_list_pickles_as_the_list_that_it_is():
    after = CallbackList([partial(int, "1")])
    assert pickle.loads(pickle.dumps(after))[0]() == 1
    copied = pickle.loads(pickle.dumps(after))
    assert type(copied) is list
    assert [callback() for callback in copied] == [1]
    after.append(print)  # it has not left this process


SPAWN = get_context("spawn")  # a fork of a process with threads is deprecated


def write(path, text):
    with open(path, "a") as file:
        file.write(text)


def test_another_process_runs_the_callbacks_and_the_list_ends_here(tmp_path):
    path = tmp_path / "ran"
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        after = serve(pool, *(partial(write, path, text) for text in "ab")).environ["wsgi.after"]
    assert path.read_text() == "ab"
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(print)


class Broker:
    """A queue that sends jobs to other processes, and returns no future."""

    def __init__(self, late):
        self.late = late
        self.sent = []

    def submit(self, *job):
        self.job = job
        if not self.late:
            self.send()

    def send(self):
        self.sent.append(pickle.dumps(self.job))


@pytest.mark.parametrize("late", [False, True])
def test_what_comes_after_a_job_has_left_the_process_is_refused(late):
    """Nobody would run it: the broker has it without that."""
    broker = Broker(late)
    after = serve(broker, partial(int, "1")).environ["wsgi.after"]
    if late:
        after.append(partial(int, "2"))
        broker.send()
    with pytest.raises(RuntimeError, match="have run already"):
        after.append(partial(int, "3"))
    (_, sent, label) = pickle.loads(broker.sent[0])
    assert ([callback() for callback in sent], label) == ([1, 2][: 1 + late], "GET /path")


@pytest.mark.parametrize("with_environ", [True, False])
def test_a_deep_copy_shares_the_list_and_ends_nothing(with_environ, queue, events):
    """Debug toolbars and error reporters copy what they can of the environ."""

    def app(environ, start_response):
        copied = copy.deepcopy(environ if with_environ else environ["wsgi.after"])
        (copied["wsgi.after"] if with_environ else copied).append(partial(events.append, "copy"))
        return hello(environ, start_response)

    after = serve(queue, partial(events.append, 1), app=app, **ONLY_TEXT).environ["wsgi.after"]
    after.append(partial(events.append, "later"))
    queue.run()
    assert events == [1, "copy", "later"]


def test_a_copy_of_the_list_is_a_plain_one_and_ends_nothing(queue):
    after = serve(queue, partial(int, "1")).environ["wsgi.after"]
    copied = copy.copy(after)
    after.append(partial(int, "2"))
    assert (type(copied), len(copied), len(after)) == (list, 1, 2)


def test_a_process_pool_that_cannot_pickle_them_has_lost_them(events, caplog):
    """It notices only after it has accepted the job."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        serve(pool, partial(events.append, 1), lambda: None)
    assert events == []
    assert messages(caplog, logging.ERROR)[0].startswith("The callbacks of GET /path are lost")


# Finalizers


def test_a_finalizer_runs_them_in_place(queue, events):
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        return hello(environ, start_response)

    exchange = Exchange(AfterResponseMiddleware(app, executor=queue))
    with pytest.warns(ResourceWarning, match="never closed"):
        del exchange.result
        gc.collect()
    assert (events, queue.jobs) == (["ran"], [])


# uWSGI


@pytest.mark.parametrize("given", ["outer", "inner", "none"])
def test_where_the_server_reuses_the_environ_the_app_gets_a_copy_with_an_executor(
    given, queue, events
):
    def app(environ, start_response):
        environ["wsgi.after"](lambda: events.append(environ.get("PATH_INFO")))
        return hello(environ, start_response)

    inner = AfterResponseMiddleware(app, executor=queue if given == "inner" else None)
    application = AfterResponseMiddleware(inner, executor=queue if given == "outer" else None)
    application.after_response(lambda environ: events.append(environ.get("PATH_INFO")))
    exchange = Exchange(application, make_environ(**{"uwsgi.version": b"2.0.31"}))
    exchange.finish()
    exchange.environ.clear()  # as uWSGI does before it takes the next request
    if given != "none":
        queue.run()
    assert events == ["/path", "/path"]


def test_what_a_middleware_between_binds_to_the_environ_there_keeps_its_arguments(queue, events):
    def look(environ, *args, **kwargs):
        events.append((environ["PATH_INFO"], args, kwargs))

    def between(environ, start_response):
        environ["wsgi.after"](look, environ, 1, two=2)
        return AfterResponseMiddleware(hello, executor=queue)(environ, start_response)

    application = AfterResponseMiddleware(between)
    exchange = Exchange(application, make_environ(**{"uwsgi.version": b"2.0.31"}))
    exchange.finish()
    exchange.environ.clear()
    queue.run()
    assert events == [("/path", (1,), {"two": 2})]


# Slow callbacks


@pytest.fixture
def clock(monkeypatch):
    """What time it is; a callback may move it on."""
    clock = [1000.0]
    for module in ("run", "logs"):
        monkeypatch.setattr(f"wsgi_after._core.{module}.monotonic", lambda: clock[0])
    return clock


def sleep(clock, seconds):
    clock[0] += seconds


def test_a_slow_callback_in_close_is_reported_once_a_minute(clock, caplog):
    slow = partial(sleep, clock, 1.5)
    serve(None, slow, slow)
    serve(None, slow, slow)
    assert len(messages(caplog, logging.WARNING)) == 1
    clock[0] += 60
    serve(None, slow)
    first, second = messages(caplog, logging.WARNING)
    assert first.startswith(
        f"Callback {sleep.__module__}.sleep of GET /path took 1.5 seconds in close()."
    )
    assert "Pass executor=" in first
    assert first.endswith("put its work into a queue.")
    assert second.endswith(" There were 4 slow callbacks since this was last logged.")


def test_a_callback_that_takes_a_second_is_not_slow(clock, caplog):
    serve(None, partial(sleep, clock, 1))
    assert caplog.records == []


def test_a_slow_callback_in_an_executor_keeps_nobody_waiting(clock, queue, caplog):
    serve(queue, partial(sleep, clock, 30))
    queue.run()
    assert caplog.records == []
