"""The bounded pool: which jobs it accepts and refuses, its threads, its end."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from wsgi_after.executor import BoundedThreadPoolExecutor

WAIT = 10  # seconds, as a limit for what takes no time


@pytest.fixture
def pool():
    """A pool with one thread, in which one job may wait."""
    with BoundedThreadPoolExecutor(max_workers=1, max_pending=1) as pool:
        yield pool


@pytest.fixture
def busy(pool):
    """The pool's thread runs a job; set the event to let it end."""
    began, go_on = threading.Event(), threading.Event()
    pool.submit(lambda: (began.set(), go_on.wait(WAIT)))
    assert began.wait(WAIT)
    yield go_on
    go_on.set()


def python(code):
    """Run code in a new interpreter, which has no threads but those that the code starts."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_job_runs_in_a_thread_of_the_pool_and_its_future_has_what_it_returned(pool):
    def job(*args, **kwargs):
        return threading.current_thread().name, args, kwargs

    name, args, kwargs = pool.submit(job, 1, fn=2, self=3).result(WAIT)
    assert name.startswith("wsgi_after")
    assert (args, kwargs) == ((1,), {"fn": 2, "self": 3})
    assert isinstance(pool, Executor)


def test_what_stands_in_for_the_submit_of_the_standard_library_may_name_a_parameter_fn(
    pool, monkeypatch
):
    """Sentry's integration for threads replaces it with such a function."""
    submit = ThreadPoolExecutor.submit

    def named_fn(self, fn, *args, **kwargs):
        return submit(self, fn, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", named_fn)
    assert pool.submit(lambda **kwargs: kwargs, fn=1).result(WAIT) == {"fn": 1}


def test_a_job_sees_the_context_variables_of_who_submitted_it(pool):
    variable = ContextVar("variable")
    variable.set("at submit")
    job = pool.submit(lambda: (variable.get(), variable.set("by the job")))
    assert job.result(WAIT)[0] == variable.get() == "at submit"


def test_it_refuses_when_as_many_jobs_wait_as_may(pool, busy):
    assert pool.submit(str).cancel()  # which makes room
    waits = pool.submit(str)
    with pytest.raises(RuntimeError, match="full"):
        pool.submit(str)
    busy.set()
    assert waits.result(WAIT) == ""
    assert pool.drain(WAIT)
    assert pool.submit(str).result(WAIT) == ""


@pytest.mark.parametrize("size", ["max_workers", "max_pending"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_below_one_is_refused_at_construction(size, value):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, not {value}"):
        BoundedThreadPoolExecutor(**{size: value})


def test_two_threads_that_submit_the_first_jobs_share_the_pool(monkeypatch):
    """No thread starts before the first job. If both threads find no pool, they share one."""
    made = []

    def make(*args, **kwargs):
        made.append(ThreadPoolExecutor(*args, **kwargs))
        if len(made) == 1:
            pool.submit(str).result(WAIT)  # here the other thread comes first
        return made[-1]

    monkeypatch.setattr("wsgi_after.executor.ThreadPoolExecutor", make)
    before = set(threading.enumerate())
    with BoundedThreadPoolExecutor(max_workers=1) as pool:
        assert set(threading.enumerate()) == before
        pool.submit(str).result(WAIT)
        assert (len(made), len(set(threading.enumerate()) - before)) == (2, 1)


# The end


def test_drain_waits_for_what_runs_and_waits(pool, busy, events):
    """It also waits for jobs that jobs submit."""

    def job(left):
        events.append(left)
        if left:
            pool.submit(job, left - 1)

    pool.submit(job, 3)
    assert (pool.drain(0), pool.drain(timeout=0.01)) == (False, False)
    busy.set()
    assert (pool.drain(), events, pool.drain(0)) == (True, [3, 2, 1, 0], True)


def test_drain_within_a_job_is_an_error_and_no_deadlock(pool):
    """But a job may drain another pool."""
    with pytest.raises(RuntimeError, match="from within a job"):
        pool.submit(pool.drain, WAIT).result(WAIT)
    assert pool.submit(BoundedThreadPoolExecutor().drain, WAIT).result(WAIT)


def test_after_shutdown_it_refuses_and_what_waits_can_be_cancelled(pool, busy):
    waits = pool.submit(str)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waits.result(WAIT)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(str)
    busy.set()
    assert pool.drain(WAIT)


def test_a_pool_that_could_start_no_thread_has_room_still(pool, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(str)
    assert pool.submit(str).result(WAIT) == ""


EXIT = """
import threading
from wsgi_after.executor import BoundedThreadPoolExecutor
ended, pool = threading.Event(), BoundedThreadPoolExecutor(max_workers=1)
for number in range(3):
    pool.submit(lambda number=number: print(number if ended.wait(10) else "too early"))
print("end of the program", flush=True)
ended.set()
"""


def test_pending_jobs_finish_at_the_exit_of_the_interpreter():
    assert python(EXIT) == ["end of the program", "0", "1", "2"]


FORK = """
import os, threading
from wsgi_after.executor import BoundedThreadPoolExecutor
shared = BoundedThreadPoolExecutor()
parent = threading.Event()
blocked = [shared.submit(parent.wait) for _ in range(4)]
shared.submit(print, "of the parent", flush=True)
child = os.fork()
if not child:
    print("in the child", shared.submit(os.getpid).result(10) == os.getpid(), flush=True)
    print("drained", shared.drain(10), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("in the parent", shared.drain(0), flush=True)
parent.set()
print("drained", shared.drain(10), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
def test_a_forked_child_has_threads_of_its_own_and_none_of_its_parents_jobs():
    assert python(FORK) == [
        "in the child True",
        "drained True",
        "in the parent False",
        "of the parent",
        "drained True",
    ]
